package namespace

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"noded.dev/noded/internal/idmap"
	"noded.dev/noded/internal/kind"
)

var testIDs = idmap.Mapping{
	Users:  idmap.Range{Host: 1 << 20, Length: 65536},
	Groups: idmap.Range{Host: 3 << 20, Length: 65536},
}

// owner is the inode of the user namespace that owns the namespace at path.
func owner(t *testing.T, path string) uint64 {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fd, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_USERNS)
	if err != nil {
		t.Fatalf("owner of %s: %v", path, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

func inode(t *testing.T, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

// asPodRoot runs a command as the root of the pod's user namespace.
func asPodRoot(t *testing.T, dir string, args ...string) string {
	t.Helper()
	return inside(t, dir, append([]string{"--user=" + Path(dir, User), "--setuid=0", "--setgid=0"}, args...)...)
}

func TestCreateOwned(t *testing.T) {
	needRoot(t)
	r := all(t)
	r.IDs = &testIDs
	r.Sysctls["net.ipv4.ping_group_range"] = "0 65535"
	before := hostState(t)
	if err := Create(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	users := inode(t, Path(r.Dir, User))
	for _, name := range []string{Net, IPC, UTS} {
		if got := owner(t, Path(r.Dir, name)); got != users {
			t.Errorf("the %s namespace belongs to user namespace %d, want %d", name, got, users)
		}
	}
	for _, c := range []struct{ command, want string }{
		{"cat /proc/self/uid_map", "0 1048576 65536"},
		{"cat /proc/self/gid_map", "0 3145728 65536"},
		{"cat /proc/self/setgroups", "allow"},
		{"hostname", "pod-a"},
		{"cat /proc/sys/kernel/msgmax", "4242"},
		{"cat /proc/sys/fs/mqueue/msg_max", "7"},
		{"cat /proc/sys/net/ipv4/ip_unprivileged_port_start", "80"},
		{"cat /proc/sys/net/ipv4/ping_group_range", "0 65535"},
		{"ip link set lo mtu 1400", ""},
		{"unshare -m sh -c 'mount -t sysfs none /sys && stat -c %u:%g /sys/class/net/lo/mtu'", "0:0"},
	} {
		got := asPodRoot(t, r.Dir, "sh", "-c", c.command)
		if got = strings.Join(strings.Fields(got), " "); got != c.want {
			t.Errorf("%s: %q, want %q", c.command, got, c.want)
		}
	}
	if after := hostState(t); after != before {
		t.Errorf("the host changed: %q, was %q", after, before)
	}
	noChildren(t)
}

// noChildren fails if this process has a child, living or not waited for.
func noChildren(t *testing.T) {
	t.Helper()
	if err := unix.Waitid(unix.P_ALL, 0, nil, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil); err != syscall.ECHILD {
		t.Errorf("a child is left: %v", err)
	}
}

func TestCreateOwnedAgain(t *testing.T) {
	needRoot(t)
	r := all(t)
	r.IDs = &testIDs
	if err := Create(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	first := inode(t, Path(r.Dir, Net))
	if err := Create(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	if again := inode(t, Path(r.Dir, Net)); again != first {
		t.Errorf("network namespace %d was replaced by %d", first, again)
	}
	// A crash between the pins: what is there belongs to a user namespace that is not.
	if err := unpin(Path(r.Dir, User)); err != nil {
		t.Fatal(err)
	}
	if err := Create(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	if got, want := owner(t, Path(r.Dir, Net)), inode(t, Path(r.Dir, User)); got != want {
		t.Errorf("the network namespace belongs to user namespace %d, want %d", got, want)
	}
	if err := Remove(r.Dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(r.Dir); !os.IsNotExist(err) {
		t.Errorf("folder is still there: %v", err)
	}
}

func TestPingGroups(t *testing.T) {
	needRoot(t)
	for _, value := range []string{"0 2147483647", "0 x"} {
		r := all(t)
		r.IDs = &testIDs
		r.Sysctls["net.ipv4.ping_group_range"] = value
		if err := Create(t.Context(), r); !kind.Is(err, kind.Invalid) {
			t.Errorf("%q: %v, want kind Invalid", value, err)
		}
	}
}

// TestNewUser maps a folder of the host with a namespace that nothing else holds.
func TestNewUser(t *testing.T) {
	needRoot(t)
	ns, err := NewUser(testIDs)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	noChildren(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(file, 7, 8); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	tree, err := idmap.Clone(dir, ns, false)
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	var st unix.Stat_t
	if err := unix.Fstatat(int(tree.Fd()), "file", &st, 0); err != nil {
		t.Fatal(err)
	}
	if st.Uid != 1<<20+7 || st.Gid != 3<<20+8 {
		t.Errorf("owner %d:%d", st.Uid, st.Gid)
	}
	if after, err := os.ReadFile("/proc/self/mountinfo"); err != nil || string(after) != string(before) {
		t.Errorf("the mount table changed: %v", err)
	}
	if _, err := idmap.Clone("/proc", ns, false); !kind.Is(err, kind.Precondition) || !strings.Contains(err.Error(), "proc") {
		t.Errorf("proc can be mapped: %v", err)
	}
}
