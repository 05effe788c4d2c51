// Package systemd tests noded as the service that packaging/noded.service
// makes of it, where systemd is process 1.
package systemd

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"noded.dev/noded/internal/cgroup"
	"noded.dev/noded/test/node"
	"noded.dev/noded/test/oracle"
)

const image = "registry.test/busybox:1"

// service is noded as systemd runs it.
type service struct {
	t      *testing.T
	binary string
	socket string
}

// TestService follows one container through what systemd does to the daemon.
func TestService(t *testing.T) {
	s := install(t)
	id := s.noded("run", "-d", "--name", "web", "--memory", "64MiB", image, "sleep", "100000")
	scope := "noded-" + id + ".scope"
	props := properties(t, scope, "Slice", "MemoryMax", "ControlGroup", "ActiveState")
	if props["ActiveState"] != "active" || props["Slice"] != cgroup.DefaultSlice || props["MemoryMax"] != strconv.Itoa(64<<20) {
		t.Errorf("the container's scope: %v", props)
	}
	pid := only(t, props["ControlGroup"])
	unchanged := func(after string) {
		t.Helper()
		if got := only(t, props["ControlGroup"]); got != pid {
			t.Errorf("after %s the container is process %s, not %s", after, got, pid)
		}
		if out := s.noded("exec", "web", "cat", "/proc/1/cmdline"); !strings.Contains(out, "sleep") {
			t.Errorf("after %s the container runs %q", after, out)
		}
	}
	unchanged("its start")

	main := mainPID(t)
	systemctl(t, "restart", "noded")
	if now := mainPID(t); now == main {
		t.Error("restart left the daemon as it was")
	}
	unchanged("a restart")

	main = mainPID(t)
	systemctl(t, "kill", "--kill-who=main", "--signal=KILL", "noded")
	node.Eventually(t, "systemd starts the daemon again", time.Minute, func() bool {
		return mainPID(t) != main && properties(t, "noded.service", "ActiveState")["ActiveState"] == "active"
	})
	unchanged("a crash")

	systemctl(t, "reload", "noded")
	unchanged("a reload")

	systemctl(t, "stop", "noded")
	if got := only(t, props["ControlGroup"]); got != pid {
		t.Errorf("stopped: the container is process %s, not %s", got, pid)
	}
	systemctl(t, "start", "noded")
	unchanged("a stop and a start")

	s.noded("rm", "-f", "web")
	if got := properties(t, scope, "ActiveState")["ActiveState"]; got != "inactive" {
		t.Errorf("the removed container's scope is %s", got)
	}
}

// install starts the service from the packaged unit, with folders of the test.
func install(t *testing.T) *service {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	host, err := cgroup.Detect("")
	if err != nil || !host.Systemd() {
		t.Skip("systemd is not process 1 here")
	}
	if properties(t, "noded.service", "LoadState")["LoadState"] != "not-found" {
		t.Skip("this machine has a noded.service, which stays as it is")
	}
	dir := t.TempDir()
	oracle.Check(t, oracle.Scope{Paths: []string{dir}, Cgroups: []string{"/system.slice/noded"}})
	binary, err := node.Build(dir)
	must(t, err)
	s := &service{t: t, binary: binary, socket: filepath.Join(dir, "state", "noded.sock")}
	config := s.configure(dir)
	unit, err := os.ReadFile("../../packaging/noded.service")
	must(t, err)
	const start = "ExecStart=/usr/bin/noded serve"
	if !strings.Contains(string(unit), start) {
		t.Fatalf("the unit has no %q", start)
	}
	path := "/run/systemd/system/noded.service"
	must(t, os.WriteFile(path, []byte(strings.Replace(string(unit), start, "ExecStart="+binary+" serve --config "+config, 1)), 0o644))
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := exec.Command("journalctl", "--no-pager", "-u", "noded", "-n", "100").CombinedOutput()
			t.Logf("%s", out)
		}
		exec.Command("systemctl", "stop", "noded").Run()
		exec.Command("systemctl", "kill", "noded").Run() // the shim, which a stop leaves
		if err := unix.Unmount(filepath.Join(dir, "state", "ns"), 0); err != nil {
			t.Errorf("the mount that lasts as long as the node: %v", err)
		}
		os.Remove(path)
		systemctl(t, "daemon-reload")
	})
	systemctl(t, "daemon-reload")
	systemctl(t, "start", "noded")
	return s
}

func (s *service) configure(dir string) string {
	registry, err := node.StartRegistry(nil)
	must(s.t, err)
	s.t.Cleanup(func() { registry.Close() })
	files, err := node.Busybox()
	must(s.t, err)
	_, err = registry.Push("busybox:1", v1.ImageConfig{}, files)
	must(s.t, err)
	mirrors := filepath.Join(dir, "certs.d")
	must(s.t, os.MkdirAll(filepath.Join(mirrors, "_default"), 0o700))
	must(s.t, os.WriteFile(filepath.Join(mirrors, "_default", "hosts.toml"), []byte(fmt.Sprintf("server = %q\n", "http://"+registry.Host)), 0o600))
	config := filepath.Join(dir, "config.toml")
	text := fmt.Sprintf("root = %q\nstate = %q\n[cri]\nlisten = %q\n[runtime.handlers.runc]\npath = %q\n[network]\nmode = \"builtin\"\n[network.builtin]\nbridge = \"nsystemd\"\n[images]\nregistry_dirs = [%q]\n",
		filepath.Join(dir, "root"), filepath.Join(dir, "state"), "unix://"+s.socket, os.Getenv("NODED_TEST_RUNC"), mirrors)
	must(s.t, os.WriteFile(config, []byte(text), 0o600))
	return config
}

// noded runs the command line and returns what it wrote.
func (s *service) noded(args ...string) string {
	s.t.Helper()
	cmd := exec.Command(s.binary, args...)
	cmd.Env = append(os.Environ(), "NODED_LISTEN=unix://"+s.socket, "NODED_LOG_DIR="+filepath.Join(filepath.Dir(s.socket), "logs"))
	var complaints strings.Builder
	cmd.Stderr = &complaints
	out, err := cmd.Output()
	if err != nil {
		s.t.Fatalf("noded %s: %v: %s", strings.Join(args, " "), err, complaints.String())
	}
	return strings.TrimSpace(string(out))
}

func systemctl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command("systemctl", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("systemctl %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// properties are some of a unit's.
func properties(t *testing.T, unit string, names ...string) map[string]string {
	t.Helper()
	found := map[string]string{}
	for line := range strings.Lines(systemctl(t, "show", "-p", strings.Join(names, ","), unit)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		found[name] = value
	}
	return found
}

func mainPID(t *testing.T) string {
	t.Helper()
	return properties(t, "noded.service", "MainPID")["MainPID"]
}

// only is the one process of a cgroup.
func only(t *testing.T, group string) string {
	t.Helper()
	root := "/sys/fs/cgroup"
	if !node.UnifiedCgroup() {
		root += "/systemd"
	}
	data, err := os.ReadFile(filepath.Join(root, group, "cgroup.procs"))
	must(t, err)
	pids := strings.Fields(string(data))
	if len(pids) != 1 {
		t.Fatalf("processes of %s: %v", group, pids)
	}
	return pids[0]
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
