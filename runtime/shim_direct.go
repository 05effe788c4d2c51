package runtime

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"noded.dev/noded/internal/kind"
	"noded.dev/noded/runtime/nsexec"
)

// startDirect starts a process without the OCI runtime; nsexec.ErrUnsupported
// if the container's settings need it.
func (s *shim) startDirect(id string, e execSpec) (execProcess, error) {
	if s.cgroups == nil || e.cgroup == "" {
		return execProcess{}, fmt.Errorf("%w: cgroups are not known", nsexec.ErrUnsupported)
	}
	if e.refused != nil {
		return execProcess{}, e.refused
	}
	p, err := nsexec.Start(nsexec.Request{
		ContainerID: id, InitPid: e.initPid, InitPidfd: fdOf(e.initPidfd), Process: e.process,
		Linux: e.linux, Filter: e.filter, Cgroup: s.cgroups.Dir(e.cgroup), Cgroups: s.cgroups,
		Stdin: e.stdio[0], Stdout: e.stdio[1], Stderr: e.stdio[2], Terminal: e.process.Terminal,
	})
	if errors.Is(err, nsexec.ErrUnsupported) {
		return execProcess{}, err
	}
	if err != nil {
		return execProcess{}, directError(err)
	}
	// Go's poller waits for the process, and for that it must not block.
	pidfd, err := nonblocking(p.Pidfd)
	if err != nil {
		unix.Kill(p.Pid, unix.SIGKILL) // our own child, not waited for: the pid is its
		return execProcess{}, err
	}
	return execProcess{pid: p.Pid, pidfd: pidfd, console: p.Console}, nil
}

// directError gives a program that cannot be executed the codes of a shell.
func directError(err error) error {
	var step *nsexec.Error
	if !errors.As(err, &step) {
		return err
	}
	if strings.HasPrefix(step.Step, "execute") {
		switch step.Err {
		case unix.ENOENT, unix.ENOTDIR:
			return kind.Wrap(kind.Aborted, &StartError{Code: 127, Err: err})
		case unix.EACCES, unix.ENOEXEC, unix.EISDIR, unix.EPERM:
			return kind.Wrap(kind.Aborted, &StartError{Code: 126, Err: err})
		}
	}
	switch step.Err {
	case unix.EAGAIN, unix.ENOMEM, unix.EMFILE, unix.ENFILE:
		return kind.Wrap(kind.Exhausted, err)
	}
	return kind.Wrap(kind.Aborted, err)
}
