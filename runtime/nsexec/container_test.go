package nsexec

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	rspec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"noded.dev/noded/internal/cgroup"
)

// TestMain protects this program as the shim does its own.
func TestMain(m *testing.M) {
	if os.Getenv("NSEXEC_SLEEP") != "" { // executed inside a container
		time.Sleep(time.Minute)
		return
	}
	if os.Geteuid() == 0 {
		if err := Protect(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// container is a real one, run by runc from a folder with busybox.
type container struct {
	t      testing.TB
	id     string
	dir    string
	spec   rspec.Spec
	cgroup string
	host   *cgroup.Host
	pid    int
	pidfd  int
}

func runcPath(t testing.TB) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	if p := os.Getenv("NODED_TEST_RUNC"); p != "" {
		return p
	}
	p, err := exec.LookPath("runc")
	if err != nil {
		t.Skip("needs runc: set NODED_TEST_RUNC")
	}
	return p
}

// start runs "sleep" in a new container, changed by change.
func start(t testing.TB, change func(*rspec.Spec)) *container {
	t.Helper()
	runc := runcPath(t)
	c := &container{t: t, dir: t.TempDir()}
	c.id = fmt.Sprintf("nsx-%d-%d", os.Getpid(), time.Now().UnixNano())
	c.makeRoot()
	cmd := exec.Command(runc, "spec")
	cmd.Dir = c.dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("runc spec: %v: %s", err, out)
	}
	b, err := os.ReadFile(filepath.Join(c.dir, "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &c.spec); err != nil {
		t.Fatal(err)
	}
	score := 100
	c.spec.Process.Terminal = false
	c.spec.Process.Args = []string{"sleep", "100000"}
	c.spec.Process.NoNewPrivileges = false
	c.spec.Process.OOMScoreAdj = &score
	c.spec.Root.Readonly = false
	c.spec.Linux.CgroupsPath = "/" + c.id + "/c"
	if change != nil {
		change(&c.spec)
	}
	if path, ok := userNamespace(c.spec.Linux); ok && strings.HasPrefix(path, fmt.Sprintf("/proc/%d/", os.Getpid())) {
		c.letIn()
	}
	if b, err = json.Marshal(c.spec); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(c.dir, "config.json"), b, 0o600); err != nil {
		t.Fatal(err)
	}
	if c.host, err = cgroup.Detect(""); err != nil {
		t.Skip(err)
	}
	c.cgroup = c.host.Dir(c.spec.Linux.CgroupsPath)
	t.Cleanup(c.remove)
	c.run(runc)
	return c
}

func (c *container) makeRoot() {
	bin := filepath.Join(c.dir, "rootfs", "bin")
	for _, d := range []string{bin, filepath.Join(c.dir, "rootfs", "etc"), filepath.Join(c.dir, "rootfs", "tmp")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			c.t.Fatal(err)
		}
	}
	b, err := os.ReadFile("/bin/busybox")
	if err != nil {
		c.t.Skip("needs busybox-static")
	}
	if err := os.WriteFile(filepath.Join(bin, "busybox"), b, 0o755); err != nil {
		c.t.Fatal(err)
	}
	for _, name := range []string{"sh", "cat", "ls", "sleep", "id", "env", "true", "pwd", "readlink", "tty", "stty", "stat", "touch", "echo", "head", "chmod", "grep"} {
		if err := os.Symlink("busybox", filepath.Join(bin, name)); err != nil {
			c.t.Fatal(err)
		}
	}
	passwd := "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n"
	if err := os.WriteFile(filepath.Join(c.dir, "rootfs/etc/passwd"), []byte(passwd), 0o644); err != nil {
		c.t.Fatal(err)
	}
}

func (c *container) run(runc string) {
	var out bytes.Buffer
	// Files, not pipes: the container would hold those open.
	log, err := os.Create(filepath.Join(c.dir, "out"))
	if err != nil {
		c.t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(runc, "--root", c.dir+"/state", "run", "-d", "--pid-file", c.dir+"/pid", "-b", c.dir, c.id)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Run(); err != nil {
		b, _ := os.ReadFile(log.Name())
		c.t.Fatalf("runc run: %v: %s%s", err, out.String(), b)
	}
	b, err := os.ReadFile(c.dir + "/pid")
	if err != nil {
		c.t.Fatal(err)
	}
	fmt.Sscan(string(b), &c.pid)
	if c.pidfd, err = unix.PidfdOpen(c.pid, 0); err != nil {
		c.t.Fatal(err)
	}
}

func (c *container) remove() {
	cmd := exec.Command(runcPath(c.t), "--root", c.dir+"/state", "delete", "-f", c.id)
	if out, err := cmd.CombinedOutput(); err != nil {
		c.t.Logf("runc delete: %v: %s", err, out)
	}
	if c.pidfd > 0 {
		unix.Close(c.pidfd)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := errors.Join(c.host.Kill(ctx, c.id), c.host.Remove(ctx, c.id)); err != nil {
		c.t.Error("clean up:", err)
	}
}

// process is a copy of the container's own process section to be changed.
func (c *container) process(args ...string) *rspec.Process {
	p := *c.spec.Process
	p.Args = args
	return &p
}

func (c *container) request(p *rspec.Process) Request {
	return Request{
		ContainerID: c.id, InitPid: c.pid, InitPidfd: c.pidfd, Process: p, Linux: c.spec.Linux,
		Cgroup: c.cgroup, Cgroups: c.host,
	}
}

// result is what a process printed and how it ended.
type result struct {
	out  string
	code int
}

// here runs a process by nsexec.
func (c *container) here(p *rspec.Process) (result, error) {
	c.t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		c.t.Fatal(err)
	}
	defer r.Close()
	req := c.request(p)
	req.Stdout, req.Stderr = w, w
	proc, err := Start(req)
	w.Close()
	if err != nil {
		return result{}, err
	}
	defer proc.Pidfd.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		c.t.Fatal(err)
	}
	return result{string(b), wait(c.t, proc.Pid)}, nil
}

func wait(t testing.TB, pid int) int {
	t.Helper()
	var status unix.WaitStatus
	for {
		_, err := unix.Wait4(pid, &status, 0, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			t.Fatal("wait:", err)
		}
		if status.Signaled() {
			return 128 + int(status.Signal())
		}
		return status.ExitStatus()
	}
}

// there runs the same process by runc exec.
func (c *container) there(p *rspec.Process) result {
	c.t.Helper()
	file := filepath.Join(c.dir, "process.json")
	b, err := json.Marshal(p)
	if err != nil {
		c.t.Fatal(err)
	}
	if err := os.WriteFile(file, b, 0o600); err != nil {
		c.t.Fatal(err)
	}
	cmd := exec.Command(runcPath(c.t), "--root", c.dir+"/state", "exec", "--process", file, c.id)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.Run()
	return result{out.String(), cmd.ProcessState.ExitCode()}
}

func (c *container) mustHere(p *rspec.Process) string {
	c.t.Helper()
	r, err := c.here(p)
	if err != nil || r.code != 0 {
		c.t.Fatalf("exec %v: code %d, %v: %s", p.Args, r.code, err, r.out)
	}
	return r.out
}

func lines(s string) []string { return strings.Split(strings.TrimSpace(s), "\n") }
