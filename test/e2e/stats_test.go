package e2e

import (
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/test/node"
)

// containerStats measures one container.
func containerStats(t *testing.T, n *node.Node, id string) *cri.ContainerStats {
	t.Helper()
	ctx, cancel := node.Context()
	defer cancel()
	r, err := n.Runtime.ContainerStats(ctx, &cri.ContainerStatsRequest{ContainerId: id})
	must(t, err)
	return r.Stats
}

// TestCPURate has one container that uses a CPU and one that sleeps; the rate
// comes of the second read.
func TestCPURate(t *testing.T) {
	skipOnPeer(t, "it polls")
	n := start(t)
	p := n.RunPod(t)
	busy, idle := p.Run(t, "while :; do :; done"), p.Run(t, "sleep 1000")
	for _, c := range []*node.Container{busy, idle} {
		if s := containerStats(t, n, c.ID); s.Cpu.UsageNanoCores != nil {
			t.Errorf("the first read knows a rate: %v", s.Cpu)
		}
	}
	before := containerStats(t, n, busy.ID).Cpu
	node.Eventually(t, "half a second of CPU is used", 30*time.Second, func() bool {
		s := containerStats(t, n, busy.ID).Cpu
		return s.GetUsageCoreNanoSeconds().GetValue() > before.GetUsageCoreNanoSeconds().GetValue()+5e8 && s.GetUsageNanoCores().GetValue() > 1e7
	})
	if s := containerStats(t, n, idle.ID).Cpu; s.UsageNanoCores == nil || s.GetUsageNanoCores().GetValue() > 1e8 {
		t.Errorf("the sleeper: %v", s)
	}
}

// TestStatsOfLimits has figures that depend on limits: what a limit leaves is
// there where there is one, and a pod's tasks are counted with its threads.
func TestStatsOfLimits(t *testing.T) {
	skipOnPeer(t, "it gives zeros")
	n := start(t)
	p := n.RunPod(t)
	limited := p.Run(t, "sleep 1000 & sleep 1000 & wait", func(c *cri.ContainerConfig) { c.Linux.Resources.MemoryLimitInBytes = 64 << 20 })
	free := p.Run(t, "sleep 1000")
	node.Eventually(t, "its three processes run", 10*time.Second, func() bool { return len(limited.Pids(t)) == 3 })
	m := containerStats(t, n, limited.ID).Memory
	if left := m.GetAvailableBytes().GetValue(); left == 0 || left+m.GetWorkingSetBytes().GetValue() != 64<<20 {
		t.Errorf("of 64 MiB: %v", m)
	}
	if m := containerStats(t, n, free.ID).Memory; m.AvailableBytes != nil || m.GetUsageBytes().GetValue() == 0 {
		t.Errorf("without a limit: %v", m)
	}
	ctx, cancel := node.Context()
	defer cancel()
	pod, err := n.Runtime.PodSandboxStats(ctx, &cri.PodSandboxStatsRequest{PodSandboxId: p.ID})
	must(t, err)
	l := pod.Stats.GetLinux()
	// All pods of the tests share a cgroup.
	if l.GetProcess().GetProcessCount().GetValue() < 4 || l.GetProcess().GetTimestamp() == 0 {
		t.Errorf("processes: %v", l.Process)
	}
	before := l.GetNetwork().GetDefaultInterface()
	if before.GetName() != "eth0" || len(l.Network.Interfaces) != 0 || l.Network.Timestamp == 0 {
		t.Fatalf("network: %v", l.Network)
	}
	limited.Shell(t, "ping -c 3 -s 1000 "+n.Subnet[:len(n.Subnet)-4]+"1 >/dev/null || true")
	pod, err = n.Runtime.PodSandboxStats(ctx, &cri.PodSandboxStatsRequest{PodSandboxId: p.ID})
	must(t, err)
	if after := pod.Stats.Linux.Network.DefaultInterface; after.GetTxBytes().GetValue() < before.GetTxBytes().GetValue()+3000 {
		t.Errorf("3000 bytes were sent: %v, then %v", before, after)
	}
	if got := []string{l.Containers[0].Attributes.Id, l.Containers[1].Attributes.Id}; got[0] != limited.ID || got[1] != free.ID {
		t.Errorf("containers %v, want the older first", got)
	}
}

// TestStatsOfSixtyPods measures what a kubelet's question every ten seconds
// costs.
func TestStatsOfSixtyPods(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes a while")
	}
	n := start(t)
	const pods = 60
	for range pods {
		n.RunPod(t).Run(t, "mkdir -p /d/1/2 /d/3; for i in 1 2 3 4 5 6 7 8; do echo x >/d/$i.txt; done; sleep 1000")
	}
	ctx, cancel := node.Context()
	defer cancel()
	best := time.Hour
	for range 20 {
		begin := time.Now()
		r, err := n.Runtime.ListPodSandboxStats(ctx, &cri.ListPodSandboxStatsRequest{})
		must(t, err)
		best = min(best, time.Since(begin))
		if len(r.Stats) != pods {
			t.Fatalf("figures of %d pods", len(r.Stats))
		}
	}
	t.Logf("ListPodSandboxStats of %d pods: %v at best", pods, best)
}
