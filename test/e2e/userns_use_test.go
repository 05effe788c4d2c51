package e2e

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/test/node"
)

// TestUserNamespaceProcesses runs processes as several users, with and without
// terminals, and in the container that runs.
func TestUserNamespaceProcesses(t *testing.T) {
	skipOnPeer(t, "Debian's is too old")
	n := start(t)
	p := n.RunPod(t, mapped)
	user := func(id int64) func(*cri.ContainerConfig) {
		return func(c *cri.ContainerConfig) { c.Linux.SecurityContext.RunAsUser = &cri.Int64Value{Value: id} }
	}
	terminal := func(c *cri.ContainerConfig) { c.Tty = true }
	for name, c := range map[string]struct {
		script string
		edits  []func(*cri.ContainerConfig)
		want   string
	}{
		"streams of root":      {"echo out >/dev/stdout", nil, "out\n"},
		"streams of a user":    {"id -u; echo out >/dev/stdout; : >/dev/stderr || echo no", []func(*cri.ContainerConfig){user(1000)}, "1000\nout\n"},
		"terminal":             {"tty; stat -c '%u %g %a' $(tty); echo again >$(tty)", []func(*cri.ContainerConfig){terminal}, "/dev/pts/0\n0 5 620\nagain\n"},
		"terminal of a user":   {"stat -c '%u %g %a' /dev/console; echo again >/dev/console", []func(*cri.ContainerConfig){terminal, user(1000)}, "1000 5 620\nagain\n"},
		"last user":            {"id -u; touch /tmp/x; stat -c %u /tmp/x", []func(*cri.ContainerConfig){user(usersOfPod - 1)}, "65535\n65535\n"},
		"groups of the image":  {"echo $(id -G | tr ' ' '\\n' | sort -n)", []func(*cri.ContainerConfig){user(1000)}, "1000 2000\n"},
		"seccomp and no caps":  {"grep -E '^(Seccomp|CapEff):' /proc/self/status | tr '\\t' ' '", []func(*cri.ContainerConfig){confined}, "CapEff: 0000000000000000\nSeccomp: 2\n"},
		"memory limit applies": {"cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null || true", []func(*cri.ContainerConfig){limited}, "67108864\n"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := strings.ReplaceAll(p.Output(t, c.script, c.edits...), "\r\n", "\n"); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
	for what, edit := range map[string]func(*cri.ContainerConfig){
		"user": user(usersOfPod),
		"group": func(c *cri.ContainerConfig) {
			user(1)(c)
			c.Linux.SecurityContext.RunAsGroup = &cri.Int64Value{Value: usersOfPod}
		},
		"supplemental group": func(c *cri.ContainerConfig) { c.Linux.SecurityContext.SupplementalGroups = []int64{1 << 30} },
	} {
		config := node.ContainerConfig("refused", "true")
		edit(config)
		_, err := p.TryCreate(config)
		wantCode(t, err, codes.InvalidArgument)
		if err == nil || !strings.Contains(err.Error(), "0-65535") {
			t.Errorf("%s: %v does not say which ids there are", what, err)
		}
	}
	c := p.Run(t, "sleep 1000", user(1000))
	if got := c.Shell(t, "id -u; cat /proc/self/uid_map | tr -s ' '; echo x >/dev/stdout; readlink /proc/self/ns/user"); got != "1000\n 0 1048576 65536\nx\n"+ns(t, c, "user")+"\n" {
		t.Errorf("exec: %q", got)
	}
	ctx, cancel := node.Context()
	defer cancel()
	out, err := exec.CommandContext(ctx, "script", "-qec", binary+" --listen unix://"+n.Socket+" exec -t "+c.ID+` sh -c 'stat -c "%u %a" $(tty); echo again >$(tty)'`, "/dev/null").CombinedOutput()
	if got := strings.ReplaceAll(string(out), "\r\n", "\n"); err != nil || got != "1000 620\nagain\n" {
		t.Errorf("exec with a terminal: %q, %v", got, err)
	}
	if log, err := os.ReadFile(filepath.Join(n.State, "shim", "shim.log")); err != nil || strings.Contains(string(log), "execs take the OCI runtime\" container="+c.ID) {
		t.Errorf("the shim leaves execs to the runtime: %v: %s", err, log)
	}
}

func confined(c *cri.ContainerConfig) {
	seccomp(c, cri.SecurityProfile_RuntimeDefault, "")
	c.Linux.SecurityContext.Capabilities = &cri.Capability{DropCapabilities: []string{"ALL"}}
}

func limited(c *cri.ContainerConfig) {
	c.Linux.Resources = &cri.LinuxContainerResources{MemoryLimitInBytes: 64 << 20}
}

// TestUserNamespaceVolumes maps the owners of files in volumes, as kubelets ask.
func TestUserNamespaceVolumes(t *testing.T) {
	skipOnPeer(t, "Debian's is too old")
	n := start(t)
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "file"), []byte("content\n"), 0o600))
	must(t, os.Lchown(filepath.Join(dir, "file"), 1000, 2000))
	for _, name := range []string{"sub", "other"} {
		must(t, os.Mkdir(filepath.Join(dir, name), 0o755))
	}
	mountTmpfs(t, filepath.Join(dir, "sub"))
	must(t, os.Chown(filepath.Join(dir, "sub"), 7, 7))
	volume := func(host, path string) *cri.Mount {
		u := usersOf(firstUser, firstGroup)
		return &cri.Mount{HostPath: host, ContainerPath: path, UidMappings: u.Uids, GidMappings: u.Gids}
	}
	p := n.RunPod(t, mapped)
	c := p.Run(t, "sleep 1000", func(c *cri.ContainerConfig) {
		c.Mounts = []*cri.Mount{volume(dir, "/mapped"), {HostPath: dir, ContainerPath: "/plain"}, volume(filepath.Join(dir, "file"), "/one")}
	})
	for script, want := range map[string]string{
		"stat -c %u:%g /mapped /mapped/file /mapped/sub /one": "0:0\n1000:2000\n7:7\n1000:2000\n",
		"stat -c %u:%g /plain /plain/file":                    "65534:65534\n65534:65534\n",
		"cat /mapped/file /one":                               "content\ncontent\n",
		"cat /plain/file 2>/dev/null || echo no":              "no\n",
		"touch /mapped/new /mapped/sub/new; chown 5:6 /mapped/new; stat -c %u:%g /mapped/new /mapped/sub/new": "5:6\n0:0\n",
	} {
		if got := c.Shell(t, script); got != want {
			t.Errorf("%s: %q, want %q", script, got, want)
		}
	}
	for path, want := range map[string]string{"new": "5:6", "sub/new": "0:0"} {
		if got := owner(t, filepath.Join(dir, path)); got != want {
			t.Errorf("%s belongs to %s on the node, want %s", path, got, want)
		}
	}
	// What cannot be mapped below a volume stays as it is.
	other := filepath.Join(dir, "other")
	must(t, unix.Mount("proc", other, "proc", 0, ""))
	t.Cleanup(func() { unix.Unmount(other, unix.MNT_DETACH) })
	top := func(c *cri.ContainerConfig) { c.Mounts = []*cri.Mount{volume(dir, "/mapped")} }
	if got := p.Output(t, "stat -c %u:%g /mapped /mapped/other", top); got != "0:0\n65534:65534\n" {
		t.Errorf("volume with another below: %q", got)
	}
	for what, c := range map[string]struct {
		mount *cri.Mount
		code  codes.Code
		text  string
	}{
		"file system": {volume("/sys/kernel", "/v"), codes.FailedPrecondition, "sysfs"},
		"users only":  {&cri.Mount{HostPath: dir, ContainerPath: "/v", UidMappings: usersOf(1, 1).Uids}, codes.InvalidArgument, "one of each"},
	} {
		config := node.ContainerConfig("refused", "true")
		config.Mounts = []*cri.Mount{c.mount}
		_, err := p.TryCreate(config)
		wantCode(t, err, c.code)
		if err == nil || !strings.Contains(err.Error(), c.text) || !strings.Contains(err.Error(), "/v") && c.code != codes.InvalidArgument {
			t.Errorf("%s: %v", what, err)
		}
	}
	// Nor is a user namespace of the pod needed for it.
	plain := n.RunPod(t, func(c *cri.PodSandboxConfig) { c.Metadata.Name += "-plain" })
	if got := plain.Output(t, "stat -c %u:%g /v/file", func(c *cri.ContainerConfig) { c.Mounts = []*cri.Mount{volume(dir, "/v")} }); got != fmt.Sprintf("%d:%d\n", firstUser+1000, firstGroup+2000) {
		t.Errorf("in a pod without a user namespace: %q", got)
	}
}

// TestUserNamespaceImageVolume shows an image as a volume with its own owners.
func TestUserNamespaceImageVolume(t *testing.T) {
	skipOnPeer(t, "it is older than this")
	n := images(t)
	id := pushVolume(t, n, "users:1")
	p := n.RunPod(t, mapped)
	u := usersOf(firstUser, firstGroup)
	c := p.Run(t, "sleep 1000", imageVolume(id, ""), func(c *cri.ContainerConfig) {
		c.Mounts[0].UidMappings, c.Mounts[0].GidMappings = u.Uids, u.Gids // as kubelets do
	})
	if got := c.Shell(t, "stat -c %u:%g /volume /volume/data; cat /volume/data/file"); got != "7:0\n0:0\ncontent\n" {
		t.Errorf("volume: %q", got)
	}
	must(t, c.Remove())
	removeImage(t, n, id)
}

// TestUserNamespacePrivileged: all rights, over what belongs to the pod.
func TestUserNamespacePrivileged(t *testing.T) {
	skipOnPeer(t, "Debian's is too old")
	n := start(t)
	p := n.RunPod(t, mapped, func(c *cri.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true })
	c := p.Run(t, "sleep 1000", func(c *cri.ContainerConfig) { c.Linux.SecurityContext.Privileged = true })
	for script, want := range map[string]string{
		"hostname changed && hostname":                                                                       "changed\n",
		"ip link set lo mtu 1400 && ip link set lo down && echo yes":                                         "yes\n",
		"mkdir /m && mount -t tmpfs none /m && umount /m && echo yes":                                        "yes\n",
		"stat -c %t:%T /dev/null /dev/zero; echo x >/dev/null && echo yes":                                   "1:3\n1:5\nyes\n",
		"awk '$2==\"/sys\"{print substr($4,1,2)}' /proc/mounts":                                              "rw\n",
		"echo 1000 2>/dev/null >/proc/sys/vm/max_map_count || echo no":                                       "no\n",
		"mknod /x b 8 0 2>/dev/null || echo no":                                                              "no\n",
		"echo 5 >/proc/sys/net/ipv4/conf/lo/tag && cat /proc/sys/net/ipv4/conf/lo/tag":                       "5\n",
		"nsenter -t 1 -n ip link show lo >/dev/null && echo yes; cat /proc/1/environ >/dev/null && echo yes": "yes\nyes\n",
	} {
		if got := c.Shell(t, script); got != want {
			t.Errorf("%s: %q, want %q", script, got, want)
		}
	}
	config := node.ContainerConfig("propagates", "true")
	config.Linux.SecurityContext.Privileged = true
	config.Mounts = []*cri.Mount{{HostPath: t.TempDir(), ContainerPath: "/m", Propagation: cri.MountPropagation_PROPAGATION_BIDIRECTIONAL}}
	_, err := p.TryCreate(config)
	wantCode(t, err, codes.InvalidArgument)
}

// TestUserNamespaceDevices: a device gets the name that is asked for.
func TestUserNamespaceDevices(t *testing.T) {
	skipOnPeer(t, "Debian's is too old")
	n := start(t)
	p := n.RunPod(t, mapped)
	got := p.Output(t, "stat -c %t:%T /dev/renamed /dev/kmsg; head -c 4 /dev/renamed | wc -c", func(c *cri.ContainerConfig) {
		c.Devices = []*cri.Device{{HostPath: "/dev/zero", ContainerPath: "/dev/renamed", Permissions: "rw"}, {HostPath: "/dev/kmsg", ContainerPath: "/dev/kmsg", Permissions: "r"}}
	})
	if got != "1:5\n1:b\n4\n" {
		t.Errorf("devices: %q", got)
	}
}

// TestUserNamespaceHostNetwork: the node's network, but no rights over it.
func TestUserNamespaceHostNetwork(t *testing.T) {
	skipOnPeer(t, "Debian's is too old")
	n := start(t)
	ctx, cancel := node.Context()
	defer cancel()
	s, err := n.Runtime.Status(ctx, &cri.StatusRequest{})
	must(t, err)
	if !s.Features.GetUserNamespacesHostNetwork() {
		t.Error("the status says that it cannot be")
	}
	for _, h := range s.RuntimeHandlers {
		if !h.Features.GetUserNamespaces() {
			t.Errorf("the status says that handler %q has no user namespaces", h.Name)
		}
	}
	for _, pid := range []cri.NamespaceMode{cri.NamespaceMode_CONTAINER, cri.NamespaceMode_POD} {
		p := n.RunPod(t, mapped, func(c *cri.PodSandboxConfig) {
			o := c.Linux.SecurityContext.NamespaceOptions
			o.Network, o.Pid = cri.NamespaceMode_NODE, pid
			c.Metadata.Name += strings.ToLower(pid.String())
			c.Hostname = ""
		})
		c := p.Run(t, "sleep 1000", capable)
		if got := ns(t, c, "net"); got != hostNS(t, "net") {
			t.Errorf("the container is in network %s, the node in %s", got, hostNS(t, "net"))
		}
		for script, want := range map[string]string{
			"ip link set lo mtu 1400 2>/dev/null || echo no":                          "no\n",
			"test -e /sys/class/net/lo/mtu && echo yes":                               "yes\n",
			"touch /sys/class/x 2>/dev/null || echo no":                               "no\n",
			"cat /proc/self/uid_map | tr -s ' '":                                      " 0 1048576 65536\n",
			"awk '$2~\"^/sys/\" && $2!~\"^/sys/fs/cgroup\" && $4~/^rw/' /proc/mounts": "",
		} {
			if got := c.Shell(t, script); got != want {
				t.Errorf("%s: %q, want %q", script, got, want)
			}
		}
	}
	for what, edit := range map[string]func(*cri.NamespaceOption){
		"pid": func(o *cri.NamespaceOption) { o.Pid = cri.NamespaceMode_NODE },
		"ipc": func(o *cri.NamespaceOption) { o.Ipc = cri.NamespaceMode_NODE },
	} {
		_, err := n.TryPod(t, n.PodConfig(t, mapped, func(c *cri.PodSandboxConfig) { edit(c.Linux.SecurityContext.NamespaceOptions) }))
		if wantCode(t, err, codes.InvalidArgument); err == nil {
			t.Errorf("%s of the node: no error", what)
		}
	}
}

// TestUserNamespaceNetwork reaches a pod, and the world from it.
func TestUserNamespaceNetwork(t *testing.T) {
	skipOnPeer(t, "Debian's is too old")
	n := start(t)
	p := n.RunPod(t, mapped)
	p.Run(t, "mkdir /www; echo served >/www/index.html; exec httpd -f -p 80 -h /www")
	client := n.RunPod(t, mapped, func(c *cri.PodSandboxConfig) {
		c.Metadata.Name += "-client"
		c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = usersOf(firstUser+usersOfPod, firstGroup+usersOfPod)
	})
	node.Eventually(t, "the server listens", 5*time.Second, func() bool {
		var d net.Dialer
		conn, err := d.DialContext(context.Background(), "tcp", net.JoinHostPort(p.IP(t), "80"))
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	if got := client.Output(t, "wget -qO- http://"+p.IP(t)+"/; ping -c 1 127.0.0.1 >/dev/null && echo ping"); got != "served\nping\n" {
		t.Errorf("from another pod: %q", got)
	}
}

// TestUserNamespaceRestart kills the daemon: all of it is as it was, more can be
// made of it, and nothing is left when it is removed.
func TestUserNamespaceRestart(t *testing.T) {
	skipOnPeer(t, "Debian's is too old")
	n := own(t, binary)
	p := n.RunPod(t, mapped, func(c *cri.PodSandboxConfig) { c.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD })
	c := p.Run(t, "echo kept >/root/file; exec sleep 1000")
	created := p.Create(t, "stat -c %u:%g /home/web")
	before := ns(t, c, "user")
	n.Kill()
	must(t, n.Launch())
	if s := p.Status(t); s.State != cri.PodSandboxState_SANDBOX_READY || len(s.Linux.Namespaces.Options.UsernsOptions.GetUids()) != 1 {
		t.Errorf("after the restart: %v", s)
	}
	if got := c.Shell(t, "cat /root/file; stat -c %u:%g /home/web /root/file"); got != "kept\n1000:1000\n0:0\n" {
		t.Errorf("after the restart: %q", got)
	}
	must(t, created.Start())
	created.WaitExit(t)
	if got := created.Log(t).Text(); got != "1000:1000\n" {
		t.Errorf("started after the restart: %q", got)
	}
	later := p.Run(t, "sleep 1000")
	if got := ns(t, later, "user"); got != before {
		t.Errorf("a container made after the restart is in %s, the first in %s", got, before)
	}
}

// TestUserNamespaceLost loses the pinned namespace while no daemon is there:
// the pod is out of service, since what comes would not be in the same one.
func TestUserNamespaceLost(t *testing.T) {
	skipOnPeer(t, "Debian's is too old")
	n := own(t, binary)
	p := n.RunPod(t, mapped)
	n.Kill()
	must(t, unix.Unmount(filepath.Join(n.State, "ns", p.ID, "user"), unix.MNT_DETACH))
	must(t, n.Launch())
	if s := p.Status(t); s.State != cri.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("pod is %v", s.State)
	}
}
