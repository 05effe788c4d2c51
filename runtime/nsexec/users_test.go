package nsexec

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	rspec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"noded.dev/noded/internal/idmap"
	"noded.dev/noded/internal/kind"
	"noded.dev/noded/internal/namespace"
)

const hostRoot = 1 << 20

// users puts a container into a user namespace of this process's making.
func users(t testing.TB) func(*rspec.Spec) {
	return func(s *rspec.Spec) {
		span := idmap.Range{Host: hostRoot, Length: 65536}
		ns, err := namespace.NewUser(idmap.Mapping{Users: span, Groups: span})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ns.Close() })
		s.Linux.Namespaces = append(s.Linux.Namespaces, rspec.LinuxNamespace{
			Type: rspec.UserNamespace, Path: fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), ns.Fd()),
		})
	}
}

// letIn lets the root of a user namespace make mount points in the rootfs.
func (c *container) letIn() {
	rootfs := filepath.Join(c.dir, "rootfs")
	for _, dir := range []string{c.dir, filepath.Dir(c.dir)} {
		if err := os.Chmod(dir, 0o711); err != nil {
			c.t.Fatal(err)
		}
	}
	if err := os.Chown(rootfs, hostRoot, hostRoot); err != nil {
		c.t.Fatal(err)
	}
}

func TestUserNamespace(t *testing.T) {
	c := start(t, users(t))
	if got := strings.Fields(c.mustHere(c.process("cat", "/proc/self/uid_map"))); strings.Join(got, " ") != "0 1048576 65536" {
		t.Errorf("map %q", got)
	}
	// A file for that the process needs its own standard stream again.
	p := c.process("sh", "-c", "echo again >/dev/stdout; touch /tmp/mine 2>&1; stat -c %u /proc/self/fd/1")
	if got := c.mustHere(p); !strings.HasPrefix(got, "again\n") || !strings.HasSuffix(got, "\n0\n") {
		t.Errorf("streams: %q", got)
	}
	p = c.process("true")
	p.User.UID = 65536
	if _, err := c.here(p); !kind.Is(err, kind.Invalid) {
		t.Errorf("a user that does not exist: %v", err)
	}
	noZombies(t)
}

// TestUserNamespaceTerminal: the terminal is the container's and the user's.
func TestUserNamespaceTerminal(t *testing.T) {
	c := start(t, users(t))
	p := c.process("sh", "-c", "tty; stat -c '%u %a' $(tty); echo opened >$(tty)")
	p.User.UID, p.User.GID, p.Terminal = 1000, 1000, true
	r := c.request(p)
	r.Terminal = true
	proc, err := Start(r)
	if err != nil {
		t.Fatal(err)
	}
	defer proc.Pidfd.Close()
	defer proc.Console.Close()
	var out strings.Builder
	buf := make([]byte, 4096)
	for {
		n, err := proc.Console.Read(buf)
		out.Write(buf[:n])
		if err != nil {
			break // EIO: the last process that had it open has ended
		}
	}
	if code := wait(t, proc.Pid); code != 0 || out.String() != "/dev/pts/0\r\n1000 620\r\nopened\r\n" {
		t.Errorf("code %d: %q", code, out.String())
	}
}

// TestUserNamespaceOfFirstProcess: a first process that has gone on into a user
// namespace of its own does not take execs with it.
func TestUserNamespaceOfFirstProcess(t *testing.T) {
	if out, err := exec.Command("/bin/busybox", "unshare", "--help").CombinedOutput(); err != nil {
		t.Skipf("busybox has no unshare: %s", out)
	}
	c := start(t, func(s *rspec.Spec) {
		users(t)(s)
		s.Process.Args = []string{"busybox", "unshare", "-U", "sleep", "100000"}
	})
	own := func() bool {
		a, errA := os.Readlink(fmt.Sprintf("/proc/%d/ns/user", c.pid))
		path, _ := userNamespace(c.spec.Linux)
		var st unix.Stat_t
		errB := unix.Stat(path, &st)
		return errA == nil && errB == nil && a != fmt.Sprintf("user:[%d]", st.Ino)
	}
	// The kernel has no event for another's unshare.
	for end := time.Now().Add(10 * time.Second); !own(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the first process stays in its user namespace")
		}
	}
	if _, err := c.here(c.process("true")); !isUnsupported(err) {
		t.Errorf("%v, want ErrUnsupported", err)
	}
}
