package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/test/node"
)

// TestLog checks streams, long lines, order, and what has no line's end.
func TestLog(t *testing.T) {
	n := start(t)
	p := n.RunPod(t)
	c := p.Run(t, `echo one; echo two >&2; echo; head -c 40000 /dev/zero | tr '\0' x; echo; printf 'tab\t\001end'`)
	c.WaitExit(t)
	log := c.Log(t)
	if got, want := log.Text("stdout"), "one\n\n"+strings.Repeat("x", 40000)+"\ntab\t\x01end"; strings.TrimSuffix(got, "\n") != want {
		t.Errorf("stdout has %d bytes, want %d: …%q", len(got), len(want), got[max(0, len(got)-40):])
	}
	if got := log.Text("stderr"); got != "two\n" {
		t.Errorf("stderr %q", got)
	}
	for i, l := range log {
		if i > 0 && l.At.Before(log[i-1].At) {
			t.Errorf("line %d is older than the one before it", i)
		}
		if len(l.Text) > 32<<10 {
			t.Errorf("a line of the log has %d bytes", len(l.Text))
		}
	}
	info, err := os.Stat(c.LogPath())
	must(t, err)
	if info.Mode().Perm() != 0o640 && info.Mode().Perm() != 0o600 {
		t.Errorf("mode of the log %v", info.Mode())
	}
}

// TestReopen rotates the log of a container that writes all the time.
func TestReopen(t *testing.T) {
	n := start(t)
	p := n.RunPod(t)
	c := p.Run(t, "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); echo $i; done")
	var lines node.Lines
	for i := range 10 {
		old := c.LogPath() + "." + string(rune('a'+i))
		must(t, os.Rename(c.LogPath(), old))
		err := reopen(n, c.ID)
		if err != nil && c.Status(t).State == cri.ContainerState_CONTAINER_EXITED {
			lines = append(lines, node.ReadLog(t, old)...) // it ended before this round
			if _, err := os.Stat(c.LogPath()); err == nil {
				t.Error("a failed ReopenContainerLog made a file")
			}
			assertCounts(t, lines, 20000)
			return
		}
		must(t, err)
		lines = append(lines, node.ReadLog(t, old)...)
	}
	c.WaitExit(t)
	assertCounts(t, append(lines, c.Log(t)...), 20000)
}

// TestReopenEnded refuses to reopen what nobody writes to any more, and makes no file.
func TestReopenEnded(t *testing.T) {
	n := start(t)
	p := n.RunPod(t)
	c := p.Run(t, "echo done")
	c.WaitExit(t)
	must(t, os.Remove(c.LogPath()))
	err := reopen(n, c.ID)
	if noded() {
		wantCode(t, err, codes.FailedPrecondition)
	} else if err == nil {
		t.Error("no error")
	}
	if _, err := os.Lstat(c.LogPath()); err == nil {
		t.Error("a failed ReopenContainerLog made a file")
	}
}

// TestReopenStopping rotates the log of a container that takes its time to
// stop, and asks for its status meanwhile: neither waits for the stop.
func TestReopenStopping(t *testing.T) {
	n := start(t)
	p := n.RunPod(t)
	c := p.Run(t, "trap 'echo stopping' TERM; echo ready; while :; do sleep 0.05; done")
	node.Eventually(t, "container is ready", 10*time.Second, func() bool { return c.Log(t).Text() != "" })
	stopped := make(chan error, 1)
	go func() { stopped <- c.Stop(5 * time.Second) }()
	node.Eventually(t, "container is stopping", 10*time.Second, func() bool { return c.Log(t).Text() == "ready\nstopping\n" })
	old := c.LogPath() + ".old"
	must(t, os.Rename(c.LogPath(), old))
	begin := time.Now()
	must(t, reopen(n, c.ID))
	if s := c.Status(t); s.State != cri.ContainerState_CONTAINER_RUNNING {
		t.Errorf("stopping container is %v", s.State)
	}
	if took := time.Since(begin); took > 3*time.Second {
		t.Errorf("took %v", took)
	}
	if _, err := os.Stat(c.LogPath()); err != nil {
		t.Errorf("log is not made anew: %v", err)
	}
	must(t, <-stopped)
}

// TestReopenRefused cannot make the log anew: the old one goes on, and nothing
// is made elsewhere.
func TestReopenRefused(t *testing.T) {
	skipOnPeer(t, "it follows links")
	n := start(t)
	p := n.RunPod(t)
	c := p.Run(t, "i=0; while [ ! -e /tmp/end ]; do i=$((i+1)); echo $i; sleep 0.01; done")
	node.Eventually(t, "container logs", 10*time.Second, func() bool { return c.Log(t).Text() != "" })
	old, target := c.LogPath()+".old", filepath.Join(t.TempDir(), "target")
	must(t, os.Rename(c.LogPath(), old))
	must(t, os.Symlink(target, c.LogPath()))
	if err := reopen(n, c.ID); err == nil {
		t.Error("a link was followed")
	}
	if _, err := os.Lstat(target); err == nil {
		t.Error("a failed ReopenContainerLog made a file")
	}
	c.Shell(t, "touch /tmp/end")
	c.WaitExit(t)
	assertCounts(t, node.ReadLog(t, old), 0)
	must(t, os.Remove(c.LogPath()))
}

// TestNoLog runs a container that keeps no log.
func TestNoLog(t *testing.T) {
	n := start(t)
	p := n.RunPod(t)
	c := p.Run(t, "echo nobody reads this", func(c *cri.ContainerConfig) { c.LogPath = "" })
	if s := c.WaitExit(t); s.ExitCode != 0 || s.LogPath != "" {
		t.Errorf("code %d, log path %q", s.ExitCode, s.LogPath)
	}
	if files, _ := filepath.Glob(p.Config.LogDirectory + "/*"); len(files) != 0 {
		t.Errorf("files %v", files)
	}
}

func reopen(n *node.Node, id string) error {
	ctx, cancel := node.Context()
	defer cancel()
	_, err := n.Runtime.ReopenContainerLog(ctx, &cri.ReopenContainerLogRequest{ContainerId: id})
	return err
}

// assertCounts wants the lines 1, 2, … up to last (0: whatever the last is).
func assertCounts(t *testing.T, lines node.Lines, last int) {
	t.Helper()
	want := 0
	for i, l := range lines {
		want++
		if l.Text != itoa(want) || l.Partial {
			t.Errorf("line %d of the log is %q (partial %v), want %d", i+1, l.Text, l.Partial, want)
			return
		}
	}
	if last != 0 && want != last {
		t.Errorf("the log has %d lines, want %d", want, last)
	}
}
