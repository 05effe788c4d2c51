package cgroup

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Limits is what the kernel enforces on one cgroup now, in the units of the
// CRI's LinuxContainerResources. It ignores limits of the cgroups above.
type Limits struct {
	CPUShares   uint64 // v1 unit, 2 to 262144; converted from the weight on v2
	CPUWeight   uint64 // what v2 has instead, 1 to 10000; 0 on v1
	CPUQuota    int64  // microseconds per period; -1 if there is no quota
	CPUPeriod   uint64 // microseconds
	CpusetCPUs  string
	CpusetMems  string
	MemoryLimit uint64            // bytes; Unlimited if none
	MemorySwap  uint64            // bytes of memory and swap together; Unlimited if none
	PidsLimit   uint64            // Unlimited if none
	HugePages   map[string]uint64 // bytes by page size ("2MB"); sizes without a limit are left out
}

// Limits reads the limits. What a missing controller would limit is zero, or
// Unlimited, or -1 for the quota.
func (g *Group) Limits() (Limits, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	l := Limits{CPUQuota: -1, MemoryLimit: Unlimited, MemorySwap: Unlimited, PidsLimit: Unlimited}
	cpu, memory := g.cpuLimitsV1, g.memoryLimitsV1
	if g.v2("cpu") {
		cpu = g.cpuLimitsV2
	}
	if g.v2("memory") {
		memory = g.memoryLimitsV2
	}
	err := errors.Join(optional(cpu(&l)), optional(memory(&l)), optional(g.cpusetLimits(&l)), optional(g.hugeLimits(&l)))
	if n, pidsErr := g.number("pids", "pids.max"); pidsErr == nil {
		l.PidsLimit = n
	} else {
		err = errors.Join(err, optional(pidsErr))
	}
	if err != nil {
		return Limits{}, fmt.Errorf("read limits of cgroup %s: %w", g.dir, err)
	}
	return l, nil
}

func (g *Group) cpuLimitsV1(l *Limits) error {
	var err1, err2 error
	l.CPUShares, err1 = g.number("cpu", "cpu.shares")
	l.CPUPeriod, err2 = g.number("cpu", "cpu.cfs_period_us")
	if err := cmp.Or(err1, err2); err != nil {
		return err
	}
	b, err := g.read("cpu", "cpu.cfs_quota_us")
	if err != nil {
		return err
	}
	l.CPUQuota, err = strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	return err
}

func (g *Group) cpuLimitsV2(l *Limits) error {
	weight, err := g.number("cpu", "cpu.weight")
	if err != nil {
		return err
	}
	l.CPUWeight, l.CPUShares = weight, sharesOf(weight)
	b, err := g.read("cpu", "cpu.max") // "max 100000"
	if err != nil {
		return err
	}
	quota, period, ok := strings.Cut(strings.TrimSpace(string(b)), " ")
	if !ok {
		return fmt.Errorf("parse cpu.max %q", b)
	}
	if l.CPUPeriod, err = strconv.ParseUint(period, 10, 64); err != nil {
		return fmt.Errorf("parse cpu.max: %w", err)
	}
	if quota != "max" {
		if l.CPUQuota, err = strconv.ParseInt(quota, 10, 64); err != nil {
			return fmt.Errorf("parse cpu.max: %w", err)
		}
	}
	return nil
}

// sharesOf inverts the conversion that runtimes have used since 2025 (runc
// 1.3.2, crun 1.23), which maps shares 2, 1024 and 262144 to the weights 1, 100
// and 10000: weight = 10^((x*x + 125x)/612 - 7/34) with x = log2(shares).
func sharesOf(weight uint64) uint64 {
	y := 612 * (math.Log10(float64(max(weight, 1))) + 7.0/34)
	x := (-125 + math.Sqrt(125*125+4*y)) / 2
	return uint64(min(max(math.Round(math.Exp2(x)), 2), 262144))
}

// SharesAs gives the CPU shares in force as a requester knows them: a v2 weight
// stands for several, so where it is what runtimes make of the shares asked
// for, those are the answer.
func (l Limits) SharesAs(asked uint64) uint64 {
	if l.CPUWeight != 0 && asked != 0 && (l.CPUWeight == WeightOf(asked) || l.CPUWeight == oldWeightOf(asked)) {
		return asked
	}
	return l.CPUShares
}

func (g *Group) hugeLimits(l *Limits) error {
	var s Details
	if err := g.hugetlb(&s); err != nil {
		return err
	}
	for _, h := range s.Hugetlb {
		if h.Limit != Unlimited {
			if l.HugePages == nil {
				l.HugePages = map[string]uint64{}
			}
			l.HugePages[h.PageSize] = h.Limit
		}
	}
	return nil
}

func (g *Group) memoryLimitsV1(l *Limits) error {
	var err error
	if l.MemoryLimit, err = g.number("memory", "memory.limit_in_bytes"); err != nil {
		return err
	}
	n, err := g.number("memory", "memory.memsw.limit_in_bytes")
	if err == nil {
		l.MemorySwap = n
	}
	return err
}

// memoryLimitsV2 adds: v2 limits swap apart from memory.
func (g *Group) memoryLimitsV2(l *Limits) error {
	var err error
	if l.MemoryLimit, err = g.number("memory", "memory.max"); err != nil {
		return err
	}
	swap, err := g.number("memory", "memory.swap.max")
	if err != nil {
		return err
	}
	if swap != Unlimited && l.MemoryLimit != Unlimited {
		l.MemorySwap = l.MemoryLimit + swap
	}
	return nil
}

// cpusetLimits has the same files in v1 and v2.
func (g *Group) cpusetLimits(l *Limits) error {
	cpus, err := g.read("cpuset", "cpuset.cpus")
	if err != nil {
		return err
	}
	l.CpusetCPUs = strings.TrimSpace(string(cpus))
	mems, err := g.read("cpuset", "cpuset.mems")
	if err != nil {
		return err
	}
	l.CpusetMems = strings.TrimSpace(string(mems))
	return nil
}
