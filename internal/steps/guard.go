package steps

import (
	"runtime/debug"

	"noded.dev/noded/internal/kind"
)

// Guard runs work and makes an error of its panic, so that what one request or
// one image brings about does not end the process for all. report, if not nil,
// gets the stack, which is for a log and no client; the error has only the value.
func Guard(report func(stack string), work func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			if report != nil {
				report(string(debug.Stack()))
			}
			err = kind.Errorf(kind.Internal, "panic: %v", p)
		}
	}()
	return work()
}
