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

	"noded.dev/noded/internal/kind"
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
	initPid   int
	initPidfd *os.File
	process   *rspec.Process
	linux     *rspec.Linux
	cgroup    string
	stdio     [3]*os.File // nil: /dev/null
}

// errUnsupported makes startProcess fall back to the OCI runtime.
var errUnsupported = errors.New("exec needs the OCI runtime")

// startProcess runs a command in the container, without the OCI runtime if the
// container's settings allow that.
func (s *shim) startProcess(ctx context.Context, c *container, req request, files []*os.File) (execProcess, error) {
	spec, err := c.execSpec(req, files)
	if err != nil {
		return execProcess{}, err
	}
	p, err := s.startDirect(c.id, spec)
	switch {
	case err == nil:
		return p, nil
	case errors.Is(err, errUnsupported):
		return s.execByRuntime(ctx, c, spec)
	}
	var start *StartError
	if errors.As(err, &start) && spec.stdio[2] != nil {
		fmt.Fprintf(spec.stdio[2], "exec %s: %v\n", spec.process.Args[0], err) // as a shell would; the code tells the client
	}
	return p, err
}

// execSpec reads the container's specification and puts the command in.
func (c *container) execSpec(req request, files []*os.File) (execSpec, error) {
	c.mu.Lock()
	r, p, f := c.record.Request, c.record.Process, c.files[filePidfd]
	c.mu.Unlock()
	if len(req.Args) == 0 || req.Args[0] == "" {
		return execSpec{}, kind.Errorf(kind.Invalid, "exec without a command")
	}
	data, err := os.ReadFile(filepath.Join(r.Bundle, "config.json"))
	if err != nil {
		return execSpec{}, fmt.Errorf("read container specification: %w", err)
	}
	var spec struct {
		Process *rspec.Process
		Linux   *rspec.Linux
	}
	if err := json.Unmarshal(data, &spec); err != nil || spec.Process == nil {
		return execSpec{}, fmt.Errorf("decode container specification: %w", err)
	}
	spec.Process.Args, spec.Process.Terminal, spec.Process.CommandLine = req.Args, req.Terminal, ""
	e := execSpec{initPid: p.Pid, initPidfd: f, process: spec.Process, linux: spec.Linux, cgroup: r.CgroupsDir}
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
