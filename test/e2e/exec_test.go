package e2e

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/test/node"
)

func TestExecSync(t *testing.T) {
	n := start(t)
	p := n.RunPod(t)
	c := p.Run(t, "sleep 1000", func(c *cri.ContainerConfig) {
		c.WorkingDir, c.Envs = "/tmp", []*cri.KeyValue{{Key: "A", Value: []byte("b")}}
	})
	for name, c1 := range map[string]struct {
		command     []string
		out, errors string
		code        int
	}{
		"streams":        {[]string{"/bin/sh", "-c", "echo out; echo err >&2; exit 3"}, "out\n", "err\n", 3},
		"found in PATH":  {[]string{"true"}, "", "", 0},
		"like the first": {[]string{"/bin/sh", "-c", "pwd; echo $A $FROM_IMAGE"}, "/tmp\nb yes\n", "", 0},
		"no input":       {[]string{"cat"}, "", "", 0},
		"killed":         {[]string{"/bin/sh", "-c", "kill -9 $$"}, "", "", 137},
		"big":            {[]string{"/bin/sh", "-c", "head -c 1000000 /dev/zero | tr '\\0' x"}, strings.Repeat("x", 1000000), "", 0},
	} {
		t.Run(name, func(t *testing.T) {
			out, errs, code := c.Exec(t, c1.command...)
			if out != c1.out || errs != c1.errors || code != c1.code {
				t.Errorf("out %.60q (%d bytes), err %q, code %d", out, len(out), errs, code)
			}
		})
	}
	t.Run("left behind", func(t *testing.T) {
		skipOnPeer(t, "it waits for whoever holds the output")
		begin := time.Now()
		out, _, code := c.Exec(t, "/bin/sh", "-c", "sleep 1000 & echo out")
		if out != "out\n" || code != 0 || time.Since(begin) > 5*time.Second {
			t.Errorf("out %q, code %d after %v", out, code, time.Since(begin))
		}
		c.Shell(t, "kill $(pidof sleep | tr ' ' '\\n' | grep -v '^1$')")
	})
	t.Run("limit", func(t *testing.T) {
		skipOnPeer(t, "it waits for whoever holds the output")
		ctx, cancel := node.Context()
		defer cancel()
		begin := time.Now()
		_, err := n.Runtime.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: c.ID, Cmd: []string{"/bin/sh", "-c", "sleep 777 & sleep 777"}, Timeout: 1})
		wantCode(t, err, codes.DeadlineExceeded)
		if took := time.Since(begin); took > 5*time.Second {
			t.Errorf("took %v", took)
		}
		if left := c.Shell(t, "ps | grep -c '[s]leep 777' || true"); left != "0\n" {
			t.Errorf("%q processes outlive the limit", left)
		}
	})
	t.Run("cannot be executed", func(t *testing.T) {
		skipOnPeer(t, "it fails the call")
		for command, want := range map[string]int{"/no/such": 127, "/etc/passwd": 126} {
			if _, _, code := c.Exec(t, command); code != want {
				t.Errorf("%s: code %d, want %d", command, code, want)
			}
		}
	})
	t.Run("more than a reply can carry", func(t *testing.T) {
		skipOnPeer(t, "its reply breaks the limit of messages")
		const flood = "head -c 40000000 /dev/zero | tr '\\0' x; head -c 40000000 /dev/zero | tr '\\0' y >&2; echo done >/tmp/flooded; exit 5"
		out, errs, code := c.Exec(t, "/bin/sh", "-c", flood)
		if code != 5 || len(out)+len(errs) > 16<<20 || len(out) < 15<<20 || strings.Trim(out, "x") != "" {
			t.Errorf("%d and %d bytes, code %d", len(out), len(errs), code)
		}
		if got := c.Shell(t, "cat /tmp/flooded"); got != "done\n" {
			t.Errorf("the command did not go on: %q", got)
		}
		// What was kept is given back: the next one gets its output.
		if out, _, _ := c.Exec(t, "echo", "next"); out != "next\n" {
			t.Errorf("next command: %q", out)
		}
	})
	t.Run("wrong state", func(t *testing.T) {
		skipOnPeer(t, "it gives another code")
		ctx, cancel := node.Context()
		defer cancel()
		for what, id := range map[string]string{"created": p.Create(t, "true").ID, "ended": ended(t, p)} {
			_, err := n.Runtime.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}})
			if err == nil {
				t.Errorf("%s container: no error", what)
			}
			wantCode(t, err, codes.FailedPrecondition)
		}
		_, err := n.Runtime.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: c.ID})
		wantCode(t, err, codes.InvalidArgument)
	})
}

func ended(t *testing.T, p *node.Pod) string {
	t.Helper()
	c := p.Run(t, "true")
	c.WaitExit(t)
	return c.ID
}
