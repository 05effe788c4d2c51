package nsexec

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"

	"noded.dev/noded/internal/kind"
)

// child is what a fork left in this process.
type child struct {
	pid    int
	pidfd  int
	master int // -1 without a terminal
}

// namespaces are those that one thread can enter alone. The cgroup namespace
// is the child's to enter: from inside of it, a cgroup of a tree mounted with
// nsdelegate could not be entered (cgroup-v2.rst, "Delegation Containment").
const namespaces = unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWPID

// enter forks the planned process inside the container. The thread that goes
// there cannot come back: its goroutine ends locked to it, so that the Go
// runtime ends the thread.
func enter(p *plan) (*child, error) {
	type result struct {
		c   *child
		err error
	}
	done := make(chan result, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The main thread cannot end before the process does. Held here, it
			// cannot be the one that the next try gets.
			defer runtime.UnlockOSThread()
			c, err := enter(p)
			done <- result{c, err}
			return
		}
		c, err := enterHere(p)
		done <- result{c, err}
	}()
	r := <-done
	return r.c, r.err
}

// enterHere changes this thread for good. What it calls must not rely on the
// host's files, nor start other goroutines.
func enterHere(p *plan) (_ *child, err error) {
	// Threads share root and working directory, which a mount namespace sets.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return nil, fmt.Errorf("unshare root directory: %w", err)
	}
	if err := unix.Setns(p.initPidfd, namespaces); err != nil {
		return nil, fmt.Errorf("enter namespaces: %w", err)
	}
	c := &child{pidfd: -1, master: -1}
	if p.terminal {
		master, slave, err := openTerminal(p)
		if err != nil {
			return nil, err
		}
		defer unix.Close(slave)
		c.master = master
		p.script.setStdio([3]int{slave, slave, slave}, p.stdioAt)
	}
	if err := p.clone(c); err != nil {
		if c.master >= 0 {
			unix.Close(c.master)
		}
		return nil, err
	}
	return c, nil
}

// clone forks into the container's v2 cgroup if there is one, so that no
// process has to be migrated, which waits for all processors (a write to
// cgroup.procs takes up to 10 ms).
func (p *plan) clone(c *child) error {
	args := &cloneArgs{flags: unix.CLONE_PIDFD, exitSignal: uint64(unix.SIGCHLD)}
	pidfd := new(int32)
	args.pidfd = uint64(address(p.script, pidfd))
	report := new([2]uint32)
	err := unix.EBUSY
	pid := uintptr(0)
	folders := p.unified
	if len(folders) == 0 {
		pid, err = fork(args, p.script.calls, report)
	}
	// EBUSY: the container has made cgroups below its own and given them
	// controllers, so that its own can hold no process. Its first process's
	// cgroup can.
	for i := 0; i < len(folders) && err == unix.EBUSY; i++ {
		args.flags |= unix.CLONE_INTO_CGROUP
		args.cgroup = uint64(folders[i])
		pid, err = fork(args, p.script.calls, report)
	}
	switch err {
	case 0:
	case unix.ENOSYS, unix.EINVAL, unix.E2BIG:
		return unsupported("clone3: %w", err)
	case unix.EAGAIN:
		return kind.Errorf(kind.Exhausted, "fork into container: limit of processes: %w", err)
	default:
		return fmt.Errorf("fork into container: %w", err)
	}
	c.pid, c.pidfd = int(pid), int(*pidfd)
	return nil
}
