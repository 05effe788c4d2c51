package e2e

import (
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/test/node"
)

// TestLimits reads from the kernel what was asked for, and after a change of it.
func TestLimits(t *testing.T) {
	n := start(t)
	p := n.RunPod(t)
	c := p.Run(t, "sleep 1000", func(c *cri.ContainerConfig) {
		c.Linux.Resources = &cri.LinuxContainerResources{CpuShares: 512, CpuPeriod: 100000, CpuQuota: 50000, MemoryLimitInBytes: 64 << 20, CpusetCpus: "0", CpusetMems: "0", OomScoreAdj: 500}
	})
	assertLimits(t, c, limits{"512", "59", "100000", "50000", "67108864", "0"})
	if got := c.Shell(t, "cat /proc/1/oom_score_adj /proc/self/oom_score_adj"); got != "500\n500\n" {
		t.Errorf("oom_score_adj %q", got)
	}
	must(t, update(n, c.ID, &cri.LinuxContainerResources{CpuShares: 256, CpuPeriod: 50000, CpuQuota: 10000, MemoryLimitInBytes: 128 << 20, CpusetCpus: "0-1"}))
	assertLimits(t, c, limits{"256", "35", "50000", "10000", "134217728", "0-1"})
	if noded() {
		if r := c.Status(t).GetResources().GetLinux(); r.GetCpuShares() != 256 || r.GetMemoryLimitInBytes() != 128<<20 || r.GetCpusetCpus() != "0-1" {
			t.Errorf("status tells %v", r)
		}
		wantCode(t, update(n, c.ID, &cri.LinuxContainerResources{CpuShares: 300, CpusetCpus: "99"}), codes.InvalidArgument)
		assertLimits(t, c, limits{"256", "35", "50000", "10000", "134217728", "0-1"}) // all or nothing
		wantCode(t, update(n, ended(t, p), &cri.LinuxContainerResources{CpuShares: 300}), codes.FailedPrecondition)
	}
}

func update(n *node.Node, id string, r *cri.LinuxContainerResources) error {
	ctx, cancel := node.Context()
	defer cancel()
	_, err := n.Runtime.UpdateContainerResources(ctx, &cri.UpdateContainerResourcesRequest{ContainerId: id, Linux: r})
	return err
}

// limits are the contents of cgroup files. Runtimes make a weight for v2 of the
// shares.
type limits struct{ shares, weight, period, quota, memory, cpus string }

func assertLimits(t *testing.T, c *node.Container, l limits) {
	t.Helper()
	want := []string{l.shares, l.quota, l.memory, l.cpus}
	if node.UnifiedCgroup() {
		want[0], want[1] = l.weight, l.quota+" "+l.period
	} else if got := c.Limit(t, "cpu.cfs_period_us", ""); got != l.period {
		t.Errorf("cpu.cfs_period_us is %q, want %q", got, l.period)
	}
	got := []string{c.Limit(t, "cpu.shares", "cpu.weight"), c.Limit(t, "cpu.cfs_quota_us", "cpu.max"),
		c.Limit(t, "memory.limit_in_bytes", "memory.max"), c.Limit(t, "cpuset.cpus", "cpuset.cpus")}
	if !slices.Equal(got, want) {
		t.Errorf("shares, quota, memory and cpus are %q, want %q", got, want)
	}
}

// TestUnified sets files of cgroup v2 by name.
func TestUnified(t *testing.T) {
	n := start(t)
	p := n.RunPod(t)
	ask := func(c *cri.ContainerConfig) {
		c.Linux.Resources = &cri.LinuxContainerResources{Unified: map[string]string{"memory.high": "33554432", "memory.oom.group": "1", "pids.max": "50"}}
	}
	if !node.UnifiedCgroup() {
		config := node.ContainerConfig("c", "true")
		ask(config)
		_, err := p.TryCreate(config)
		wantCode(t, err, codes.InvalidArgument)
		return
	}
	c := p.Run(t, "sleep 1000", ask)
	for file, want := range map[string]string{"memory.high": "33554432", "memory.oom.group": "1", "pids.max": "50"} {
		if got := c.Limit(t, file, file); got != want {
			t.Errorf("%s is %q, want %q", file, got, want)
		}
	}
	must(t, update(n, c.ID, &cri.LinuxContainerResources{Unified: map[string]string{"memory.high": "16777216"}}))
	if got := c.Limit(t, "memory.high", "memory.high"); got != "16777216" {
		t.Errorf("memory.high is %q after the update", got)
	}
}

// TestOOMScore asks for a score that only a fully privileged daemon may set:
// the container starts all the same.
func TestOOMScore(t *testing.T) {
	n := start(t)
	p := n.RunPod(t)
	p.Output(t, "true", func(c *cri.ContainerConfig) { c.Linux.Resources.OomScoreAdj = -998 })
}

// TestStats checks that the figures are of this container and move.
func TestStats(t *testing.T) {
	n := start(t)
	p := n.RunPod(t)
	c := p.Run(t, "head -c 3000000 /dev/urandom >/file; x=$(head -c 4000000 /dev/zero | tr '\\0' x); sleep 1000; echo $x")
	p.Run(t, "sleep 1000")
	ctx, cancel := node.Context()
	defer cancel()
	var s *cri.ContainerStats
	node.Eventually(t, "figures are there", 20*time.Second, func() bool { // the peer collects them every ten seconds
		r, err := n.Runtime.ContainerStats(ctx, &cri.ContainerStatsRequest{ContainerId: c.ID})
		must(t, err)
		s = r.Stats
		return s.GetMemory().GetWorkingSetBytes().GetValue() > 3<<20 && s.GetWritableLayer().GetUsedBytes().GetValue() > 2900000
	})
	if s.Attributes.GetId() != c.ID || s.Attributes.GetMetadata().GetName() != c.Config.Metadata.Name || s.Attributes.Labels["container"] == "" {
		t.Errorf("attributes %v", s.Attributes)
	}
	now := time.Now().UnixNano()
	if s.Cpu.GetUsageCoreNanoSeconds().GetValue() == 0 || now-s.Cpu.Timestamp > int64(30*time.Second) || s.Cpu.Timestamp > now {
		t.Errorf("cpu %v", s.Cpu)
	}
	if u := s.WritableLayer; u.GetInodesUsed().GetValue() == 0 || u.GetFsId().GetMountpoint() == "" || u.GetUsedBytes().GetValue() > 100<<20 {
		t.Errorf("writable layer %v", u)
	}
	list, err := n.Runtime.ListContainerStats(ctx, &cri.ListContainerStatsRequest{Filter: &cri.ContainerStatsFilter{PodSandboxId: p.ID}})
	must(t, err)
	if len(list.Stats) != 2 {
		t.Errorf("the pod has figures of %d containers", len(list.Stats))
	}
	if !noded() {
		return // 1.6 has no pods' figures on this kernel
	}
	pod, err := n.Runtime.PodSandboxStats(ctx, &cri.PodSandboxStatsRequest{PodSandboxId: p.ID})
	must(t, err)
	l := pod.Stats.GetLinux()
	if pod.Stats.GetAttributes().GetId() != p.ID || len(l.GetContainers()) != 2 || l.GetCpu().GetUsageCoreNanoSeconds().GetValue() == 0 ||
		l.GetMemory().GetWorkingSetBytes().GetValue() == 0 || l.GetProcess().GetProcessCount().GetValue() < 2 || l.GetNetwork().GetDefaultInterface().GetName() != "eth0" {
		t.Errorf("pod's figures %v", pod.Stats)
	}
	pods, err := n.Runtime.ListPodSandboxStats(ctx, &cri.ListPodSandboxStatsRequest{Filter: &cri.PodSandboxStatsFilter{Id: p.ID}})
	must(t, err)
	if len(pods.Stats) != 1 {
		t.Errorf("figures of %d pods", len(pods.Stats))
	}
}

// TestNode asks about the node itself.
func TestNode(t *testing.T) {
	n := start(t)
	ctx, cancel := node.Context()
	defer cancel()
	v, err := n.Runtime.Version(ctx, &cri.VersionRequest{})
	must(t, err)
	if v.RuntimeApiVersion != "v1" || v.RuntimeName == "" || v.RuntimeVersion == "" {
		t.Errorf("version %v", v)
	}
	s, err := n.Runtime.Status(ctx, &cri.StatusRequest{Verbose: true})
	must(t, err)
	if len(s.Status.Conditions) < 2 {
		t.Errorf("conditions %v", s.Status.Conditions)
	}
	_, err = n.Runtime.UpdateRuntimeConfig(ctx, &cri.UpdateRuntimeConfigRequest{RuntimeConfig: &cri.RuntimeConfig{}})
	must(t, err)
	if !noded() {
		return
	}
	names := map[string]bool{}
	for _, h := range s.RuntimeHandlers {
		names[h.Name] = h.GetFeatures().GetRecursiveReadOnlyMounts()
	}
	if !names[""] || !names["runc"] {
		t.Errorf("handlers %v", s.RuntimeHandlers)
	}
	c, err := n.Runtime.RuntimeConfig(ctx, &cri.RuntimeConfigRequest{})
	must(t, err)
	if c.GetLinux().GetCgroupDriver() != cri.CgroupDriver_CGROUPFS {
		t.Errorf("driver %v", c)
	}
	_, err = n.Runtime.CheckpointContainer(ctx, &cri.CheckpointContainerRequest{ContainerId: "c", Location: "/checkpoint.tar"})
	wantCode(t, err, codes.Unimplemented)
	_, err = n.Runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: n.PodConfig(t), RuntimeHandler: "no-such"})
	wantCode(t, err, codes.NotFound)
}
