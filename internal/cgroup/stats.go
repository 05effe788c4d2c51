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
	Time   time.Time // when the CPU time was read, the base of a usage per second
	Has    Has
	CPU    CPUStats
	Memory MemoryStats
	Swap   SwapStats
	Pids   PidsStats
	PSI    PSIStats
}

// Has says which figures the kernel gives: a missing controller's are zero,
// which must not be taken for a measurement.
type Has struct {
	CPU, Memory, Swap, Pids bool
}

// CPUStats is time on processors since the cgroup was made.
type CPUStats struct {
	Usage, User, System uint64
	Periods             uint64 // enforcement intervals that have elapsed
	ThrottledPeriods    uint64
	Throttled           uint64
	Bursts, Burst       uint64 // periods with a burst, and the time above the quota in them
}

// MemoryStats follows the kubelet's terms: the working set is what cannot be
// evicted at once, which is the usage less the inactive file cache.
type MemoryStats struct {
	Usage, WorkingSet uint64
	RSS               uint64 // anonymous memory
	Cache             uint64 // file cache
	MappedFile        uint64
	ActiveFile        uint64
	InactiveFile      uint64
	Limit             uint64 // Unlimited if none
	Available         uint64 // limit less working set; 0 if there is no limit
	PageFaults        uint64
	MajorPageFaults   uint64
	// Own faults leave out the cgroups below; v2 does not tell them apart.
	OwnPageFaults, OwnMajorPageFaults uint64
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

// Stats reads what the kubelet asks for every few seconds. Where a controller
// is missing its figures are zero; the error is of kind NotFound if the cgroup
// is gone.
func (g *Group) Stats() (Stats, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.stats()
}

func (g *Group) stats() (Stats, error) {
	s := Stats{Time: time.Now()}
	var errs []error
	for _, part := range []struct {
		name   string
		has    *bool
		v1, v2 func(*Stats) error
	}{
		{"cpu", &s.Has.CPU, g.cpuV1, g.cpuV2},
		{"memory", &s.Has.Memory, g.memoryV1, g.memoryV2},
		{"pids", &s.Has.Pids, g.pids, g.pids},
		{"pressure", new(bool), g.pressure, g.pressure},
	} {
		read := part.v1
		if g.v2(part.name) {
			read = part.v2
		}
		err := read(&s)
		*part.has = err == nil
		if err = optional(err); err != nil {
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
