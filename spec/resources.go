package spec

import (
	"slices"

	rspec "github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/internal/kind"
)

// applyResources sets the limits; the devices rule has filled its own part.
func applyResources(in *Input, s *rspec.Spec) error {
	r, err := Resources(in.Container.GetLinux().GetResources(), in.Facts)
	if err != nil {
		return err
	}
	r.Devices = s.Linux.Resources.Devices
	if in.PidsLimit > 0 {
		r.Pids = &rspec.LinuxPids{Limit: ptr(in.PidsLimit)}
	}
	s.Linux.Resources = r
	return nil
}

// Resources translates limits, for a new container and for an update. What is
// not specified (zero) is left out, so that an update does not touch it. Memory
// is in bytes, CPU times in microseconds.
func Resources(r *cri.LinuxContainerResources, f Facts) (*rspec.LinuxResources, error) {
	if err := validateResources(r); err != nil {
		return nil, err
	}
	if err := validateOnNode(r, f); err != nil {
		return nil, err
	}
	out := &rspec.LinuxResources{CPU: cpuLimits(r), Memory: memoryLimits(r, f)}
	var err error
	if out.HugepageLimits, err = hugePages(r, f); err != nil {
		return nil, err
	}
	if len(r.GetUnified()) > 0 {
		if !f.CgroupV2 {
			return nil, kind.Errorf(kind.Invalid, "unified resources need cgroup v2, this node has v1")
		}
		out.Unified = r.GetUnified()
	}
	return out, nil
}

func cpuLimits(r *cri.LinuxContainerResources) *rspec.LinuxCPU {
	cpu := rspec.LinuxCPU{Cpus: r.GetCpusetCpus(), Mems: r.GetCpusetMems()}
	if v := r.GetCpuShares(); v != 0 {
		cpu.Shares = ptr(uint64(v))
	}
	if v := r.GetCpuQuota(); v != 0 {
		cpu.Quota = ptr(v)
	}
	if v := r.GetCpuPeriod(); v != 0 {
		cpu.Period = ptr(uint64(v))
	}
	if cpu == (rspec.LinuxCPU{}) {
		return nil
	}
	return &cpu
}

// memoryLimits forbids swap where nothing else is asked: a limit on memory
// alone would let the container grow into the node's swap.
func memoryLimits(r *cri.LinuxContainerResources, f Facts) *rspec.LinuxMemory {
	var memory rspec.LinuxMemory
	limit, swap := r.GetMemoryLimitInBytes(), r.GetMemorySwapLimitInBytes()
	if limit != 0 {
		memory.Limit = ptr(limit)
	}
	if f.Swap {
		if swap == 0 {
			swap = limit
		}
		if swap != 0 {
			memory.Swap = ptr(swap)
		}
	}
	if memory == (rspec.LinuxMemory{}) {
		return nil
	}
	return &memory
}

func swapWarning(in *Input) string {
	r := in.Container.GetLinux().GetResources()
	if in.Facts.Swap || r.GetMemorySwapLimitInBytes() == 0 || r.GetMemorySwapLimitInBytes() == r.GetMemoryLimitInBytes() {
		return ""
	}
	return "the kernel does not account for swap; swap limits are not applied"
}

// hugePages keeps the limits of sizes that the node can limit. The kubelet
// sends one of zero for every size; where the controller is missing they are
// left out.
func hugePages(r *cri.LinuxContainerResources, f Facts) ([]rspec.LinuxHugepageLimit, error) {
	var limits []rspec.LinuxHugepageLimit
	for _, h := range r.GetHugepageLimits() {
		if len(f.HugePages) == 0 {
			continue
		}
		if !slices.Contains(f.HugePages, h.GetPageSize()) {
			return nil, kind.Errorf(kind.Invalid, "huge page size %q is not one of this node's %v", clip(h.GetPageSize()), f.HugePages)
		}
		limits = append(limits, rspec.LinuxHugepageLimit{Pagesize: h.GetPageSize(), Limit: h.GetLimit()})
	}
	return limits, nil
}

func hugePagesWarning(in *Input) string {
	if len(in.Facts.HugePages) > 0 {
		return ""
	}
	for _, h := range in.Container.GetLinux().GetResources().GetHugepageLimits() {
		if h.GetLimit() > 0 {
			return "there is no hugetlb controller; huge page limits are not applied"
		}
	}
	return ""
}

// MergeResources is what a container has after an update: the update's values,
// and the old ones where it specifies none. A new memory limit alone makes the
// swap limit follow it, as Resources does.
func MergeResources(old, update *cri.LinuxContainerResources) *cri.LinuxContainerResources {
	swap := choose(update.GetMemorySwapLimitInBytes(), old.GetMemorySwapLimitInBytes())
	if update.GetMemoryLimitInBytes() != 0 {
		swap = update.GetMemorySwapLimitInBytes()
	}
	return &cri.LinuxContainerResources{
		CpuPeriod:              choose(update.GetCpuPeriod(), old.GetCpuPeriod()),
		CpuQuota:               choose(update.GetCpuQuota(), old.GetCpuQuota()),
		CpuShares:              choose(update.GetCpuShares(), old.GetCpuShares()),
		MemoryLimitInBytes:     choose(update.GetMemoryLimitInBytes(), old.GetMemoryLimitInBytes()),
		OomScoreAdj:            choose(update.GetOomScoreAdj(), old.GetOomScoreAdj()),
		CpusetCpus:             choose(update.GetCpusetCpus(), old.GetCpusetCpus()),
		CpusetMems:             choose(update.GetCpusetMems(), old.GetCpusetMems()),
		MemorySwapLimitInBytes: swap,
		HugepageLimits:         mergeHugePages(old.GetHugepageLimits(), update.GetHugepageLimits()),
		Unified:                mergeUnified(old.GetUnified(), update.GetUnified()),
	}
}

func mergeHugePages(old, update []*cri.HugepageLimit) []*cri.HugepageLimit {
	merged := slices.Clone(update)
	for _, o := range old {
		if !slices.ContainsFunc(update, func(u *cri.HugepageLimit) bool { return u.GetPageSize() == o.GetPageSize() }) {
			merged = append(merged, o)
		}
	}
	return merged
}

func mergeUnified(old, update map[string]string) map[string]string {
	if len(old)+len(update) == 0 {
		return nil
	}
	merged := map[string]string{}
	for _, m := range []map[string]string{old, update} {
		for k, v := range m {
			merged[k] = v
		}
	}
	return merged
}

func choose[T comparable](first, second T) T {
	var zero T
	if first != zero {
		return first
	}
	return second
}

func ptr[T any](v T) *T { return &v }
