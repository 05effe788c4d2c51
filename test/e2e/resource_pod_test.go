package e2e

import (
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/test/node"
)

func updatePod(n *node.Node, id string, resources, overhead *cri.LinuxContainerResources) error {
	ctx, cancel := node.Context()
	defer cancel()
	_, err := n.Runtime.UpdatePodSandboxResources(ctx, &cri.UpdatePodSandboxResourcesRequest{PodSandboxId: id, Resources: resources, Overhead: overhead})
	return err
}

// podLimits are the contents of a pod's own cgroup.
func podLimits(t *testing.T, p *node.Pod) enforced {
	t.Helper()
	return enforcedBy(func(v1, v2 string) string { return p.PodLimit(t, v1, v2) })
}

func verbosePod(t *testing.T, p *node.Pod) string {
	t.Helper()
	ctx, cancel := node.Context()
	defer cancel()
	r, err := p.Node.Runtime.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: p.ID, Verbose: true})
	must(t, err)
	return r.Info["info"]
}

// TestPodResources gives a pod whose cgroup is noded's own limits as a whole,
// and changes them.
func TestPodResources(t *testing.T) {
	skipOnPeer(t, "it leaves them to others")
	n := start(t)
	p := n.RunPod(t, func(c *cri.PodSandboxConfig) {
		c.Linux.CgroupParent = ""
		c.Linux.Resources = &cri.LinuxContainerResources{CpuShares: 1000, CpuPeriod: 100000, CpuQuota: 50000, MemoryLimitInBytes: 64 << 20, CpusetCpus: "0"}
		c.Linux.Overhead = &cri.LinuxContainerResources{CpuShares: 24, CpuPeriod: 50000, CpuQuota: 5000, MemoryLimitInBytes: 16 << 20}
	})
	want := func(v1, v2 enforced) {
		t.Helper()
		if node.UnifiedCgroup() {
			v1 = v2
		}
		if got := podLimits(t, p); got != v1 {
			t.Errorf("%+v, want %+v", got, v1)
		}
	}
	want(enforced{"1024", "60000 100000", "83886080", "83886080", "0"}, enforced{"100", "60000 100000", "83886080", "0", "0"})
	c := p.Run(t, "sleep 1000", func(c *cri.ContainerConfig) { c.Linux.Resources.MemoryLimitInBytes = 32 << 20 })
	must(t, updatePod(n, p.ID, &cri.LinuxContainerResources{CpuShares: 488, MemoryLimitInBytes: 112 << 20, CpuQuota: 90000}, nil))
	want(enforced{"512", "100000 100000", "134217728", "134217728", "0"}, enforced{"59", "100000 100000", "134217728", "0", "0"})
	if info := verbosePod(t, p); !strings.Contains(info, `"memory_limit_in_bytes":117440512`) || !strings.Contains(info, `"memory_limit_in_bytes":16777216`) {
		t.Errorf("info %s", info)
	}
	// All or nothing: the CPUs exist and are in use by the container.
	for name, part := range map[string]struct {
		resources, overhead *cri.LinuxContainerResources
		code                codes.Code
		field               string
	}{
		"CPU that is not there":  {&cri.LinuxContainerResources{CpuShares: 99, CpusetCpus: "77"}, nil, codes.InvalidArgument, "cpuset_cpus"},
		"overhead out of range":  {&cri.LinuxContainerResources{CpuShares: 99}, &cri.LinuxContainerResources{CpuQuota: 10}, codes.InvalidArgument, "overhead: cpu_quota"},
		"memory that is in use":  {&cri.LinuxContainerResources{CpuShares: 99, MemoryLimitInBytes: 4096}, &cri.LinuxContainerResources{MemoryLimitInBytes: 4096}, codes.FailedPrecondition, "memory_limit_in_bytes"},
		"neither of the two":     {nil, nil, codes.InvalidArgument, "missing"},
		"unified key with slash": {&cri.LinuxContainerResources{Unified: map[string]string{"memory/high": "1"}}, nil, codes.InvalidArgument, "memory/high"},
	} {
		err := updatePod(n, p.ID, part.resources, part.overhead)
		wantCode(t, err, part.code)
		if err == nil || !strings.Contains(err.Error(), part.field) {
			t.Errorf("%s: %v", name, err)
		}
		want(enforced{"512", "100000 100000", "134217728", "134217728", "0"}, enforced{"59", "100000 100000", "134217728", "0", "0"})
	}
	if s := c.Status(t); s.State != cri.ContainerState_CONTAINER_RUNNING {
		t.Errorf("container is %v", s.State)
	}
	wantCode(t, updatePod(n, strings.Repeat("0f", 32), &cri.LinuxContainerResources{}, nil), codes.NotFound)
	must(t, p.Stop())
	wantCode(t, updatePod(n, p.ID, &cri.LinuxContainerResources{CpuShares: 99}, nil), codes.FailedPrecondition)
}

// TestPodResourcesRecorded has the kubelet own the pod's cgroup: noded writes
// the limits down and leaves the cgroup alone. A restart forgets nothing.
func TestPodResourcesRecorded(t *testing.T) {
	skipOnPeer(t, "it leaves them to others")
	n := node.New(t, node.Options{Binary: binary, Registry: registry})
	p := n.RunPod(t, func(c *cri.PodSandboxConfig) {
		c.Linux.Resources = &cri.LinuxContainerResources{MemoryLimitInBytes: 64 << 20}
		c.Linux.Overhead = &cri.LinuxContainerResources{MemoryLimitInBytes: 16 << 20}
	})
	if info := verbosePod(t, p); !strings.Contains(info, `"memory_limit_in_bytes":67108864`) || !strings.Contains(info, `"memory_limit_in_bytes":16777216`) {
		t.Errorf("info %s", info)
	}
	must(t, updatePod(n, p.ID, &cri.LinuxContainerResources{MemoryLimitInBytes: 32 << 20, CpuShares: 77}, &cri.LinuxContainerResources{CpuShares: 3}))
	n.Kill()
	must(t, n.Launch())
	info := verbosePod(t, p)
	for _, want := range []string{`"memory_limit_in_bytes":33554432`, `"cpu_shares":77`, `"cpu_shares":3`, `"memory_limit_in_bytes":16777216`} {
		if !strings.Contains(info, want) {
			t.Errorf("%s is not in %s", want, info)
		}
	}
	_, err := n.TryPod(t, n.PodConfig(t, func(c *cri.PodSandboxConfig) { c.Linux.Resources = &cri.LinuxContainerResources{CpuShares: 1} }))
	wantCode(t, err, codes.InvalidArgument)
}
