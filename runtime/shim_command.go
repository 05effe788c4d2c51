package runtime

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"noded.dev/noded/internal/kind"
	"noded.dev/noded/runtime/criu"
)

// maxMessage is how much of an OCI runtime's complaint an error carries, bytes.
const maxMessage = 4 << 10

// command is one call of an OCI runtime.
type command struct {
	handler Handler
	dir     string // for its log
	args    []string
	stdin   []byte
	// stdio, if set, is what a created container's process inherits.
	stdio []*os.File
	// said, if set, is called once the command has ended, and returns what it
	// wrote to stdio.
	said func() string
	env  []string // runtimeEnv if nil
	// abort, if set, makes the command give up; it is killed only some time later.
	abort func() error
	// explain, if set, returns more of why it failed.
	explain func() string
}

// runtimeEnv is all of the environment that an OCI runtime gets.
var runtimeEnv = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}

// run executes the command in a process group of its own, which is killed when
// ctx ends. Its environment is fixed: nothing of the host's must reach it.
func (s *shim) run(ctx context.Context, c command) error {
	logPath := filepath.Join(c.dir, "runtime.log")
	if err := os.Remove(logPath); err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("remove old runtime log: %w", err)
	}
	global := []string{"--root", c.handler.Root, "--log", logPath, "--log-format", "json"}
	if c.handler.SystemdCgroup {
		global = append(global, "--systemd-cgroup")
	}
	cmd := exec.CommandContext(ctx, c.handler.Path, append(global, c.args...)...)
	cmd.Env = runtimeEnv
	if c.env != nil {
		cmd.Env = c.env
	}
	cmd.Dir = "/"
	// Should the shim die, a half-done command must not go on beside its successor's.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if c.args[0] != "start" && c.abort == nil {
		// Ends with the shim, since a successor repeats it. A start must not: cut
		// off after it let the process go, it leaves a state in which a repeated
		// one waits for that process for ever.
		cmd.SysProcAttr.Pdeathsig = unix.SIGKILL
	}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.WaitDelay = time.Second
	if c.abort != nil {
		cmd.Cancel, cmd.WaitDelay = c.abort, abortLimit
	}
	stderr := &capped{}
	if c.stdio != nil {
		cmd.Stdin, cmd.Stdout, cmd.Stderr = c.stdio[0], c.stdio[1], c.stdio[2]
	} else {
		cmd.Stderr = stderr
		if c.stdin != nil {
			cmd.Stdin = bytes.NewReader(c.stdin)
		}
	}
	// The kernel sends Pdeathsig when the forking thread ends, so keep that thread.
	goruntime.LockOSThread()
	err := runCommand(cmd, c.abort != nil)
	goruntime.UnlockOSThread()
	if c.said != nil {
		io.WriteString(stderr, c.said())
	}
	switch {
	case err == nil, errors.Is(err, exec.ErrWaitDelay):
		return nil
	case ctx.Err() != nil:
		return fmt.Errorf("%s %s: %w", c.handler.Name, c.args[0], context.Cause(ctx))
	case errors.Is(err, os.ErrNotExist) || errors.Is(err, exec.ErrNotFound):
		return kind.Errorf(kind.NotFound, "OCI runtime %s: %w", c.handler.Name, err)
	}
	return c.failure(err, logPath, stderr.String())
}

// runCommand is cmd.Run; an abortable command is started with the signal
// blocked that would kill it when it is to give up.
func runCommand(cmd *exec.Cmd, abortable bool) error {
	restore := func() {}
	if abortable {
		var err error
		if restore, err = criu.BlockSignal(); err != nil {
			return err
		}
	}
	err := cmd.Start()
	restore()
	if err != nil {
		return err
	}
	return cmd.Wait()
}

func (c command) failure(err error, logPath, stderr string) error {
	message := lastLogError(logPath)
	if message == "" {
		message = strings.TrimSpace(stderr)
	}
	if message == "" {
		message = err.Error()
	}
	if c.explain != nil {
		message += ": " + c.explain()
	}
	if len(message) > maxMessage {
		message = message[:maxMessage]
	}
	failed := kind.Errorf(kind.Aborted, "%s %s: %s", c.handler.Name, c.args[0], message)
	code := startCode(message)
	// Before the start any other failure is the node's, and may pass.
	if c.args[0] == "start" || c.args[0] == "restore" || code != codeOther && (c.args[0] == "create" || c.args[0] == "exec") {
		return kind.Wrap(kind.Aborted, &StartError{Code: code, Err: failed})
	}
	return failed
}

// codeOther is a start that failed for another reason than the command's file.
const codeOther = 128

// startCode tells the runtimes' messages about the command itself apart. They
// are the C library's and Go's words for ENOENT, EACCES and the like.
func startCode(message string) int {
	m := strings.ToLower(message)
	if !strings.Contains(m, "exec") && !strings.Contains(m, "executable") {
		return codeOther
	}
	for _, s := range []string{"executable file not found", "no such file or directory", "executable file `"} {
		if strings.Contains(m, s) && !strings.Contains(m, "mount") {
			return 127
		}
	}
	for _, s := range []string{"permission denied", "exec format error", "is a directory"} {
		if strings.Contains(m, s) && !strings.Contains(m, "mount") {
			return 126
		}
	}
	return codeOther
}

// lastLogError finds the last error in a JSON log, reading at most its last 64 KiB.
func lastLogError(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	if st, err := f.Stat(); err == nil && st.Size() > 64<<10 {
		f.Seek(-64<<10, io.SeekEnd)
	}
	last := ""
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 64<<10)
	for lines.Scan() {
		var l struct{ Level, Msg string }
		if json.Unmarshal(lines.Bytes(), &l) == nil && (l.Level == "error" || l.Level == "fatal") && l.Msg != "" {
			last = l.Msg
		}
	}
	return last
}

// capped keeps the first bytes of what is written to it and takes the rest.
type capped struct{ b []byte }

func (c *capped) Write(p []byte) (int, error) {
	c.b = append(c.b, p[:min(len(p), maxMessage-len(c.b))]...)
	return len(p), nil
}

func (c *capped) String() string { return string(c.b) }

// maxOutput bounds what is read of an OCI runtime's answer, bytes.
const maxOutput = 1 << 20

// runtimeOutput runs a query of an OCI runtime and returns its answer.
func runtimeOutput(ctx context.Context, h Handler, args ...string) ([]byte, error) {
	if h.Root != "" {
		args = append([]string{"--root", h.Root}, args...)
	}
	cmd := exec.CommandContext(ctx, h.Path, args...)
	cmd.Env = runtimeEnv
	cmd.Dir = "/"
	cmd.WaitDelay = time.Second
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("run %s: %w", h.Name, err)
	}
	data, readErr := io.ReadAll(io.LimitReader(out, maxOutput))
	if len(data) == maxOutput {
		cmd.Process.Kill()
	}
	return data, errors.Join(cmd.Wait(), readErr)
}
