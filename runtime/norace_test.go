//go:build !race

package runtime

const raceEnabled = false // its memory is not ours to measure
