package namespace

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"noded.dev/noded/internal/kind"
)

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

// inside runs a command in the pod's namespaces and returns what it printed.
func inside(t *testing.T, dir string, args ...string) string {
	t.Helper()
	args = append([]string{"--net=" + Path(dir, Net), "--ipc=" + Path(dir, IPC), "--uts=" + Path(dir, UTS)}, args...)
	out, err := exec.Command("nsenter", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("nsenter %v: %v: %s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

func all(t *testing.T) Request {
	r := Request{Dir: filepath.Join(t.TempDir(), "pod"), Net: true, IPC: true, UTS: true, Hostname: "pod-a",
		Sysctls: map[string]string{
			"kernel.msgmax": "4242", "fs.mqueue.msg_max": "7", "net.ipv4.ip_unprivileged_port_start": "80",
			"net/ipv4/conf/lo/forwarding": "0",
		}}
	t.Cleanup(func() {
		if err := Remove(r.Dir); err != nil {
			t.Error(err)
		}
	})
	return r
}

func TestCreate(t *testing.T) {
	needRoot(t)
	r := all(t)
	before := hostState(t)
	if err := Create(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ command, want string }{
		{"hostname", "pod-a"},
		{"cat /proc/sys/kernel/msgmax", "4242"},
		{"cat /proc/sys/fs/mqueue/msg_max", "7"},
		{"cat /proc/sys/net/ipv4/ip_unprivileged_port_start", "80"},
	} {
		if got := inside(t, r.Dir, strings.Fields(c.command)...); got != c.want {
			t.Errorf("%s: %q, want %q", c.command, got, c.want)
		}
	}
	addrs := inside(t, r.Dir, "ip", "-br", "addr", "show", "lo")
	if !strings.Contains(addrs, "127.0.0.1/8") || !strings.Contains(addrs, "::1/128") {
		t.Errorf("loopback has %q", addrs)
	}
	if after := hostState(t); after != before {
		t.Errorf("the host changed: %q, was %q", after, before)
	}
	for path, want := range map[string]os.FileMode{r.Dir: 0o700} {
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != want {
			t.Errorf("%s: %v %v", path, st, err)
		}
	}
}

// hostState is what pods' settings must never change, and the namespaces of
// this process as others see them.
func hostState(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	for _, f := range []string{"kernel/msgmax", "kernel/hostname", "fs/mqueue/msg_max", "net/ipv4/ip_unprivileged_port_start"} {
		v, err := os.ReadFile("/proc/sys/" + f)
		if err != nil {
			t.Fatal(err)
		}
		b.Write(v)
	}
	for _, n := range []string{"net", "ipc", "uts"} {
		l, err := os.Readlink("/proc/self/ns/" + n)
		if err != nil {
			t.Fatal(err)
		}
		b.WriteString(l)
	}
	return b.String()
}

func TestCreateAgainKeeps(t *testing.T) {
	needRoot(t)
	r := all(t)
	if err := Create(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	first := inside(t, r.Dir, "sh", "-c", "stat -L -c %i /proc/self/ns/net /proc/self/ns/ipc")
	old, err := os.Open(Path(r.Dir, IPC)) // else the kernel may give its number to the next one
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	// A crash between the pins: ipc is there as a file only, uts not at all.
	for _, step := range []func() error{
		func() error { return unix.Unmount(Path(r.Dir, IPC), unix.MNT_DETACH) },
		func() error { return unpin(Path(r.Dir, UTS)) },
		func() error { return Create(t.Context(), r) },
		func() error { return Create(t.Context(), r) },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	second := inside(t, r.Dir, "sh", "-c", "stat -L -c %i /proc/self/ns/net /proc/self/ns/ipc")
	a, b := strings.Fields(first), strings.Fields(second)
	if a[0] != b[0] {
		t.Errorf("network namespace %s was replaced by %s", a[0], b[0])
	}
	if a[1] == b[1] {
		t.Errorf("ipc namespace %s came back from the dead", a[1])
	}
	if got := inside(t, r.Dir, "cat", "/proc/sys/kernel/msgmax"); got != "4242" {
		t.Errorf("the new ipc namespace has msgmax %s", got)
	}
	if got := inside(t, r.Dir, "hostname"); got != "pod-a" {
		t.Errorf("the new uts namespace has hostname %s", got)
	}
}

func TestRemove(t *testing.T) {
	needRoot(t)
	r := all(t)
	if err := Create(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	if err := unix.Unmount(Path(r.Dir, UTS), unix.MNT_DETACH); err != nil { // vanished mount
		t.Fatal(err)
	}
	if err := os.Remove(Path(r.Dir, UTS)); err != nil { // vanished file
		t.Fatal(err)
	}
	// Mounted twice, as a race of two processes could.
	if err := unix.Mount(Path(r.Dir, Net), Path(r.Dir, Net), "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	// Somebody else's mount namespace holds copies.
	other := exec.Command("unshare", "--mount", "--propagation", "private", "sleep", "60")
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { other.Process.Kill(); other.Wait() }()
	waitForMountNS(t, other.Process.Pid)
	for range 2 {
		if err := Remove(r.Dir); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Lstat(r.Dir); !os.IsNotExist(err) {
			t.Fatalf("folder is still there: %v", err)
		}
	}
	for _, file := range []string{"/proc/self/mountinfo", "/proc/" + strconv.Itoa(other.Process.Pid) + "/mountinfo"} {
		if info, err := os.ReadFile(file); err != nil || strings.Contains(string(info), r.Dir) {
			t.Errorf("%s still has a mount of %s (%v)", file, r.Dir, err)
		}
	}
}

// waitForMountNS polls, as the kernel has no event for another's unshare.
func waitForMountNS(t *testing.T, pid int) {
	t.Helper()
	mine, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		t.Fatal(err)
	}
	for range 500 {
		if l, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/ns/mnt"); err == nil && l != mine {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("the other process made no mount namespace")
}

func TestInvalid(t *testing.T) {
	for _, c := range []struct {
		name string
		r    Request
	}{
		{"long hostname", Request{UTS: true, Hostname: strings.Repeat("a", 65)}},
		{"hostname of the host", Request{Net: true, Hostname: "x"}},
		{"NUL", Request{UTS: true, Hostname: "a\x00"}},
		{"smuggle", Request{IPC: true, Sysctls: map[string]string{"kernel.shm_rmid_forced": "1\nkernel.core_pattern=x"}}},
		{"smuggle in key", Request{IPC: true, Sysctls: map[string]string{"kernel.shm_rmid_forced=1+kernel.core_pattern": "x"}}},
		{"host's", Request{Net: true, IPC: true, UTS: true, Sysctls: map[string]string{"kernel.core_pattern": "x"}}},
		{"vm", Request{Net: true, IPC: true, UTS: true, Sysctls: map[string]string{"vm.swappiness": "1"}}},
		{"net without netns", Request{IPC: true, Sysctls: map[string]string{"net.ipv4.ip_forward": "1"}}},
		{"ipc without ipcns", Request{Net: true, Sysctls: map[string]string{"kernel.sem": "1"}}},
		{"up and out", Request{Net: true, IPC: true, UTS: true, Sysctls: map[string]string{"net/../kernel/core_pattern": "1"}}},
		{"up and out with dots", Request{Net: true, IPC: true, UTS: true, Sysctls: map[string]string{"net.//.kernel.core_pattern": "1"}}},
		{"empty part", Request{Net: true, Sysctls: map[string]string{"net..ipv4": "1"}}},
		{"page", Request{Net: true, Sysctls: map[string]string{"net.ipv4.ip_forward": strings.Repeat("1", 4096)}}},
	} {
		c.r.Dir = filepath.Join(t.TempDir(), "pod")
		if err := Create(t.Context(), c.r); !kind.Is(err, kind.Invalid) {
			t.Errorf("%s: %v, want kind Invalid", c.name, err)
		}
		if _, err := os.Stat(c.r.Dir); err == nil {
			t.Errorf("%s: something was made", c.name)
		}
	}
}

func TestUnknownSysctl(t *testing.T) {
	needRoot(t)
	r := all(t)
	for key, value := range map[string]string{"net.ipv4.no_such_thing": "1", "net.ipv4.ip_unprivileged_port_start": "many"} {
		r.Sysctls = map[string]string{key: value}
		if err := Create(t.Context(), r); !kind.Is(err, kind.Invalid) {
			t.Errorf("%s=%s: %v, want kind Invalid", key, value, err)
		}
	}
}

func TestDo(t *testing.T) {
	needRoot(t)
	r := all(t)
	if err := Create(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	var names []string
	err := Do(Path(r.Dir, Net), func() error {
		list, err := net.Interfaces()
		for _, i := range list {
			names = append(names, i.Name)
		}
		return err
	})
	if err != nil || strings.Join(names, ",") != "lo" {
		t.Errorf("interfaces inside: %v (%v)", names, err)
	}
	for _, path := range []string{filepath.Join(r.Dir, "none"), Path(r.Dir, IPC), os.Args[0]} {
		if err := Do(path, func() error { return nil }); !kind.Is(err, kind.NotFound) {
			t.Errorf("%s: %v, want kind NotFound", path, err)
		}
	}
	stats, err := Stats(Path(r.Dir, Net))
	if err != nil || len(stats) != 1 || !stats[0].Loopback {
		t.Errorf("stats: %+v (%v)", stats, err)
	}
	err = Do(Path(r.Dir, Net), func() error {
		c, err := net.Dial("udp", "127.0.0.1:9")
		if err != nil {
			return err
		}
		c.Write([]byte("hello"))
		return c.Close()
	})
	if err != nil {
		t.Fatal(err)
	}
	if stats, err = Stats(Path(r.Dir, Net)); err != nil || stats[0].Tx.Packets == 0 || stats[0].Rx.Bytes == 0 {
		t.Errorf("stats after traffic: %+v (%v)", stats, err)
	}
}

// TestThreadsStayHome looks for threads of this process that are left in a
// pod's namespace, after many creations at once.
func TestThreadsStayHome(t *testing.T) {
	needRoot(t)
	home, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			dir := filepath.Join(root, strconv.Itoa(i))
			if err := Create(context.Background(), Request{Dir: dir, Net: true, IPC: true, UTS: true}); err != nil {
				t.Error(err)
			}
			if err := Remove(dir); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	abroad := func() (n int) {
		tasks, err := filepath.Glob("/proc/self/task/*/ns/net")
		if err != nil {
			t.Fatal(err)
		}
		for _, task := range tasks {
			if l, err := os.Readlink(task); err == nil && l != home {
				n++
			}
		}
		return n
	}
	for range 100 { // a thread needs a moment to end after its goroutine did
		if abroad() == 0 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("%d threads are left in foreign network namespaces", abroad())
}

func TestPrepare(t *testing.T) {
	needRoot(t)
	root := filepath.Join(t.TempDir(), "ns")
	t.Cleanup(func() { syscall.Unmount(root, syscall.MNT_DETACH) })
	for range 2 {
		if err := Prepare(root); err != nil {
			t.Fatal(err)
		}
	}
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(info), " "+root+" "); n != 1 {
		t.Errorf("%d mounts at %s, want 1", n, root)
	}
	dir := filepath.Join(root, "pod")
	if err := Create(t.Context(), Request{Dir: dir, Net: true}); err != nil {
		t.Fatal(err)
	}
	if err := Remove(dir); err != nil {
		t.Fatal(err)
	}
}

func BenchmarkCreateRemove(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("needs root")
	}
	dir := filepath.Join(b.TempDir(), "pod")
	for b.Loop() {
		if err := Create(context.Background(), Request{Dir: dir, Net: true, IPC: true, UTS: true, Hostname: "b"}); err != nil {
			b.Fatal(err)
		}
		if err := Remove(dir); err != nil {
			b.Fatal(err)
		}
	}
}
