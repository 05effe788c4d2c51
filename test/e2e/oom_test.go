package e2e

import (
	"regexp"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/test/node"
)

func memory(bytes int64) func(*cri.ContainerConfig) {
	return func(c *cri.ContainerConfig) { c.Linux.Resources.MemoryLimitInBytes = bytes }
}

// oomMessage is what an OOM-killed container's message has to say; who was
// killed is known where the kernel's log can be read.
var oomMessage = regexp.MustCompile(`^out of memory: the (container|pod) reached its limit of \d+ bytes.*(killed "\S+" \(pid \d+ on the node\)|\d+ of its processes killed)`)

// TestOOM checks the reason of ends that memory did, or did not, have a part in.
func TestOOM(t *testing.T) {
	skipOnPeer(t, "it says OOMKilled of whatever had a child killed")
	n := start(t)
	p := n.RunPod(t)
	const victim = "tail /dev/zero; "
	for name, c := range map[string]struct {
		script string
		end    func(t *testing.T, c *node.Container) // nil: it ends by itself
		code   int32
		reason string
	}{
		"the first process":          {"exec tail /dev/zero", nil, 137, "OOMKilled"},
		"a child, passed on":         {victim + "exit $?", nil, 137, "OOMKilled"},
		"a child, handled":           {victim + "exit 4", nil, 4, "Error"},
		"a child, survived":          {victim + "exit 0", nil, 0, "Completed"},
		"a child, then stopped":      {victim + "trap 'exit 143' TERM; echo ready; while :; do sleep 0.05; done", func(t *testing.T, c *node.Container) { must(t, c.Stop(10*time.Second)) }, 143, "Error"},
		"a child, then ended well":   {victim + "trap 'exit 0' TERM; echo ready; while :; do sleep 0.05; done", func(t *testing.T, c *node.Container) { must(t, c.Stop(10*time.Second)) }, 0, "Completed"},
		"a child, then killed":       {victim + "echo ready; exec sleep 1000", func(t *testing.T, c *node.Container) { must(t, c.Stop(0)) }, 137, "Error"},
		"a child, then out of grace": {victim + "trap '' TERM; echo ready; while :; do sleep 0.05; done", func(t *testing.T, c *node.Container) { must(t, c.Stop(time.Second)) }, 137, "Error"},
	} {
		t.Run(name, func(t *testing.T) {
			ctr := p.Run(t, c.script, memory(16<<20))
			if c.end != nil {
				node.Eventually(t, "the child is dead", 20*time.Second, func() bool { return ctr.Log(t).Text() != "" })
				c.end(t, ctr)
			}
			s := ctr.WaitExit(t)
			if s.ExitCode != c.code || s.Reason != c.reason {
				t.Errorf("code %d, reason %q, message %q", s.ExitCode, s.Reason, s.Message)
			}
			// The kubelet puts the message before what the application says.
			if oom := c.reason == "OOMKilled"; oom != (s.Message != "") || oom && (!oomMessage.MatchString(s.Message) || !strings.Contains(s.Message, "16777216 bytes")) {
				t.Errorf("message %q", s.Message)
			}
		})
	}
}

// TestOOMOfPod runs a container without a limit in a pod that has one.
func TestOOMOfPod(t *testing.T) {
	skipOnPeer(t, "it leaves a pod's limits to others")
	n := start(t)
	p := n.RunPod(t, func(c *cri.PodSandboxConfig) {
		c.Linux.CgroupParent = ""
		c.Linux.Resources = &cri.LinuxContainerResources{MemoryLimitInBytes: 24 << 20}
	})
	c := p.Run(t, "exec tail /dev/zero")
	s := c.WaitExit(t)
	if s.ExitCode != 137 || s.Reason != "OOMKilled" || !strings.Contains(s.Message, "the pod reached its limit of 25165824 bytes") || !oomMessage.MatchString(s.Message) {
		t.Errorf("code %d, reason %q, message %q", s.ExitCode, s.Reason, s.Message)
	}
}

// TestOOMAcrossRestart has the daemon die between the death of a child and the
// container's own end: the count is the kernel's and nothing is forgotten.
func TestOOMAcrossRestart(t *testing.T) {
	skipOnPeer(t, "it forgets")
	n := node.New(t, node.Options{Binary: binary, Registry: registry})
	_, err := n.Pull(node.Image)
	must(t, err)
	p := n.RunPod(t)
	ends := p.Run(t, "sleep 3; exec tail /dev/zero", memory(16<<20))
	killed := p.Run(t, "tail /dev/zero; trap '' TERM; echo ready; while :; do sleep 0.05; done", memory(16<<20))
	node.Eventually(t, "the child is dead", 20*time.Second, func() bool { return killed.Log(t).Text() != "" })
	n.Kill()
	node.Eventually(t, "the container ends while there is no daemon", 20*time.Second, func() bool { return len(ends.Pids(t)) == 0 })
	must(t, n.Launch())
	must(t, killed.Stop(0))
	if s := ends.WaitExit(t); s.ExitCode != 137 || s.Reason != "OOMKilled" {
		t.Errorf("code %d, reason %q, message %q", s.ExitCode, s.Reason, s.Message)
	}
	if s := killed.WaitExit(t); s.ExitCode != 137 || s.Reason != "Error" {
		t.Errorf("code %d, reason %q, message %q", s.ExitCode, s.Reason, s.Message)
	}
}
