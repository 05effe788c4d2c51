package nsexec

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// These are what package syscall itself calls around a fork; the Go runtime
// keeps them available to packages outside of the standard library. Between
// beforeFork and afterFork, and in the child until exec, nothing may allocate,
// grow the stack, or call into the scheduler.

//go:linkname beforeFork syscall.runtime_BeforeFork
func beforeFork()

//go:linkname afterFork syscall.runtime_AfterFork
func afterFork()

//go:linkname afterForkInChild syscall.runtime_AfterForkInChild
func afterForkInChild()

// cloneArgs is struct clone_args of clone3(2).
type cloneArgs struct {
	flags, pidfd, childTID, parentTID, exitSignal uint64
	stack, stackSize, tls, setTID, setTIDSize     uint64
	cgroup                                        uint64
}

// fork makes a child that runs the script. It shares no memory with this
// process: the kernel's out-of-memory killer, choosing a victim in the
// container's cgroup, kills all processes that share the victim's memory.
//
//go:noinline
//go:norace
//go:nocheckptr
func fork(args *cloneArgs, calls []syscallOp, report *[2]uint32) (pid uintptr, errno syscall.Errno) {
	beforeFork()
	pid, _, errno = syscall.RawSyscall6(unix.SYS_CLONE3, uintptr(unsafe.Pointer(args)), unsafe.Sizeof(*args), 0, 0, 0, 0)
	if errno != 0 || pid != 0 {
		afterFork()
		return pid, errno
	}
	afterForkInChild()
	run(calls, report)
	return 0, 0 // not reached
}

// run makes the calls in the child and does not return. The first call that
// fails, unless its error is tolerated, is reported by its step.
//
//go:nosplit
//go:norace
//go:nocheckptr
func run(calls []syscallOp, report *[2]uint32) {
	var fd uintptr  // what the latest opSave call returned
	var denied bool // the opFirst call failed
	var exec syscall.Errno
	for i := range calls {
		c := &calls[i]
		if c.flags&opSecond != 0 && !denied {
			continue
		}
		a0 := c.args[0]
		if c.flags&opUse != 0 {
			a0 = fd
		}
		r, _, e := syscall.RawSyscall6(c.nr, a0, c.args[1], c.args[2], c.args[3], c.args[4], 0)
		switch {
		case e == 0 && c.flags&opSave != 0:
			fd = r
		case e == 0 && c.flags&opAbsolute != 0 && *c.text != '/':
			e = syscall.ENOENT
		case c.flags&opFirst != 0:
			denied = e != 0
		case c.flags&opExec != 0 && e == syscall.EACCES:
			exec = e
		}
		if e == 0 || e < 64 && c.tolerate&(1<<e) != 0 {
			continue
		}
		if c.flags&opExec != 0 && exec != 0 && e == syscall.ENOENT {
			e = exec // some other folder had a file that may not be executed
		}
		report[0], report[1] = c.step, uint32(e)
		break
	}
	syscall.RawSyscall6(unix.SYS_WRITE, reportFD, uintptr(unsafe.Pointer(report)), unsafe.Sizeof(*report), 0, 0, 0)
	code := uintptr(126)
	if report[1] == uint32(syscall.ENOENT) {
		code = 127
	}
	for {
		syscall.RawSyscall6(unix.SYS_EXIT_GROUP, code, 0, 0, 0, 0, 0)
	}
}
