package cgroup

import (
	"cmp"
	"errors"
	"fmt"
	"time"
)

// Stats is what one cgroup uses, with all cgroups below it. Amounts are bytes
// and times nanoseconds if the name does not say otherwise.
type Stats struct {
	Time    time.Time // when the CPU time was read, the base of a usage per second
	CPU     CPUStats
	Memory  MemoryStats
	Swap    SwapStats
	Pids    PidsStats
	IO      []IOStats
	Hugetlb []HugetlbStats
	PSI     PSIStats
}

// CPUStats is time on processors since the cgroup was made.
type CPUStats struct {
	Usage, User, System uint64
	Periods             uint64 // enforcement intervals that have elapsed
	ThrottledPeriods    uint64
	Throttled           uint64
}

// MemoryStats follows the kubelet's terms: the working set is what cannot be
// evicted at once, which is the usage less the inactive file cache.
type MemoryStats struct {
	Usage, WorkingSet uint64
	RSS               uint64 // anonymous memory
	Cache             uint64 // file cache
	Limit             uint64 // Unlimited if none
	Available         uint64 // limit less working set; 0 if there is no limit
	PageFaults        uint64
	MajorPageFaults   uint64
}

// SwapStats counts swap alone, without memory, on v1 too.
type SwapStats struct {
	Usage     uint64
	Limit     uint64 // Unlimited if none
	Available uint64 // 0 if there is no limit
}

// PidsStats counts tasks, that is threads, as the pids controller does.
type PidsStats struct {
	Current uint64
	Limit   uint64 // Unlimited if none
}

// IOStats is the traffic of one block device.
type IOStats struct {
	Major, Minor          uint64
	ReadBytes, WriteBytes uint64
	Reads, Writes         uint64
}

// HugetlbStats is the use of huge pages of one size.
type HugetlbStats struct {
	PageSize string // as the kernel writes it: "2MB"
	Usage    uint64
	Limit    uint64 // Unlimited if none
}

// PSIStats is pressure stall information; nil where the kernel gives none,
// which is always so for a v1 controller. Documentation/accounting/psi.rst.
type PSIStats struct {
	CPU, Memory, IO *Pressure
}

// Pressure is the share of time in which some, or all, tasks stalled.
type Pressure struct {
	Some, Full Stall
}

// Stall has averages in percent over 10, 60 and 300 seconds.
type Stall struct {
	Avg10, Avg60, Avg300 float64
	Total                uint64 // microseconds
}

// Stats reads all figures. Where a controller is missing its figures are zero;
// the error is of kind NotFound if the cgroup is gone.
func (g *Group) Stats() (Stats, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	s := Stats{Time: time.Now()}
	var errs []error
	for _, part := range []struct {
		name, controller string
		v1, v2           func(*Stats) error
	}{
		{"cpu", "cpu", g.cpuV1, g.cpuV2},
		{"memory", "memory", g.memoryV1, g.memoryV2},
		{"pids", "pids", g.pids, g.pids},
		{"io", "blkio", g.ioV1, g.ioV2},
		{"hugetlb", "hugetlb", g.hugetlb, g.hugetlb},
		{"pressure", "pressure", g.pressure, g.pressure},
	} {
		read := part.v1
		if g.v2(part.controller) {
			read = part.v2
		}
		if err := optional(read(&s)); err != nil {
			errs = append(errs, fmt.Errorf("read %s stats of cgroup %s: %w", part.name, g.dir, err))
		}
	}
	s.Memory.WorkingSet = min(s.Memory.WorkingSet, s.Memory.Usage)
	s.Memory.Available = rest(s.Memory.Limit, s.Memory.WorkingSet)
	s.Swap.Available = rest(s.Swap.Limit, s.Swap.Usage)
	return s, errors.Join(errs...)
}

// rest is what a limit leaves; 0 without a limit.
func rest(limit, used uint64) uint64 {
	if limit == Unlimited || used > limit {
		return 0
	}
	return limit - used
}

// pids has the same files in v1 and v2.
func (g *Group) pids(s *Stats) error {
	var err1, err2 error
	s.Pids.Current, err1 = g.number("pids", "pids.current")
	s.Pids.Limit, err2 = g.number("pids", "pids.max")
	return cmp.Or(err1, err2)
}
