package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
	"golang.org/x/sys/unix"

	"noded.dev/noded/internal/kind"
)

const (
	maxPluginOutput = 1 << 20 // bytes, of standard output
	maxPluginErrors = 4 << 10 // bytes kept of standard error
	// A plugin that has ended may have left something behind that keeps its
	// output open; its own output is in the pipe by then.
	drainTime = time.Second
	// pluginPath is fixed, so that what plugins find does not depend on who
	// started the daemon.
	pluginPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	// A plugin that is being replaced cannot be executed; there is no event
	// for the end of that.
	busyTries = 10
	busyPause = 100 * time.Millisecond
)

// runner executes plugins for libcni: in their own process group, which is
// killed when the context ends, with a fixed environment and bounded output.
type runner struct {
	version.PluginDecoder
}

var _ invoke.Exec = &runner{}

// FindInPath finds a plugin's binary (CVE-2021-20206: a type is no path).
func (*runner) FindInPath(plugin string, dirs []string) (string, error) {
	if err := checkType(plugin); err != nil {
		return "", err
	}
	path, err := invoke.FindInPath(plugin, dirs)
	if err != nil {
		return "", fmt.Errorf("plugin %s is not in %s", plugin, strings.Join(dirs, ", "))
	}
	return path, nil
}

// ExecPlugin runs one verb and returns what the plugin printed.
func (r *runner) ExecPlugin(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	for try := 1; ; try++ {
		out, err := r.once(ctx, path, stdin, environ)
		if !errors.Is(err, unix.ETXTBSY) || try == busyTries {
			return out, err
		}
		select {
		case <-time.After(busyPause):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (*runner) once(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	tooMuch := kind.Errorf(kind.Aborted, "plugin %s printed more than %d bytes", path, maxPluginOutput)
	out := &capped{limit: maxPluginOutput, full: func() { cancel(tooMuch) }}
	errs := &capped{limit: maxPluginErrors}
	cmd := exec.CommandContext(ctx, path)
	cmd.Env = environment(environ)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), out, errs
	// A plugin must not go on when the daemon dies: the next one's DEL would
	// overtake it. The kernel means the thread that started it, which therefore
	// has to live on.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = drainTime
	cmd.Dir = "/"
	err := cmd.Run()
	if cause := context.Cause(ctx); cause != nil {
		return nil, fmt.Errorf("plugin %s was killed: %w", path, cause)
	}
	if errors.Is(err, exec.ErrWaitDelay) {
		err = nil
	}
	if err != nil {
		return nil, pluginError(err, out.buf.Bytes(), errs.buf.Bytes())
	}
	return out.buf.Bytes(), nil
}

// environment keeps what the CNI protocol passes and nothing of the daemon's.
func environment(environ []string) []string {
	env := []string{pluginPath}
	for _, kv := range environ {
		if strings.HasPrefix(kv, "CNI_") {
			env = append(env, kv)
		}
	}
	return env
}

// pluginError finds the plugin's own words: its error document on standard
// output (spec, "Error"), else what it wrote on standard error.
func pluginError(err error, stdout, stderr []byte) error {
	var said types.Error
	if json.Unmarshal(stdout, &said) == nil && said.Msg != "" {
		return &said
	}
	if text := strings.TrimSpace(string(stderr)); text != "" {
		return fmt.Errorf("%w: %q", err, text)
	}
	if text := strings.TrimSpace(string(stdout)); text != "" {
		return fmt.Errorf("%w: %q", err, text[:min(len(text), maxPluginErrors)])
	}
	return err
}

// capped keeps the first limit bytes written to it. full, if there is one, is
// called when more come.
type capped struct {
	buf   bytes.Buffer
	limit int
	full  func()
}

func (c *capped) Write(p []byte) (int, error) {
	room := c.limit - c.buf.Len()
	if len(p) > room && c.full != nil {
		c.full()
	}
	c.buf.Write(p[:min(len(p), room)])
	return len(p), nil
}
