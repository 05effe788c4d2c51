package streaming

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/util/exec"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/test/node"
)

// daemon starts a real noded with a busybox image.
func daemon(t *testing.T) *node.Node {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("a daemon needs root")
	}
	binary, err := node.Build(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	registry, err := node.StartRegistry(nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { registry.Close() })
	files, err := node.Busybox()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := registry.Push("busybox:1", v1.ImageConfig{Env: []string{"PATH=/bin"}}, files); err != nil {
		t.Fatal(err)
	}
	n := node.New(t, node.Options{Binary: binary, Registry: registry})
	if _, err := n.Pull(node.Image); err != nil {
		t.Fatal(err)
	}
	return n
}

func attachURL(t *testing.T, n *node.Node, req *cri.AttachRequest) string {
	t.Helper()
	ctx, cancel := node.Context()
	defer cancel()
	r, err := n.Runtime.Attach(ctx, req)
	if err != nil {
		t.Fatal(err)
	}
	return r.Url
}

// typist hands out lines, each when the screen shows what it waits for, so that
// nothing depends on time.
type typist struct {
	screen *lockedBuffer
	after  []string
	lines  []string
	rest   string
}

func (p *typist) Read(b []byte) (int, error) {
	if p.rest == "" {
		if len(p.lines) == 0 {
			return 0, io.EOF
		}
		for end := time.Now().Add(10 * time.Second); !strings.Contains(p.screen.text(), p.after[0]); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				return 0, errors.New("the screen never showed " + p.after[0])
			}
		}
		p.rest, p.lines, p.after = p.lines[0], p.lines[1:], p.after[1:]
	}
	k := copy(b, p.rest)
	p.rest = p.rest[k:]
	return k, nil
}

func (b *lockedBuffer) text() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// TestDaemonAttach attaches to containers of a real daemon: with a stdin that
// stays, with one that is closed after the first client, and with a terminal.
func TestDaemonAttach(t *testing.T) {
	n := daemon(t)
	eachProtocol(t, func(t *testing.T, connect func(string) remotecommand.Executor) {
		pod := n.RunPod(t)
		t.Run("stdin once", func(t *testing.T) {
			if strings.Contains(t.Name(), "WebSocketV4") {
				t.Skip("version 4 cannot say that stdin has ended")
			}
			c := pod.Run(t, "echo ready; cat; echo end >&2; exit 5", func(c *cri.ContainerConfig) { c.Stdin, c.StdinOnce = true, true })
			var out, errs lockedBuffer
			address := attachURL(t, n, &cri.AttachRequest{ContainerId: c.ID, Stdin: true, Stdout: true, Stderr: true})
			err := connect(address).StreamWithContext(t.Context(), remotecommand.StreamOptions{
				Stdin: &typist{screen: &out, after: []string{""}, lines: []string{"one\n"}}, Stdout: &out, Stderr: &errs,
			})
			if err != nil || !strings.HasSuffix(out.text(), "one\n") || errs.text() != "end\n" {
				t.Errorf("out %q, err %q, %v", out.text(), errs.text(), err)
			}
			if s := c.WaitExit(t); s.ExitCode != 5 {
				t.Errorf("exit code %d, want 5", s.ExitCode)
			}
		})
		t.Run("stdin stays", func(t *testing.T) {
			c := pod.Run(t, "while read line; do echo got $line; [ $line = last ] && exit 6; done", func(c *cri.ContainerConfig) { c.Stdin = true })
			var out lockedBuffer
			ctx, leave := context.WithCancel(t.Context())
			left := make(chan error, 1)
			first := connect(attachURL(t, n, &cri.AttachRequest{ContainerId: c.ID, Stdin: true, Stdout: true}))
			go func() {
				left <- first.StreamWithContext(ctx, remotecommand.StreamOptions{
					Stdin: &typist{screen: &out, after: []string{""}, lines: []string{"first\n"}}, Stdout: &out,
				})
			}()
			node.Eventually(t, "the first client has its answer", 10*time.Second, func() bool { return out.text() == "got first\n" })
			leave()
			<-left
			var again lockedBuffer
			second := connect(attachURL(t, n, &cri.AttachRequest{ContainerId: c.ID, Stdin: true, Stdout: true}))
			err := second.StreamWithContext(t.Context(), remotecommand.StreamOptions{
				Stdin: &typist{screen: &again, after: []string{""}, lines: []string{"last\n"}}, Stdout: &again,
			})
			if s := c.WaitExit(t); err != nil || s.ExitCode != 6 || again.text() != "got last\n" {
				t.Errorf("out %q, exit code %d, %v", again.text(), s.ExitCode, err)
			}
		})
		t.Run("terminal", func(t *testing.T) {
			c := pod.Run(t, "read a; stty size; exit 7", func(c *cri.ContainerConfig) { c.Tty, c.Stdin = true, true })
			var out lockedBuffer
			queue := make(sizeQueue, 1)
			queue <- remotecommand.TerminalSize{Width: 99, Height: 33}
			address := attachURL(t, n, &cri.AttachRequest{ContainerId: c.ID, Stdin: true, Stdout: true, Tty: true})
			err := connect(address).StreamWithContext(t.Context(), remotecommand.StreamOptions{
				Stdin: &typist{screen: &out, after: []string{""}, lines: []string{"go\n"}}, Stdout: &out, Tty: true, TerminalSizeQueue: queue,
			})
			if s := c.WaitExit(t); err != nil || s.ExitCode != 7 || !strings.Contains(out.text(), "go") {
				t.Errorf("out %q, exit code %d, %v", out.text(), s.ExitCode, err)
			}
		})
	})
}

// TestDaemonExec runs commands through the daemon as kubectl exec does.
func TestDaemonExec(t *testing.T) {
	n := daemon(t)
	eachProtocol(t, func(t *testing.T, connect func(string) remotecommand.Executor) {
		c := n.RunPod(t).Run(t, "sleep 1000")
		for _, tty := range []bool{false, true} {
			ctx, cancel := node.Context()
			r, err := n.Runtime.Exec(ctx, &cri.ExecRequest{
				ContainerId: c.ID, Cmd: []string{"sh", "-c", "read a; echo out $a; echo err >&2; exit 3"}, Stdin: true, Stdout: true, Stderr: !tty, Tty: tty,
			})
			cancel()
			if err != nil {
				t.Fatal(err)
			}
			var out, errs bytes.Buffer
			o := remotecommand.StreamOptions{Stdin: strings.NewReader("word\n"), Stdout: &out, Tty: tty}
			if !tty {
				o.Stderr = &errs
			}
			err = connect(r.Url).StreamWithContext(t.Context(), o)
			var exit exec.CodeExitError
			if !errors.As(err, &exit) || exit.Code != 3 || !strings.Contains(out.String(), "out word") || !tty && errs.String() != "err\n" {
				t.Errorf("tty %v: out %q, err %q, %v", tty, out.String(), errs.String(), err)
			}
		}
	})
}
