package runtime

import (
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// reaper collects orphans: processes that the kernel gave to the shim as their
// subreaper. It leaves alone every child that somebody waits for, which would
// otherwise lose its status.
type reaper struct {
	// forking is read-locked from before a fork until its pid is in known or
	// has been waited for.
	forking sync.RWMutex
	mu      sync.Mutex
	known   map[int]struct{}
}

func newReaper() *reaper { return &reaper{known: map[int]struct{}{}} }

// spawn runs do, which may fork and must have waited for its children or told
// keep of their pids when it returns.
func (r *reaper) spawn(do func() error) error {
	r.forking.RLock()
	defer r.orphans() // those that were skipped meanwhile
	defer r.forking.RUnlock()
	return do()
}

func (r *reaper) keep(pid int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.known[pid] = struct{}{}
}

// forget says that pid's status was collected.
func (r *reaper) forget(pid int) {
	r.mu.Lock()
	delete(r.known, pid)
	r.mu.Unlock()
	r.orphans()
}

// orphans collects ended children that are nobody's. It is called for every
// SIGCHLD and whenever something that made it skip is over.
func (r *reaper) orphans() {
	if !r.forking.TryLock() {
		return // spawn calls again
	}
	defer r.forking.Unlock()
	for {
		var si unix.Siginfo
		err := unix.Waitid(unix.P_ALL, 0, &si, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil || si.Signo == 0 {
			return
		}
		// siginfo_t on 64 bit: si_pid is the int at offset 16.
		pid := int(*(*int32)(unsafe.Add(unsafe.Pointer(&si), 16)))
		r.mu.Lock()
		_, known := r.known[pid]
		r.mu.Unlock()
		if known {
			return // it hides others until its waiter calls forget
		}
		unix.Wait4(pid, nil, unix.WNOHANG, nil)
	}
}
