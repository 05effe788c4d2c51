package runtime

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	rspec "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
)

// The test binary is the shim, too, as the product's binary is.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "shim":
			if err := RunShim(context.Background(), os.Args[2:]); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			os.Exit(0)
		case "daemon":
			daemonMain(os.Args[2])
			os.Exit(0)
		}
	}
	os.Exit(m.Run())
}

// daemonMain is the daemon's side as a process of its own, to be killed.
func daemonMain(state string) {
	r, err := Open(context.Background(), testOptions(state))
	if err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
	fmt.Println("ready")
	for e := range r.Exits() {
		fmt.Println("exit", e.ID, e.Code)
	}
}

func testOptions(state string) Options {
	log := logrus.New()
	if os.Getenv("NODED_TEST_VERBOSE") == "" {
		log.SetLevel(logrus.PanicLevel)
	}
	return Options{
		StateDir: state, ShimCommand: []string{"/proc/self/exe", "shim", "--state", state},
		Handlers: []Handler{testHandler(state)}, Default: "runc", Log: logrus.NewEntry(log),
	}
}

func testHandler(state string) Handler {
	path := os.Getenv("NODED_TEST_RUNC")
	if path == "" {
		path, _ = exec.LookPath("runc")
	}
	return Handler{Name: "runc", Path: path, Root: filepath.Join(state, "runc")}
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

// node is a Runtime with its own state and shim.
type node struct {
	testing.TB
	*Runtime
	state string
	ctx   context.Context
	n     int
}

func newNode(t testing.TB) *node {
	needRoot(t)
	// Short, for the length of socket paths; on a tmpfs, as in the product.
	state, err := os.MkdirTemp("/dev/shm", "nrt")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	n := &node{TB: t, state: state, ctx: ctx}
	n.open()
	t.Cleanup(func() {
		defer cancel()
		n.cleanUp()
	})
	return n
}

func (n *node) open() {
	n.Helper()
	r, err := Open(n.ctx, testOptions(n.state))
	if err != nil {
		n.Fatal(err)
	}
	n.Runtime = r
}

func (n *node) cleanUp() {
	if n.Failed() {
		n.Log("shim log:", tail(stateDir(n.state).shimLog()))
	}
	states, err := n.Containers(n.ctx)
	if err != nil {
		n.Error("list:", err)
	}
	for _, s := range states {
		if err := n.Delete(n.ctx, CreateRequest{ID: s.ID, Runtime: testHandler(n.state)}); err != nil {
			n.Error("delete:", err)
		}
	}
	pid, err := n.ShimPid(n.ctx)
	if err != nil {
		n.Error("shim:", err)
	}
	left, _ := os.ReadDir(filepath.Join(n.state, "shim"))
	for _, d := range left {
		if d.IsDir() {
			n.Error("left in the state folder:", d.Name())
		}
	}
	n.Close()
	if pid > 0 {
		unix.Kill(pid, unix.SIGKILL)
	}
	os.RemoveAll(n.state)
}

func (n *node) shimPid() int {
	n.Helper()
	pid, err := n.ShimPid(n.ctx)
	if err != nil {
		n.Fatal(err)
	}
	return pid
}

// container prepares a bundle that runs args with busybox.
func (n *node) container(change func(*rspec.Spec, *CreateRequest), args ...string) CreateRequest {
	n.Helper()
	n.n++
	id := fmt.Sprintf("c%d-%d", n.n, os.Getpid())
	bundle := filepath.Join(n.state, "bundles", id)
	spec := busyboxSpec(n, bundle, args)
	spec.Linux.CgroupsPath = "/noded-rt-" + filepath.Base(n.state) + "-" + id
	req := CreateRequest{
		ID: id, Runtime: testHandler(n.state), Bundle: bundle, CgroupsDir: spec.Linux.CgroupsPath,
		LogPath: filepath.Join(n.state, "logs", id+".log"),
	}
	if change != nil {
		change(spec, &req)
	}
	data, err := json.Marshal(spec)
	if err != nil {
		n.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(bundle, "config.json"), data, 0o600); err != nil {
		n.Fatal(err)
	}
	return req
}

func busyboxSpec(t testing.TB, bundle string, args []string) *rspec.Spec {
	t.Helper()
	rootfs := filepath.Join(bundle, "rootfs")
	for _, d := range []string{"bin", "proc", "dev", "tmp", "sys"} {
		if err := os.MkdirAll(filepath.Join(rootfs, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(filepath.Dir(filepath.Dir(bundle)), "logs"), 0o755); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Skip("needs /bin/busybox")
	}
	if err := os.WriteFile(filepath.Join(rootfs, "bin/busybox"), data, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, a := range []string{"sh", "cat", "echo", "sleep", "seq", "yes", "head", "true", "stty", "setsid", "kill", "ps", "id", "dd", "test"} {
		os.Symlink("busybox", filepath.Join(rootfs, "bin", a))
	}
	caps := []string{"CAP_KILL"}
	return &rspec.Spec{
		Version: "1.0.2", Hostname: "test", Root: &rspec.Root{Path: rootfs},
		Process: &rspec.Process{
			Args: args, Cwd: "/", Env: []string{"PATH=/bin"}, NoNewPrivileges: true,
			Capabilities: &rspec.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
		},
		Mounts: []rspec.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "mode=755", "size=64k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"newinstance", "ptmxmode=0666", "mode=0620"}},
		},
		Linux: &rspec.Linux{Namespaces: []rspec.LinuxNamespace{
			{Type: rspec.PIDNamespace}, {Type: rspec.MountNamespace}, {Type: rspec.IPCNamespace}, {Type: rspec.UTSNamespace},
		}},
	}
}

// run creates and starts.
func (n *node) run(req CreateRequest) Process {
	n.Helper()
	p, err := n.Create(n.ctx, req)
	if err != nil {
		n.Fatal("create:", err)
	}
	if err := n.Start(n.ctx, req.ID); err != nil {
		n.Fatal("start:", err)
	}
	return p
}

func (n *node) shell(script string) CreateRequest {
	n.Helper()
	return n.container(nil, "sh", "-c", script)
}

// exit waits for a container's exit.
func (n *node) exit(id string) Exit {
	n.Helper()
	for {
		select {
		case e, ok := <-n.Exits():
			if !ok {
				n.Fatal("exits closed")
			}
			if e.ID == id {
				return e
			}
		case <-time.After(30 * time.Second):
			n.Fatalf("no exit of %s", id)
		}
	}
}

// record is one line of a CRI log.
type logRecord struct{ stamp, stream, tag, text string }

func readLog(t testing.TB, paths ...string) []logRecord {
	t.Helper()
	var list []logRecord
	for _, p := range paths {
		data, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(data)) {
			f := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 4)
			if len(f) != 4 || !strings.HasSuffix(line, "\n") || f[2] != "P" && f[2] != "F" {
				t.Fatalf("malformed record %q in %s", line, p)
			}
			if _, err := time.Parse(time.RFC3339Nano, f[0]); err != nil {
				at := strings.Index(string(data), line)
				t.Fatalf("malformed record at %d of %d: ...%q %q...", at, len(data), data[max(0, at-200):at], data[at:min(len(data), at+400)])
			}
			list = append(list, logRecord{f[0], f[1], f[2], f[3]})
		}
	}
	return list
}

// text joins a stream's records as a log reader does.
func text(records []logRecord, stream string) string {
	var b bytes.Buffer
	for _, r := range records {
		if r.stream == stream {
			b.WriteString(r.text)
			if r.tag == "F" {
				b.WriteByte('\n')
			}
		}
	}
	return b.String()
}

func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for until := time.Now().Add(20 * time.Second); !cond(); {
		if time.Now().After(until) {
			t.Fatalf("still not: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}
