package e2e

import (
	"os"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/test/node"
)

// TestPodStatus checks that a pod is told as it was asked for.
func TestPodStatus(t *testing.T) {
	n := start(t)
	p := n.RunPod(t)
	s := p.Status(t)
	if s.Id != p.ID || s.State != cri.PodSandboxState_SANDBOX_READY || s.CreatedAt <= 0 {
		t.Errorf("id %q, state %v, created %d", s.Id, s.State, s.CreatedAt)
	}
	if s.Metadata.String() != p.Config.Metadata.String() || s.Labels["test"] != p.Config.Labels["test"] || s.Annotations["test/annotation"] != "a value" {
		t.Errorf("metadata %v, labels %v, annotations %v", s.Metadata, s.Labels, s.Annotations)
	}
	if o := s.GetLinux().GetNamespaces().GetOptions(); o.GetNetwork() != cri.NamespaceMode_POD || o.GetPid() != cri.NamespaceMode_CONTAINER {
		t.Errorf("namespaces %v", o)
	}
	if !strings.HasPrefix(p.IP(t), strings.TrimSuffix(n.Subnet, "0/24")) {
		t.Errorf("address %q, want one of %s", p.IP(t), n.Subnet)
	}
	must(t, p.Stop())
	if s := p.Status(t); s.State != cri.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("stopped pod is %v", s.State)
	}
}

// TestPodFiles checks what noded writes for a pod's containers.
func TestPodFiles(t *testing.T) {
	n := start(t)
	p := n.RunPod(t, func(c *cri.PodSandboxConfig) {
		c.Hostname = "named"
		c.DnsConfig = &cri.DNSConfig{Servers: []string{"10.1.2.3", "fd00::3"}, Searches: []string{"a.test", "b.test"}, Options: []string{"ndots:5"}}
	})
	c := p.Run(t, "sleep 1000")
	for script, want := range map[string]string{
		"hostname":                                  "named\n",
		"cat /etc/hostname":                         "named\n",
		"cat /proc/sys/kernel/hostname":             "named\n",
		"grep nameserver /etc/resolv.conf":          "nameserver 10.1.2.3\nnameserver fd00::3\n",
		"grep search /etc/resolv.conf":              "search a.test b.test\n",
		"grep options /etc/resolv.conf":             "options ndots:5\n",
		"grep -c '127.0.0.1.*localhost' /etc/hosts": "1\n",
		"stat -f -c %T /dev/shm":                    "tmpfs\n",
		"df -k /dev/shm | awk 'END{print $2}'":      "65536\n",
	} {
		if got := c.Shell(t, script); got != want {
			t.Errorf("%s: %q, want %q", script, got, want)
		}
	}
	c.Shell(t, "echo shared >/dev/shm/file")
	if got := p.Output(t, "cat /dev/shm/file"); got != "shared\n" {
		t.Errorf("another container reads %q from /dev/shm", got)
	}
}

func TestSysctls(t *testing.T) {
	n := start(t)
	p := n.RunPod(t, func(c *cri.PodSandboxConfig) {
		c.Linux.Sysctls = map[string]string{"net.ipv4.ip_unprivileged_port_start": "0", "kernel.shm_rmid_forced": "1", "fs.mqueue.msg_max": "12", "kernel.msgmax": "4096", "kernel.sem": "250 32000 100 128"}
	})
	if got := p.Output(t, "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced /proc/sys/fs/mqueue/msg_max /proc/sys/kernel/msgmax"); got != "0\n1\n12\n4096\n" {
		t.Errorf("sysctls %q", got)
	}
	for name, edit := range map[string]func(*cri.PodSandboxConfig){
		"not namespaced": func(c *cri.PodSandboxConfig) { c.Linux.Sysctls = map[string]string{"kernel.panic": "1"} },
		"of the host's": func(c *cri.PodSandboxConfig) {
			c.Linux.Sysctls = map[string]string{"net.ipv4.ip_forward": "1"}
			network(c, cri.NamespaceMode_NODE)
		},
		"IPC of the host's": func(c *cri.PodSandboxConfig) {
			c.Linux.Sysctls = map[string]string{"kernel.shmmax": "65536"}
			c.Linux.SecurityContext.NamespaceOptions.Ipc = cri.NamespaceMode_NODE
		},
		"queues of the host's": func(c *cri.PodSandboxConfig) {
			c.Linux.Sysctls = map[string]string{"fs.mqueue.msg_max": "11"}
			c.Linux.SecurityContext.NamespaceOptions.Ipc = cri.NamespaceMode_NODE
		},
		"host name":        func(c *cri.PodSandboxConfig) { c.Linux.Sysctls = map[string]string{"kernel.hostname": "x"} },
		"domain name":      func(c *cri.PodSandboxConfig) { c.Linux.Sysctls = map[string]string{"kernel.domainname": "x"} },
		"core pattern":     func(c *cri.PodSandboxConfig) { c.Linux.Sysctls = map[string]string{"kernel.core_pattern": "x"} },
		"memory":           func(c *cri.PodSandboxConfig) { c.Linux.Sysctls = map[string]string{"vm.overcommit_memory": "1"} },
		"files":            func(c *cri.PodSandboxConfig) { c.Linux.Sysctls = map[string]string{"fs.file-max": "1"} },
		"with slashes":     func(c *cri.PodSandboxConfig) { c.Linux.Sysctls = map[string]string{"net/ipv4/ip_forward": "1"} },
		"with a new line":  func(c *cri.PodSandboxConfig) { c.Linux.Sysctls = map[string]string{"net.ipv4.ip_forward": "1\n0"} },
		"with a traversal": func(c *cri.PodSandboxConfig) { c.Linux.Sysctls = map[string]string{"net/../kernel/panic": "1"} },
	} {
		t.Run(name, func(t *testing.T) {
			skipOnPeer(t, "it leaves sysctls to the runtime")
			_, err := n.TryPod(t, n.PodConfig(t, edit))
			wantCode(t, err, codes.InvalidArgument)
		})
	}
}

// TestPodIdempotence repeats every call on pods.
func TestPodIdempotence(t *testing.T) {
	n := start(t)
	p := n.RunPod(t)
	must(t, p.Stop())
	must(t, p.Stop())
	must(t, p.Remove())
	must(t, p.Remove())
}

// TestJoin sends the same RunPodSandbox and CreateContainer many times at once:
// all get the one pod and the one container.
func TestJoin(t *testing.T) {
	skipOnPeer(t, "it says that the name is reserved")
	n := start(t)
	config := n.PodConfig(t)
	p := &node.Pod{Node: n, Config: config}
	p.ID = same(t, 64, func() (string, error) {
		ctx, cancel := node.Context()
		defer cancel()
		r, err := n.Runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: config})
		return r.GetPodSandboxId(), err
	})
	t.Cleanup(func() { must(t, p.Remove()) })
	one := node.ContainerConfig("one", "sleep 1000")
	id := same(t, 16, func() (string, error) {
		c, err := p.TryCreate(one)
		if err != nil {
			return "", err
		}
		return c.ID, nil
	})
	if list := containers(t, n, &cri.ContainerFilter{PodSandboxId: p.ID}); len(list) != 1 || list[0].Id != id {
		t.Errorf("containers %v", list)
	}
}

// same calls f n times at once and returns the one answer of all.
func same(t *testing.T, n int, f func() (string, error)) string {
	t.Helper()
	ids, errs := make([]string, n), make([]error, n)
	var wait sync.WaitGroup
	for i := range n {
		wait.Go(func() { ids[i], errs[i] = f() })
	}
	wait.Wait()
	for i := range n {
		if errs[i] != nil || ids[i] != ids[0] {
			t.Fatalf("call %d: %q, %v; the first got %q", i, ids[i], errs[i], ids[0])
		}
	}
	return ids[0]
}

// TestPodFilter lists by id, state and labels, which all must match.
func TestPodFilter(t *testing.T) {
	n := start(t)
	a := n.RunPod(t, func(c *cri.PodSandboxConfig) { c.Labels["which"] = "a" })
	b := n.RunPod(t, func(c *cri.PodSandboxConfig) { c.Labels["which"] = "b"; c.Metadata.Name += "b" })
	must(t, b.Stop())
	ready := &cri.PodSandboxStateValue{State: cri.PodSandboxState_SANDBOX_READY}
	for name, c := range map[string]struct {
		filter *cri.PodSandboxFilter
		want   []string
	}{
		"label":           {&cri.PodSandboxFilter{LabelSelector: map[string]string{"test": a.Config.Labels["test"], "which": "b"}}, []string{b.ID}},
		"both":            {&cri.PodSandboxFilter{LabelSelector: map[string]string{"test": a.Config.Labels["test"]}}, []string{a.ID, b.ID}},
		"state":           {&cri.PodSandboxFilter{LabelSelector: map[string]string{"test": a.Config.Labels["test"]}, State: ready}, []string{a.ID}},
		"id":              {&cri.PodSandboxFilter{Id: b.ID}, []string{b.ID}},
		"id and state":    {&cri.PodSandboxFilter{Id: b.ID, State: ready}, nil},
		"value of other":  {&cri.PodSandboxFilter{LabelSelector: map[string]string{"which": "c"}}, nil},
		"id that is none": {&cri.PodSandboxFilter{Id: "ffff"}, nil},
	} {
		ctx, cancel := node.Context()
		r, err := n.Runtime.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{Filter: c.filter})
		cancel()
		must(t, err)
		got := map[string]bool{}
		for _, p := range r.Items {
			got[p.Id] = true
		}
		ok := len(got) == len(c.want)
		for _, id := range c.want {
			ok = ok && got[id]
		}
		if !ok {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

// TestHostNetwork runs a pod in the node's network.
func TestHostNetwork(t *testing.T) {
	n := start(t)
	p := n.RunPod(t, func(c *cri.PodSandboxConfig) { network(c, cri.NamespaceMode_NODE); c.Hostname = "" })
	own, err := os.Readlink("/proc/self/ns/net")
	must(t, err)
	if got := strings.TrimSpace(p.Output(t, "readlink /proc/self/ns/net")); got != own {
		t.Errorf("network %s, the host's is %s", got, own)
	}
	if ip := p.IP(t); ip != "" {
		t.Errorf("a pod in the host's network has the address %q of its own", ip)
	}
	name, err := os.Hostname()
	must(t, err)
	if got := strings.TrimSpace(p.Output(t, "hostname")); got != name {
		t.Errorf("hostname %q, the host's is %q", got, name)
	}
}

func network(c *cri.PodSandboxConfig, mode cri.NamespaceMode) {
	c.Linux.SecurityContext.NamespaceOptions.Network = mode
}

func containers(t *testing.T, n *node.Node, filter *cri.ContainerFilter) []*cri.Container {
	t.Helper()
	ctx, cancel := node.Context()
	defer cancel()
	r, err := n.Runtime.ListContainers(ctx, &cri.ListContainersRequest{Filter: filter})
	must(t, err)
	return r.Containers
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantCode(t *testing.T, err error, want ...codes.Code) {
	t.Helper()
	got := status.Code(err)
	for _, w := range want {
		if got == w {
			return
		}
	}
	t.Errorf("code %v, want %v: %v", got, want, err)
}
