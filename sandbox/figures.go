package sandbox

import (
	"encoding/json"
	"maps"
	"slices"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/internal/cgroup"
)

// figures reads what the kernel enforces on the container, as status shows it
// until the next change: whole pages, CPU shares for a weight. pid is its first
// process. Where noded sees no cgroup of it (a runtime of virtual machines), nil.
func (c *Container) figures(asked *cri.LinuxContainerResources, pid int) json.RawMessage {
	dir := c.m.cgroups.Dir(c.record().Cgroup)
	group := c.m.cgroups.Open(dir)
	defer group.Close()
	limits, err := group.Limits()
	if err != nil {
		return nil
	}
	shown := inForce(asked, limits)
	if score, err := cgroup.OOMScore(pid); err == nil {
		shown.OomScoreAdj = int64(score)
	}
	if len(asked.GetUnified()) > 0 {
		shown.Unified = map[string]string{}
		saved, _ := c.m.cgroups.Save(dir, slices.Collect(maps.Keys(asked.Unified))...)
		for _, s := range saved {
			if _, ok := asked.Unified[s.File]; ok {
				shown.Unified[s.File] = s.Value
			}
		}
	}
	raw, err := encodeMessage(shown)
	if err != nil {
		return nil
	}
	return raw
}

// inForce tells limits in the CRI's words. No limit is -1 if that was asked
// for and 0 ("not specified") otherwise.
func inForce(asked *cri.LinuxContainerResources, l cgroup.Limits) *cri.LinuxContainerResources {
	unlimited := func(v uint64, asked int64) int64 {
		if v == cgroup.Unlimited {
			return min(asked, 0)
		}
		return int64(v)
	}
	shown := &cri.LinuxContainerResources{
		CpuShares: int64(l.SharesAs(uint64(max(asked.GetCpuShares(), 0)))), CpuPeriod: int64(l.CPUPeriod), CpuQuota: l.CPUQuota,
		CpusetCpus: l.CpusetCPUs, CpusetMems: l.CpusetMems,
		MemoryLimitInBytes:     unlimited(l.MemoryLimit, asked.GetMemoryLimitInBytes()),
		MemorySwapLimitInBytes: unlimited(l.MemorySwap, asked.GetMemorySwapLimitInBytes()),
	}
	if l.CPUQuota < 0 {
		shown.CpuQuota = min(asked.GetCpuQuota(), 0)
	}
	for _, size := range slices.Sorted(maps.Keys(l.HugePages)) {
		shown.HugepageLimits = append(shown.HugepageLimits, &cri.HugepageLimit{PageSize: size, Limit: l.HugePages[size]})
	}
	return shown
}
