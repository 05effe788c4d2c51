package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	rspec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"noded.dev/noded/internal/cgroup"
	"noded.dev/noded/internal/kind"
	"noded.dev/noded/runtime/nsexec"
	"noded.dev/noded/runtime/pidfd"
	"noded.dev/noded/runtime/wire"
)

// execStartLimit bounds the start of an exec, not the exec.
const execStartLimit = 30 * time.Second

// execProcess is a process that was started in a container.
type execProcess struct {
	pid     int
	pidfd   *os.File
	console *os.File // master, with a terminal
}

// execSpec is what a process needs to be like the container's first.
type execSpec struct {
	*template
	process   *rspec.Process // the template's with the command
	initPid   int
	initPidfd *os.File
	cgroup    string
	stdio     [3]*os.File // nil: /dev/null
}

// startProcess runs a command in the container, without the OCI runtime if the
// container's settings allow that.
func (s *shim) startProcess(ctx context.Context, c *container, req request, files []*os.File) (execProcess, error) {
	spec, err := c.execSpec(req, files)
	if err != nil {
		return execProcess{}, err
	}
	defer spec.initPidfd.Close()
	p, err := s.startDirect(c.id, spec)
	switch {
	case err == nil:
		return p, nil
	case errors.Is(err, nsexec.ErrUnsupported):
		spec.told.Do(func() { s.log.WithError(err).WithField("container", c.id).Info("execs take the OCI runtime") })
		return s.execByRuntime(ctx, c, spec)
	}
	var start *StartError
	if errors.As(err, &start) && spec.stdio[2] != nil {
		fmt.Fprintf(spec.stdio[2], "exec %s: %v\n", spec.process.Args[0], err) // as a shell would; the code tells the client
	}
	return p, err
}

// execSpec puts the command into what the container's execs have in common.
func (c *container) execSpec(req request, files []*os.File) (execSpec, error) {
	if len(req.Args) == 0 || req.Args[0] == "" {
		return execSpec{}, kind.Errorf(kind.Invalid, "exec without a command")
	}
	t, err := c.execTemplate()
	if err != nil {
		return execSpec{}, err
	}
	process := *t.process
	process.Args, process.Terminal = req.Args, req.Terminal
	e := execSpec{template: t, process: &process}
	c.mu.Lock()
	e.initPid, e.cgroup = c.record.Process.Pid, c.record.Request.CgroupsDir
	if f := c.files[filePidfd]; f != nil {
		// Its own: a delete meanwhile closes the container's, and the number
		// could soon be another container's.
		e.initPidfd, err = dup(f)
	}
	c.mu.Unlock()
	if err != nil {
		return e, fmt.Errorf("duplicate pidfd: %w", err)
	}
	if e.initPidfd == nil {
		return e, kind.Errorf(kind.Precondition, "container %s is not running", c.id)
	}
	// An update may have changed what the specification says.
	if score, err := cgroup.OOMScore(e.initPid); err == nil && process.OOMScoreAdj != nil {
		process.OOMScoreAdj = &score
	}
	for i, have := range []bool{req.Stdin, req.Stdout, req.Stderr} {
		if have && len(files) > 0 {
			e.stdio[i], files = files[0], files[1:]
		}
	}
	return e, nil
}

// execByRuntime is `<runtime> exec --detach`. The process becomes our child
// when the runtime ends, so its pid is safe until reaper may collect it.
func (s *shim) execByRuntime(ctx context.Context, c *container, e execSpec) (p execProcess, err error) {
	dir, err := os.MkdirTemp(c.dir, "exec-")
	if err != nil {
		return p, fmt.Errorf("make exec folder: %w", err)
	}
	defer os.RemoveAll(dir)
	data, err := json.Marshal(e.process)
	if err != nil {
		return p, kind.Errorf(kind.Invalid, "encode process: %w", err)
	}
	processFile, pidFile := filepath.Join(dir, "process.json"), filepath.Join(dir, "pid")
	if err := os.WriteFile(processFile, data, 0o600); err != nil {
		return p, fmt.Errorf("write process: %w", err)
	}
	args := []string{"exec", "--detach", "--process", processFile, "--pid-file", pidFile}
	stdio, console, err := e.runtimeStdio(dir)
	if err != nil {
		return p, err
	}
	defer wire.CloseAll(stdio.own)
	if console != nil {
		defer console.Close()
		args = append(args, "--tty", "--console-socket", filepath.Join(dir, "tty"))
	}
	if err := s.run(ctx, command{handler: c.record.Request.Runtime, dir: dir, args: append(args, c.id), stdio: stdio.all}); err != nil {
		return p, err
	}
	if p.pid, err = readPid(pidFile); err != nil {
		return p, err
	}
	if p.pidfd, err = pidfd.Open(p.pid); err != nil {
		return p, kind.Wrap(kind.Aborted, err)
	}
	if console != nil {
		if p.console, err = receiveConsole(ctx, console); err != nil {
			pidfd.Signal(p.pidfd, int(unix.SIGKILL))
			p.pidfd.Close()
		}
	}
	return p, err
}

type runtimeStdio struct{ all, own []*os.File }

func (e execSpec) runtimeStdio(dir string) (io runtimeStdio, console *net.UnixListener, err error) {
	null, err := openFile(os.DevNull, unix.O_RDWR)
	if err != nil {
		return io, nil, err
	}
	io.own = []*os.File{null}
	for _, f := range e.stdio {
		if f == nil || e.process.Terminal {
			f = null
		}
		io.all = append(io.all, f)
	}
	if e.process.Terminal {
		if console, err = wire.Listen(filepath.Join(dir, "tty")); err != nil {
			null.Close()
		}
	}
	return io, console, err
}
