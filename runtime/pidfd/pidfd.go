// Package pidfd handles processes by descriptor, so that a recycled pid is
// never signalled, waited for or mistaken for a container.
package pidfd

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// ErrLost says that a process has ended and that its status went elsewhere.
var ErrLost = errors.New("exit status could not be collected")

// ErrPending says that a process has ended and its parent has not collected
// the status yet, without which the kernel tells it to nobody else.
var ErrPending = errors.New("exit status not collected by the parent yet")

// Open returns a pidfd that the Go poller can wait for.
func Open(pid int) (*os.File, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("open pidfd of %d: %w", pid, err)
	}
	return os.NewFile(uintptr(fd), "pidfd"), nil
}

// OpenProcess is Open for a process that must have been started at start
// (clock ticks after boot); it fails with ESRCH for another one.
func OpenProcess(pid int, start uint64) (*os.File, error) {
	f, err := Open(pid)
	if err != nil {
		return nil, err
	}
	if t, err := StartTime(pid); err != nil || t != start {
		return nil, errors.Join(fmt.Errorf("process %d is another one now: %w", pid, unix.ESRCH), f.Close())
	}
	return f, nil
}

// Signal sends a signal; os.ErrProcessDone if the process has ended.
func Signal(f *os.File, sig int) error {
	err := control(f, func(fd int) error { return unix.PidfdSendSignal(fd, unix.Signal(sig), nil, 0) })
	if errors.Is(err, unix.ESRCH) {
		return os.ErrProcessDone
	}
	return err
}

// Wait returns when the process has ended, without collecting its status; at
// once with an error when f is closed.
func Wait(f *os.File) error {
	rc, err := f.SyscallConn()
	if err != nil {
		return err
	}
	return rc.Read(func(fd uintptr) bool { return ended(int(fd)) })
}

// Ended reports whether the process has ended.
func Ended(f *os.File) bool {
	done := false
	control(f, func(fd int) error { done = ended(fd); return nil })
	return done
}

func ended(fd int) bool {
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(p, 0)
	return err == nil && n > 0
}

// Code reads the exit code of a process that has ended, 128+n for signal n,
// and leaves it there for Reap: the caller can make it durable in between.
// From another process's child it can be had on kernels with PIDFD_INFO_EXIT
// (6.15) once that parent has collected it; ErrPending until then.
func Code(f *os.File) (int, error) {
	code := 0
	err := control(f, func(fd int) error {
		c, err := wait(fd, unix.WNOWAIT)
		if err == unix.ECHILD {
			c, err = info(fd)
		}
		code = c
		return err
	})
	return code, err
}

// IsChild reports whether the process is this one's child, living or not yet
// collected.
func IsChild(f *os.File) bool {
	err := control(f, func(fd int) error { _, err := wait(fd, unix.WNOWAIT); return err })
	return err == nil || errors.Is(err, ErrPending)
}

// Reap collects the status of an own child that has ended; unix.ECHILD if it
// is not ours (any more).
func Reap(f *os.File) (int, error) {
	code := 0
	err := control(f, func(fd int) (err error) { code, err = wait(fd, 0); return err })
	return code, err
}

func wait(fd, flags int) (int, error) {
	var si unix.Siginfo
	for {
		err := unix.Waitid(unix.P_PIDFD, fd, &si, unix.WEXITED|unix.WNOHANG|flags, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return 0, err
		}
		break
	}
	// waitid(2): si_signo is 0 if there was nothing to collect. The layout of
	// siginfo_t on 64 bit: signo, errno, code, pad, pid, uid, status.
	if si.Signo == 0 {
		return 0, ErrPending
	}
	status := siginfoStatus(&si)
	if si.Code == cldExited {
		return status, nil
	}
	return 128 + status, nil
}

const cldExited = 1 // CLD_EXITED; the other codes of WEXITED carry a signal

func info(fd int) (int, error) {
	in := unix.PidfdInfo{Mask: unix.PIDFD_INFO_EXIT}
	err := unix.IoctlPidfdInfo(fd, &in)
	switch {
	case err == unix.ESRCH:
		return 0, ErrLost // reaped before the pidfd was opened, or the kernel keeps no status
	case err != nil:
		return 0, ErrLost // older kernel
	case in.Mask&unix.PIDFD_INFO_EXIT == 0:
		return 0, ErrPending
	}
	ws := unix.WaitStatus(in.Exit_code)
	if ws.Signaled() {
		return 128 + int(ws.Signal()), nil
	}
	return ws.ExitStatus(), nil
}

func control(f *os.File, do func(fd int) error) error {
	rc, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var doErr error
	if err := rc.Control(func(fd uintptr) { doErr = do(int(fd)) }); err != nil {
		return err
	}
	return doErr
}

// StartTime is when a process was started, in clock ticks after boot.
func StartTime(pid int) (uint64, error) {
	p, err := Read(pid)
	return p.Start, err
}
