// Package nsexec runs a process inside a running container without the OCI
// runtime, about ten times as fast: a thread of this process enters the
// container's namespaces and forks. It applies everything that the process's
// section of the runtime spec says, as runc does, and refuses with
// ErrUnsupported what it cannot apply exactly.
//
// The calling process must be single-purpose, as the shim is: Start makes it
// undumpable for good, and the new process is its child. See
// docs/decisions/020-exec-without-the-runtime.md.
package nsexec

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	rspec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"noded.dev/noded/internal/cgroup"
	"noded.dev/noded/internal/kind"
	"noded.dev/noded/runtime/nsexec/seccomp"
)

// ErrUnsupported means that the OCI runtime has to run the process. Nothing
// has been started.
var ErrUnsupported = errors.New("exec without the OCI runtime is not supported")

func unsupported(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrUnsupported}, args...)...)
}

// Request asks for one process in a container.
type Request struct {
	ContainerID string // names the session keyring, as runc does
	InitPid     int    // the container's first process, as this process sees it
	InitPidfd   int    // a descriptor of it, which keeps the pid from meaning another
	Process     *rspec.Process
	Linux       *rspec.Linux // the container's; its seccomp profile is applied

	// Filter is Linux.Seccomp compiled by Compile, to be kept with the
	// container; nil: compiled by each call, which takes longer than the rest.
	Filter *seccomp.Filter

	Cgroup  string       // the container's cgroup as cgroup.Host.Dir gives it
	Cgroups *cgroup.Host // nil: detected by each call, which is slower

	// Standard streams; nil means /dev/null. With Terminal they are not used.
	Stdin, Stdout, Stderr *os.File
	Terminal              bool
}

// Process is the running process.
type Process struct {
	Pid     int      // as the caller sees it; the caller must wait for it
	Pidfd   *os.File // close it
	Console *os.File // the terminal's master side, not blocking; nil without one
}

// Error is a step that failed inside the container. The errno says what a
// shell would make of it: ENOENT is exit code 127, EACCES is 126.
type Error struct {
	Step string
	Err  syscall.Errno
}

func (e *Error) Error() string { return e.Step + ": " + e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

// startLimit bounds the time from fork to exec: the working directory or the
// program may be on a file server that does not answer.
const startLimit = 10 * time.Second

// Start runs the process and returns when it executes its program. Errors are
// ErrUnsupported; *Error if a step failed in the container; kind Precondition
// if the container is not running or is paused; kind Invalid; or others of the
// host. After an error there is no process, except that one which did not get
// to its program in ten seconds (kind Deadline) is killed but not waited for.
func Start(r Request) (*Process, error) {
	if err := check(r); err != nil {
		return nil, err
	}
	// The child is born with this: see the package comment's document.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("make process undumpable: %w", err)
	}
	p, err := newPlan(r)
	if err != nil {
		return nil, err
	}
	defer p.close()
	child, err := enter(p)
	if err != nil {
		return nil, alive(r, err)
	}
	proc, err := await(p, child, startLimit)
	if err != nil && ended(r.InitPidfd, 0) {
		return nil, kind.Errorf(kind.Precondition, "container is not running: %w", err)
	}
	return proc, err
}

// await waits for the child's exec, which closes its end of the report pipe.
func await(p *plan, c *child, limit time.Duration) (*Process, error) {
	p.files.closeOne(p.reportOut)
	proc := &Process{Pid: c.pid, Pidfd: os.NewFile(uintptr(c.pidfd), "pidfd")}
	if c.master >= 0 {
		proc.Console = os.NewFile(uintptr(c.master), "terminal")
	}
	var b [8]byte
	p.reportIn.SetReadDeadline(time.Now().Add(limit))
	_, err := io.ReadFull(p.reportIn, b[:])
	if errors.Is(err, io.EOF) {
		return proc, nil
	}
	if proc.Console != nil {
		proc.Console.Close()
	}
	defer proc.Pidfd.Close()
	unix.PidfdSendSignal(c.pidfd, unix.SIGKILL, nil, 0)
	if err != nil {
		return nil, kind.Errorf(kind.Deadline, "process %d did not execute its program in %v: %w", c.pid, limit, err)
	}
	for unix.Waitid(unix.P_PIDFD, c.pidfd, nil, unix.WEXITED, nil) == unix.EINTR {
	}
	step, errno := binary.NativeEndian.Uint32(b[:4]), binary.NativeEndian.Uint32(b[4:])
	return nil, &Error{p.script.names[step], syscall.Errno(errno)}
}

// alive explains an error by the container's end, if it has ended. A process
// that is exiting loses its namespaces, and its pid namespace takes no new
// process (ENOMEM), a moment before its descriptor tells of the end.
func alive(r Request, err error) error {
	wait := 0 * time.Second
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOMEM) {
		wait = 2 * time.Second
	}
	if ended(r.InitPidfd, wait) {
		return kind.Errorf(kind.Precondition, "container is not running: %w", err)
	}
	return err
}

// ended reports whether the process exits within the time, or has exited,
// waited for or not: its descriptor is readable then (pidfd_open(2)).
func ended(pidfd int, wait time.Duration) bool {
	fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, int(wait.Milliseconds()))
		if err != unix.EINTR {
			return n > 0
		}
	}
}
