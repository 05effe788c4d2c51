package runtime

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	rspec "github.com/opencontainers/runtime-spec/specs-go"

	"noded.dev/noded/internal/kind"
)

func TestLifecycle(t *testing.T) {
	n := newNode(t)
	req := n.shell("echo out; echo err >&2; printf partial; exit 7")
	p, err := n.Create(n.ctx, req)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := n.Create(n.ctx, req); err != nil || again != p {
		t.Errorf("repeated create: %v, %v; want %v", again, err, p)
	}
	if err := n.Start(n.ctx, req.ID); err != nil {
		t.Fatal(err)
	}
	if e := n.exit(req.ID); e.Code != 7 || e.Lost {
		t.Errorf("exit %+v, want code 7", e)
	}
	log := readLog(t, req.LogPath)
	if got := text(log, "stdout"); got != "out\npartial" {
		t.Errorf("stdout %q", got)
	}
	if got := text(log, "stderr"); got != "err\n" {
		t.Errorf("stderr %q", got)
	}
	if st, _ := os.Stat(req.LogPath); st.Mode().Perm() != 0o640 {
		t.Errorf("log mode %v", st.Mode())
	}
	if err := n.Signal(n.ctx, req.ID, 15); !kind.Is(err, kind.NotFound) {
		t.Errorf("signal after the end: %v", err)
	}
	for range 2 {
		if err := n.Delete(n.ctx, req); err != nil {
			t.Error("delete:", err)
		}
	}
}

func TestSignalCode(t *testing.T) {
	n := newNode(t)
	req := n.shell("sleep 100")
	n.run(req)
	if err := n.Signal(n.ctx, req.ID, 9); err != nil {
		t.Fatal(err)
	}
	if e := n.exit(req.ID); e.Code != 137 {
		t.Errorf("code %d, want 137", e.Code)
	}
}

func TestDeleteKills(t *testing.T) {
	n := newNode(t)
	req := n.shell("sleep 100")
	n.run(req)
	if err := n.Delete(n.ctx, req); err != nil {
		t.Fatal(err)
	}
	states, err := n.Containers(n.ctx)
	if err != nil || len(states) != 0 {
		t.Errorf("left: %v, %v", states, err)
	}
}

func TestStartErrors(t *testing.T) {
	n := newNode(t)
	for _, c := range []struct {
		name string
		args []string
		code int
	}{
		{"not found", []string{"nothere"}, 127},
		{"absent path", []string{"/bin/nothere"}, 127},
		{"not executable", []string{"/proc/version"}, 126},
	} {
		req := n.container(nil, c.args...)
		_, err := n.Create(n.ctx, req)
		if err == nil {
			err = n.Start(n.ctx, req.ID)
		}
		var start *StartError
		if !errors.As(err, &start) || start.Code != c.code || !kind.Is(err, kind.Aborted) {
			t.Errorf("%s: %v (%+v), want code %d", c.name, err, start, c.code)
		}
		if err := n.Delete(n.ctx, req); err != nil {
			t.Error(err)
		}
	}
	req := n.shell("true")
	req.Runtime.Path = "/nonexistent/runc"
	if _, err := n.Create(n.ctx, req); !kind.Is(err, kind.NotFound) {
		t.Errorf("missing runtime: %v", err)
	}
}

func TestExec(t *testing.T) {
	n := newNode(t)
	req := n.shell("sleep 1000")
	n.run(req)
	for _, c := range []struct {
		args             []string
		stdin, out, errs string
		code             int
	}{
		{[]string{"echo", "hi"}, "", "hi\n", "", 0},
		{[]string{"sh", "-c", "echo e >&2; exit 3"}, "", "", "e\n", 3},
		{[]string{"cat"}, "through", "through", "", 0},
		{[]string{"sh", "-c", "kill -9 $$"}, "", "", "", 137},
		{[]string{"head", "-c", "3000000", "/dev/zero"}, "", strings.Repeat("\x00", 3000000), "", 0},
	} {
		var out, errs bytes.Buffer
		io := IO{Stdout: &out, Stderr: &errs}
		if c.stdin != "" {
			io.Stdin = strings.NewReader(c.stdin)
		}
		code, err := n.Exec(n.ctx, ExecRequest{ID: req.ID, Args: c.args, IO: io})
		if err != nil || code != c.code || out.String() != c.out || errs.String() != c.errs {
			t.Errorf("%q: code %d, error %v, %d bytes %.60q, errors %q", c.args, code, err, out.Len(), out.String(), errs.String())
		}
	}
	var errs bytes.Buffer
	code, err := n.Exec(n.ctx, ExecRequest{ID: req.ID, Args: []string{"nothere"}, IO: IO{Stderr: &errs}})
	if err != nil || code != 127 || errs.Len() == 0 {
		t.Errorf("missing command: code %d, error %v, stderr %q", code, err, errs.String())
	}
	code, err = n.Exec(n.ctx, ExecRequest{ID: req.ID, Args: []string{"/proc/version"}, IO: IO{Stderr: &errs}})
	if err != nil || code != 126 {
		t.Errorf("not executable: code %d, error %v", code, err)
	}
	if _, err := n.Exec(n.ctx, ExecRequest{ID: "unknown", Args: []string{"true"}}); !kind.Is(err, kind.NotFound) {
		t.Errorf("unknown container: %v", err)
	}
}

func TestUpdate(t *testing.T) {
	n := newNode(t)
	req := n.shell("sleep 1000")
	n.run(req)
	limit := int64(64 << 20)
	if err := n.Update(n.ctx, req, &rspec.LinuxResources{Memory: &rspec.LinuxMemory{Limit: &limit}}); err != nil {
		t.Fatal(err)
	}
	bad := "4000"
	if err := n.Update(n.ctx, req, &rspec.LinuxResources{CPU: &rspec.LinuxCPU{Cpus: bad}}); err == nil {
		t.Error("a bad cpuset was taken")
	}
}

// evil is an OCI runtime that does what it is told instead.
func (n *node) evil(script string) CreateRequest {
	n.Helper()
	req := n.shell("true")
	req.Runtime.Path = filepath.Join(n.state, "evil")
	if err := os.WriteFile(req.Runtime.Path, []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		n.Fatal(err)
	}
	return req
}

func TestBadRuntimes(t *testing.T) {
	n := newNode(t)
	for _, c := range []struct {
		script, says string
		kind         kind.Kind
	}{
		{"echo reason >&2; exit 1", "reason", kind.Aborted},
		{"head -c 100000000 /dev/zero | tr '\\0' x >&2; exit 1", "xxx", kind.Aborted},
		{"exit 0", "no pid", kind.Aborted},
		{"kill -SEGV $$", "segmentation", kind.Aborted},
		{"while test $1 != --log; do shift; done; echo '{\"level\":\"error\",\"msg\":\"from the log\"}' > $2; exit 1", "from the log", kind.Aborted},
		{"sleep 79001 & sleep 79001", "", kind.Deadline},
		{"exit 1; \x00", "", kind.Aborted},
	} {
		req := n.evil(c.script)
		ctx, cancel := context.WithTimeout(n.ctx, 2*time.Second)
		began := time.Now()
		_, err := n.Create(ctx, req)
		cancel()
		if !kind.Is(err, c.kind) || !strings.Contains(err.Error(), c.says) || len(err.Error()) > 2*maxMessage {
			t.Errorf("%q: %.200v", c.script, err)
		}
		if took := time.Since(began); took > 2300*time.Millisecond {
			t.Errorf("%q took %v", c.script, took)
		}
		if err := n.Delete(n.ctx, req); err != nil {
			t.Error("delete:", err)
		}
	}
	eventually(t, "killed runtime", func() bool { return !running("sleep\x0079001") })
}

func TestFloors(t *testing.T) {
	for _, c := range []struct {
		name, version string
		low           bool
	}{
		{"runc", "1.1.5+ds1", true}, {"runc", "1.3.5", true}, {"runc", "1.3.6", false}, {"runc", "1.4.2", true}, {"runc", "1.4.3", false},
		{"runc", "1.5.0-rc.1", false}, {"runc", "1.5.2", false}, {"runc", "2.0.0", false}, {"crun", "1.8.1", true}, {"crun", "1.30.1", false},
		{"crun", "1.31", false}, {"kata", "0.1.0", false}, {"runc", "unknown", false},
	} {
		if got := belowFloor(c.name, c.version); (got != "") != c.low {
			t.Errorf("%s %s: %q", c.name, c.version, got)
		}
	}
}

func TestHandlers(t *testing.T) {
	n := newNode(t)
	info, err := n.Handler("")
	if err != nil || !info.Usable || info.Version == "" {
		t.Errorf("default handler: %+v, %v", info, err)
	}
	if _, err := n.Handler("other"); !kind.Is(err, kind.NotFound) {
		t.Errorf("unknown handler: %v", err)
	}
	list := probeAll(n.ctx, []Handler{{Name: "absent", Path: "/nonexistent"}, {Name: "hangs", Path: "/bin/false"}})
	for _, info := range list {
		if info.Usable || info.Problem == "" {
			t.Errorf("%+v", info)
		}
	}
}
