package e2e

import (
	"os"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/test/node"
)

// ns is the namespace that a container is in.
func ns(t *testing.T, c *node.Container, kind string) string {
	t.Helper()
	return strings.TrimSpace(c.Shell(t, "readlink /proc/self/ns/"+kind))
}

func hostNS(t *testing.T, kind string) string {
	t.Helper()
	name, err := os.Readlink("/proc/self/ns/" + kind)
	must(t, err)
	return name
}

// TestNamespaces checks every mode of every kind: which containers share a
// namespace with each other and with the host.
func TestNamespaces(t *testing.T) {
	n := start(t)
	const pod, container, host = cri.NamespaceMode_POD, cri.NamespaceMode_CONTAINER, cri.NamespaceMode_NODE
	for name, c := range map[string]struct {
		net, pid, ipc cri.NamespaceMode
		shared        map[string]bool // with the other container of the pod
		hosts         map[string]bool
	}{
		"usual":       {pod, container, pod, map[string]bool{"net": true, "ipc": true, "uts": true}, nil},
		"pod's pid":   {pod, pod, pod, map[string]bool{"net": true, "ipc": true, "uts": true, "pid": true}, nil},
		"host's pid":  {pod, host, pod, map[string]bool{"net": true, "ipc": true, "uts": true, "pid": true}, map[string]bool{"pid": true}},
		"host's ipc":  {pod, container, host, map[string]bool{"net": true, "ipc": true, "uts": true}, map[string]bool{"ipc": true}},
		"host's net":  {host, container, pod, map[string]bool{"net": true, "ipc": true, "uts": true}, map[string]bool{"net": true, "uts": true}},
		"own net":     {container, container, pod, map[string]bool{"ipc": true, "uts": true}, nil},
		"own ipc":     {pod, container, container, map[string]bool{"net": true, "uts": true}, nil},
		"all own":     {container, container, container, map[string]bool{"uts": true}, nil},
		"all of host": {host, host, host, map[string]bool{"net": true, "ipc": true, "uts": true, "pid": true}, map[string]bool{"net": true, "uts": true, "pid": true, "ipc": true}},
	} {
		t.Run(name, func(t *testing.T) {
			if c.net == container || c.ipc == container {
				skipOnPeer(t, "it has no network or IPC namespace for each container")
			}
			p := n.RunPod(t, func(config *cri.PodSandboxConfig) {
				config.Linux.SecurityContext.NamespaceOptions = &cri.NamespaceOption{Network: c.net, Pid: c.pid, Ipc: c.ipc}
				if c.net == host {
					config.Hostname = "" // as a kubelet has it
				}
			})
			a, b := p.Run(t, "sleep 1000"), p.Run(t, "sleep 1000")
			for _, kind := range []string{"net", "pid", "ipc", "uts", "mnt"} {
				x, y := ns(t, a, kind), ns(t, b, kind)
				if (x == y) != c.shared[kind] {
					t.Errorf("%s: the containers are in %s and %s", kind, x, y)
				}
				if (x == hostNS(t, kind)) != c.hosts[kind] {
					t.Errorf("%s: the container is in %s, the host in %s", kind, x, hostNS(t, kind))
				}
			}
		})
	}
}

// TestTarget puts a container into the process namespace of another.
func TestTarget(t *testing.T) {
	n := start(t)
	p := n.RunPod(t)
	a := p.Run(t, "exec sleep 1234")
	b := p.Run(t, "sleep 1000", func(c *cri.ContainerConfig) {
		namespaces(c).Pid, namespaces(c).TargetId = cri.NamespaceMode_TARGET, a.ID
	})
	if x, y := ns(t, a, "pid"), ns(t, b, "pid"); x != y {
		t.Errorf("target is in %s, the other in %s", x, y)
	}
	if got := b.Shell(t, "cat /proc/1/cmdline | tr '\\0' ' '"); got != "sleep 1234 " {
		t.Errorf("process 1 is %q", got)
	}
}

// TestSharedPIDReaps checks that a pod's own init collects orphans, and that
// the end of one container is not that of the pod.
func TestSharedPIDReaps(t *testing.T) {
	skipOnPeer(t, "its pause image here reaps nothing")
	n := start(t)
	p := n.RunPod(t, func(c *cri.PodSandboxConfig) { c.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD })
	a := p.Run(t, "sleep 1000")
	p.Output(t, "(sleep 0.2 & exit) ; exit")
	// The end of an orphan in another container is no event here.
	node.Eventually(t, "no zombie is left", 5*time.Second, func() bool {
		return a.Shell(t, "cat /proc/[0-9]*/stat | awk '$3==\"Z\"' | wc -l") == "0\n"
	})
	if s := a.Status(t); s.State != cri.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the other container is %v", s.State)
	}
}

// TestHostPort reaches a published port from another machine, by IPv4.
func TestHostPort(t *testing.T) {
	n := start(t)
	port, err := node.FreePort()
	must(t, err)
	p := n.RunPod(t, func(c *cri.PodSandboxConfig) {
		c.PortMappings = []*cri.PortMapping{{Protocol: cri.Protocol_TCP, ContainerPort: 80, HostPort: int32(port)}, {Protocol: cri.Protocol_TCP, ContainerPort: 81, HostPort: 0}}
	})
	p.Run(t, "mkdir /www; echo published >/www/index.html; exec httpd -f -p 80 -h /www")
	outside := node.NewOutside(t)
	if got, err := outside.Get(port); err != nil || got != "published\n" {
		t.Errorf("from outside: %q, %v", got, err)
	}
	client := n.RunPod(t, func(c *cri.PodSandboxConfig) { c.Metadata.Name += "-client" })
	if got := client.Output(t, "wget -qO- http://"+p.IP(t)+"/"); got != "published\n" {
		t.Errorf("from another pod: %q", got)
	}
	must(t, p.Stop())
	if got, err := outside.Once(port); err == nil {
		t.Errorf("after the pod's end the port answers %q", got)
	}
}
