package pidfd

import (
	"os"

	"golang.org/x/sys/unix"
)

// maxRounds bounds KillTree against a process that forks faster than it is killed.
const maxRounds = 50

// KillTree kills the process behind f, pid in number, and all that it started:
// its descendants and the members of its session, of which it must be the
// leader. It repeats until there is none left. The session finds what has
// outlived its parent; a daemon that made a session of its own and then lost
// its parent is not found.
func KillTree(f *os.File, pid int) {
	Signal(f, int(unix.SIGSTOP)) // no more forks while its tree is looked at
	for range maxRounds {
		tree := members(pid)
		killed := 0
		for p, start := range tree {
			if p != pid && kill(p, start) {
				killed++
			}
		}
		if killed == 0 {
			break
		}
	}
	Signal(f, int(unix.SIGKILL))
	for range maxRounds { // what was forked in between
		killed := 0
		for p, start := range members(pid) {
			if p != pid && kill(p, start) {
				killed++
			}
		}
		if killed == 0 {
			return
		}
	}
}

// kill kills a process if it is still the one that was started then.
func kill(pid int, start uint64) bool {
	f, err := OpenProcess(pid, start)
	if err != nil {
		return false
	}
	defer f.Close()
	return Signal(f, int(unix.SIGKILL)) == nil
}

// members maps the living processes of root's tree and session to their start.
func members(root int) map[int]uint64 {
	all, err := All()
	if err != nil {
		return nil
	}
	tree := map[int]uint64{}
	if p, ok := all[root]; ok {
		tree[root] = p.Start
	}
	for grown := true; grown; {
		grown = false
		for pid, p := range all {
			_, have := tree[pid]
			_, child := tree[p.Parent]
			if !have && (child || p.Parent == root || p.Session == root) && !p.Zombie {
				tree[pid], grown = p.Start, true
			}
		}
	}
	return tree
}
