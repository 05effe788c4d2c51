package facts

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	rspec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"noded.dev/noded/internal/kind"
)

// TestThisNode: the facts of the machine that runs the test agree with what
// the kernel says another way.
func TestThisNode(t *testing.T) {
	n, err := Read(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	name, err := os.Hostname()
	if err != nil || n.Hostname != name || n.Kernel == "" {
		t.Errorf("%+v, hostname %q, %v", n, name, err)
	}
	for i, c := range []string{"CAP_SYS_RESOURCE", "CAP_CHOWN"} {
		number := []uintptr{unix.CAP_SYS_RESOURCE, unix.CAP_CHOWN}[i]
		has, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, number, 0, 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		if slices.Contains(n.Capabilities, c) && has == 0 {
			t.Errorf("%s is not in the bounding set", c)
		}
	}
	if !slices.ContainsFunc(n.Rlimits, func(l rspec.POSIXRlimit) bool { return l.Type == "RLIMIT_NOFILE" && l.Hard > 0 }) {
		t.Errorf("no RLIMIT_NOFILE in %v", n.Rlimits)
	}
}

// fakeHost writes a host's files.
func fakeHost(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	all := map[string]string{
		"proc/self/status":        "Name:\tnoded\nCapPrm:\t0000000000000003\nCapBnd:\t0000000000000021\nSeccomp:\t0\n",
		"proc/self/oom_score_adj": "-500\n",
		"proc/filesystems":        "nodev\tsysfs\n\text4\nnodev\toverlay\n",
	}
	for k, v := range files {
		all[k] = v
	}
	for name, text := range all {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func read(t *testing.T, files map[string]string) Node {
	t.Helper()
	n, err := Read(t.Context(), fakeHost(t, files))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestV1(t *testing.T) {
	n := read(t, map[string]string{
		"sys/fs/cgroup/memory/memory.memsw.limit_in_bytes": "0",
		"sys/fs/cgroup/hugetlb/cgroup.procs":               "",
		"sys/kernel/mm/hugepages/hugepages-2048kB/free":    "",
		"sys/kernel/mm/hugepages/hugepages-1048576kB/free": "",
		"sys/kernel/mm/hugepages/hugepages-64kB/free":      "",
	})
	if n.CgroupV2 || !n.Swap || !n.Overlay || !n.Seccomp || n.AppArmor || n.SELinux || n.OOMScoreFloor != -500 {
		t.Errorf("%+v", n)
	}
	if !slices.Equal(n.Huge, []string{"1GB", "2MB", "64KB"}) {
		t.Errorf("pages %v", n.Huge)
	}
	// Permitted and bounding: only what is in both can be given away.
	if !slices.Equal(n.Capabilities, []string{"CAP_CHOWN"}) {
		t.Errorf("capabilities %v", n.Capabilities)
	}
}

func TestV2(t *testing.T) {
	n := read(t, map[string]string{
		"proc/self/status":                           "CapPrm:\t000001ffffffffff\nCapBnd:\t000001ffffffffff\n",
		"proc/self/cgroup":                           "0::/system.slice/noded.service\n",
		"sys/fs/cgroup/cgroup.controllers":           "cpu memory pids hugetlb\n",
		"sys/fs/cgroup/system.slice/memory.swap.max": "max\n",
		"sys/kernel/mm/hugepages/hugepages-2048kB/x": "",
		"sys/module/apparmor/parameters/enabled":     "Y\n",
		"sys/fs/selinux/enforce":                     "1",
	})
	if !n.CgroupV2 || !n.Swap || n.Seccomp || !n.AppArmor || !n.SELinux || n.OOMScoreFloor != -1000 || len(n.Huge) != 1 {
		t.Errorf("%+v", n)
	}
}

// TestBare: what is missing is a fact.
func TestBare(t *testing.T) {
	n := read(t, map[string]string{"proc/filesystems": "\text4\n"})
	if n.Swap || n.Overlay || n.Huge != nil || n.CgroupV2 {
		t.Errorf("%+v", n)
	}
	if _, err := Read(t.Context(), t.TempDir()); err == nil {
		t.Error("no error without /proc")
	}
	done, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Read(done, ""); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
}

// TestSeccompProfile: V52. Only a regular file within the limit is read.
func TestSeccompProfile(t *testing.T) {
	dir := t.TempDir()
	good := filepath.Join(dir, "good")
	if err := os.WriteFile(good, []byte("{}"), 0o644); err != nil {
		t.Fatal(err)
	}
	if data, err := SeccompProfile(good, 2); err != nil || string(data) != "{}" {
		t.Errorf("%q, %v", data, err)
	}
	fifo, large := filepath.Join(dir, "fifo"), filepath.Join(dir, "large")
	if err := errors.Join(unix.Mkfifo(fifo, 0o644), os.WriteFile(large, []byte(strings.Repeat("x", 11)), 0o644)); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]kind.Kind{
		fifo: kind.Invalid, large: kind.Invalid, dir: kind.Invalid, "/dev/zero": kind.Invalid,
		filepath.Join(dir, "none"): kind.NotFound,
	} {
		if _, err := SeccompProfile(path, 10); !kind.Is(err, want) || errors.Is(err, fs.ErrClosed) {
			t.Errorf("%s: %v, want kind %v", path, err, want)
		}
	}
}

func TestCount(t *testing.T) {
	for list, want := range map[string]int{"": 0, "0": 1, "0-1": 2, "0-3,8": 9, "0,2-5": 6, "x": 0} {
		if got := count(list); got != want {
			t.Errorf("count(%q) = %d, want %d", list, got, want)
		}
	}
}
