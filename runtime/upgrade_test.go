package runtime

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/sirupsen/logrus"
	logtest "github.com/sirupsen/logrus/hooks/test"
	"golang.org/x/sys/unix"
)

// otherBuild is this program with another build id.
func (n *node) otherBuild() string {
	n.Helper()
	id, err := buildID("/proc/self/exe")
	if err != nil {
		n.Fatal(err)
	}
	data, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		n.Fatal(err)
	}
	path := filepath.Join(n.state, "noded-old")
	other := strings.ToUpper(id[:8]) + strings.ToLower(id[8:])
	if err := os.WriteFile(path, bytes.ReplaceAll(data, []byte(id), []byte(other)), 0o755); err != nil {
		n.Fatal(err)
	}
	if got, err := buildID(path); err != nil || got != other || other == id {
		n.Fatalf("build id %q, %v, want %q", got, err, other)
	}
	return path
}

func (n *node) build() string {
	n.Helper()
	rep, err := n.call(n.ctx, request{Op: "hello"})
	if err != nil {
		n.Fatal(err)
	}
	return rep.Build
}

// reopen is the daemon's end and a start with another shim command and log.
func (n *node) reopen(binary string) *logtest.Hook {
	n.Helper()
	n.Close()
	o := testOptions(n.state)
	if binary != "" {
		o.ShimCommand[0] = binary
	}
	log, hook := logtest.NewNullLogger()
	o.Log = logrus.NewEntry(log)
	r, err := Open(n.ctx, o)
	if err != nil {
		n.Fatal(err)
	}
	n.Runtime = r
	return hook
}

// An upgraded daemon gets an upgraded shim, and the container does not notice.
func TestBuildSkew(t *testing.T) {
	n := newNode(t)
	old := n.otherBuild()
	ours := n.build()
	n.reopen(old)
	if n.build() == ours {
		t.Fatal("the shim was not replaced by the other build")
	}
	pid := n.shimPid()
	const lines = 60000
	req := n.counter(lines)
	p := n.run(req)
	rounds := 0
	for ; alive(p) && len(n.unread()) == 0; rounds++ {
		hook := n.reopen([]string{"", old}[rounds%2])
		if now := n.build(); (now == ours) != (rounds%2 == 0) || n.shimPid() != pid {
			t.Errorf("round %d: build %q of process %d", rounds, now, n.shimPid())
		}
		if e := hook.LastEntry(); e == nil || e.Level != logrus.InfoLevel {
			t.Errorf("round %d: log %v", rounds, e)
		}
		n.reopen([]string{"", old}[rounds%2]) // the same: nothing to do
	}
	if rounds < 2 {
		t.Errorf("only %d rounds", rounds)
	}
	if e := n.exit(req.ID); e.Code != 42 || e.Lost {
		t.Errorf("exit %+v, want 42", e)
	}
	checkNumbers(t, text(readLog(t, req.LogPath), "stdout"), lines)
	n.reopen("")
}

// A build that cannot be executed leaves the old shim at work.
func TestBuildSkewFails(t *testing.T) {
	n := newNode(t)
	ours, pid := n.build(), n.shimPid()
	req := n.counter(20000)
	n.run(req)
	bad := filepath.Join(n.state, "bad")
	if err := os.WriteFile(bad, []byte("no program"), 0o755); err != nil {
		t.Fatal(err)
	}
	hook := n.reopen(bad)
	if e := hook.LastEntry(); e == nil || e.Level != logrus.WarnLevel {
		t.Errorf("log %v", e)
	}
	if n.build() != ours || n.shimPid() != pid {
		t.Error("the shim is another one")
	}
	if code, err := n.Exec(n.ctx, ExecRequest{ID: req.ID, Args: []string{"true"}}); err != nil || code != 0 {
		t.Errorf("exec: %d, %v", code, err)
	}
	if e := n.exit(req.ID); e.Code != 42 || e.Lost {
		t.Errorf("exit %+v, want 42", e)
	}
	checkNumbers(t, text(readLog(t, req.LogPath), "stdout"), 20000)
	n.reopen("")
}

// The shim's program is out of reach of a container that executes its own exe.
func TestShimProtected(t *testing.T) {
	n := newNode(t)
	exe := "/proc/" + strconv.Itoa(n.shimPid()) + "/exe"
	var st unix.Statfs_t
	if err := unix.Statfs(exe, &st); err != nil || st.Flags&unix.ST_RDONLY == 0 {
		t.Errorf("mount of the shim's program: flags %#x, %v", st.Flags, err)
	}
}
