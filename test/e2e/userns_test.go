package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The ids of a pod's user namespace, users and groups different to tell them apart.
const (
	firstUser  = 1 << 20
	firstGroup = 3 << 20
	usersOfPod = 65536
)

func usersOf(user, group uint32) *cri.UserNamespace {
	return &cri.UserNamespace{Mode: cri.NamespaceMode_POD,
		Uids: []*cri.IDMapping{{HostId: user, Length: usersOfPod}}, Gids: []*cri.IDMapping{{HostId: group, Length: usersOfPod}}}
}

// mapped gives a pod a user namespace of its own.
func mapped(c *cri.PodSandboxConfig) {
	c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = usersOf(firstUser, firstGroup)
}

// capable gives a container the administration of what belongs to its user namespace.
func capable(c *cri.ContainerConfig) {
	c.Linux.SecurityContext.Capabilities = &cri.Capability{AddCapabilities: []string{"SYS_ADMIN", "NET_ADMIN"}}
}

// owner is a file's user and group.
func owner(t *testing.T, path string) string {
	t.Helper()
	info, err := os.Lstat(path)
	must(t, err)
	st := info.Sys().(*syscall.Stat_t)
	return fmt.Sprintf("%d:%d", st.Uid, st.Gid)
}

func onNode(uid, gid uint32) string { return fmt.Sprintf("%d:%d", firstUser+uid, firstGroup+gid) }

// TestUserNamespace looks at ids from inside and from outside.
func TestUserNamespace(t *testing.T) {
	skipOnPeer(t, "Debian's is too old")
	n := start(t)
	before := mountPoints(t)
	p := n.RunPod(t, mapped)
	c := p.Run(t, "sleep 1000", capable)
	for command, want := range map[string]string{
		"cat /proc/self/uid_map | tr -s ' '":                                         " 0 1048576 65536\n",
		"cat /proc/self/gid_map | tr -s ' '":                                         " 0 3145728 65536\n",
		"cat /proc/1/uid_map | tr -s ' '":                                            " 0 1048576 65536\n",
		"id -u; id -g; id -G":                                                        "0\n0\n0\n",
		"stat -c %u:%g /bin /home/web /tmp /":                                        "0:0\n1000:1000\n0:0\n0:0\n",
		"stat -c %u:%g /etc/hosts":                                                   "0:0\n",
		"stat -c %u:%g /etc/resolv.conf":                                             "0:0\n",
		"stat -c %u:%g:%a /dev/shm":                                                  "0:0:1777\n",
		"stat -c %u:%g /dev/pts /sys/class/net/lo/mtu /proc/sys/net/ipv4/ip_forward": "0:0\n0:0\n0:0\n",
	} {
		if got := c.Shell(t, command); got != want {
			t.Errorf("%s: %q, want %q", command, got, want)
		}
	}
	// What root may do in the pod.
	c.Shell(t, `echo 10.1.2.3 other >>/etc/hosts && hostname changed && ip link set lo mtu 1400 && mount -t tmpfs none /tmp &&
		touch /dev/shm/x && chown 1000:1000 /dev/shm/x && echo hi >/dev/null && mkdir /queues && mount -t mqueue none /queues`)
	if _, _, code := c.Exec(t, "chown", "65536", "/root"); code == 0 {
		t.Error("a file was given to a user that does not exist")
	}
	// What it writes belongs to the node's ids for those inside.
	c.Shell(t, `echo a >/root/mine; echo b >/home/web/theirs; chown 1000:2000 /home/web/theirs; mkdir /made; chmod 700 /root`)
	upper := filepath.Join(n.Root, "images", "containers", c.ID, "upper")
	for path, want := range map[string]string{
		"": onNode(0, 0), "root/mine": onNode(0, 0), "home/web": onNode(1000, 1000), "home/web/theirs": onNode(1000, 2000), "made": onNode(0, 0),
	} {
		if got := owner(t, filepath.Join(upper, path)); got != want {
			t.Errorf("/%s belongs to %s on the node, want %s", path, got, want)
		}
	}
	rootfs := filepath.Join(n.Root, "images", "containers", c.ID, "rootfs")
	if added := added(before, mountPoints(t)); !equalSets(added, []string{rootfs, filepath.Join(n.State, "pods", p.ID, "shm"),
		filepath.Join(n.State, "ns", p.ID, "net"), filepath.Join(n.State, "ns", p.ID, "ipc"), filepath.Join(n.State, "ns", p.ID, "uts"), filepath.Join(n.State, "ns", p.ID, "user")}) {
		t.Errorf("the node has the mounts %q more", added)
	}
	for _, pid := range c.Pids(t) {
		if got := owner(t, fmt.Sprintf("/proc/%d", pid)); got != onNode(0, 0) {
			t.Errorf("process %d runs as %s", pid, got)
		}
	}
	// Another pod of the image, without, sees the owners as ever.
	plain := n.RunPod(t, func(c *cri.PodSandboxConfig) { c.Metadata.Name += "-plain" })
	if got := plain.Output(t, "stat -c %u:%g /home/web /; cat /proc/self/uid_map | tr -s ' '"); got != "1000:1000\n0:0\n 0 0 4294967295\n" {
		t.Errorf("in a pod without: %q", got)
	}
}

func mountPoints(t *testing.T) []string {
	t.Helper()
	data, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	var list []string
	for _, line := range strings.Split(strings.TrimSpace(string(data)), "\n") {
		list = append(list, strings.Fields(line)[4])
	}
	return list
}

// added are the elements of after that before does not have.
func added(before, after []string) []string {
	count := map[string]int{}
	for _, x := range before {
		count[x]++
	}
	var list []string
	for _, x := range after {
		if count[x]--; count[x] < 0 {
			list = append(list, x)
		}
	}
	return list
}

func equalSets(a, b []string) bool { return len(added(a, b)) == 0 && len(added(b, a)) == 0 }

// TestUserNamespaceShared checks that all of a pod is in one user namespace,
// which owns the others.
func TestUserNamespaceShared(t *testing.T) {
	skipOnPeer(t, "Debian's is too old")
	n := start(t)
	for name, pid := range map[string]cri.NamespaceMode{"own pid": cri.NamespaceMode_CONTAINER, "pod's pid": cri.NamespaceMode_POD} {
		t.Run(name, func(t *testing.T) {
			p := n.RunPod(t, mapped, func(c *cri.PodSandboxConfig) {
				c.Linux.SecurityContext.NamespaceOptions.Pid = pid
				c.Linux.Sysctls = map[string]string{"kernel.msgmax": "4242", "net.ipv4.ip_unprivileged_port_start": "80", "net.ipv4.ping_group_range": "0 1000"}
			})
			a, b := p.Run(t, "sleep 1000"), p.Run(t, "sleep 1000")
			x := ns(t, a, "user")
			if y := ns(t, b, "user"); x != y || x == hostNS(t, "user") {
				t.Errorf("the containers are in %s and %s, the host in %s", x, y, hostNS(t, "user"))
			}
			pids := append(a.Pids(t), b.Pids(t)...)
			if pid == cri.NamespaceMode_POD {
				if got := a.Shell(t, "readlink /proc/1/exe; stat -c %u /proc/1; ps | grep -c '[s]leep 1000'"); !strings.HasSuffix(got, "2\n") {
					t.Errorf("process 1: %q", got)
				}
			}
			for _, pid := range pids {
				for _, kind := range []string{"net", "ipc", "uts", "pid", "mnt"} {
					if got := ownerOf(t, fmt.Sprintf("/proc/%d/ns/%s", pid, kind)); got != x {
						t.Errorf("the %s namespace of %d belongs to %s, want %s", kind, pid, got, x)
					}
				}
			}
			if got := a.Shell(t, "cd /proc/sys; cat kernel/msgmax net/ipv4/ip_unprivileged_port_start net/ipv4/ping_group_range | tr '\\t' ' '"); got != "4242\n80\n0 1000\n" {
				t.Errorf("settings: %q", got)
			}
		})
	}
}

// ownerOf is the user namespace that owns a namespace.
func ownerOf(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	fd, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_USERNS)
	must(t, err)
	defer unix.Close(fd)
	name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	must(t, err)
	return name
}
