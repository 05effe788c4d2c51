package cgroup

import (
	"fmt"

	"noded.dev/noded/internal/kind"
)

// OOMKills counts the processes of the cgroup, and of those below it, that the
// kernel has killed for want of memory, whichever limit was reached. It only
// grows; compare with the value at the container's start. The error is of kind
// NotFound if the cgroup is gone, so read before removing it.
func (g *Group) OOMKills() (uint64, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	file := "memory.oom_control" // v1: oom_kill_disable, under_oom, oom_kill
	if g.v2("memory") {
		file = "memory.events" // v2: low, high, max, oom, oom_kill, oom_group_kill
	}
	n, found, err := g.counter(file, "oom_kill")
	if err != nil {
		return 0, fmt.Errorf("read oom kills of cgroup %s: %w", g.dir, err)
	}
	if !found {
		return 0, kind.Errorf(kind.Precondition, "the kernel does not count oom kills in %s", file)
	}
	return n, nil
}

// counter reads one line of a flat keyed file of the memory controller.
func (g *Group) counter(file, name string) (n uint64, found bool, err error) {
	b, err := g.read("memory", file)
	if err != nil {
		return 0, false, err
	}
	keyed(b, func(key string, v uint64) {
		if key == name {
			n, found = v, true
		}
	})
	return n, found, nil
}

// MemoryPeak is what a cgroup came to use, for whoever asks why it ran out.
type MemoryPeak struct {
	Limit   uint64 // bytes; Unlimited if none
	Peak    uint64 // bytes; 0 if the kernel does not keep it (v2 before Linux 5.19)
	Reached bool   // this cgroup's own limit stopped an allocation, not one above or below
}

// MemoryPeak reads the figures; what is missing is zero.
func (g *Group) MemoryPeak() MemoryPeak {
	g.mu.Lock()
	defer g.mu.Unlock()
	m := MemoryPeak{Limit: Unlimited}
	limit, peak := "memory.limit_in_bytes", "memory.max_usage_in_bytes"
	if g.v2("memory") {
		limit, peak = "memory.max", "memory.peak"
	}
	if n, err := g.number("memory", limit); err == nil {
		m.Limit = n
	}
	if n, err := g.number("memory", peak); err == nil {
		m.Peak = n
	}
	if g.v2("memory") {
		n, _, err := g.counter("memory.events.local", "oom") // since Linux 5.2
		m.Reached = err == nil && n > 0
	} else {
		n, err := g.number("memory", "memory.failcnt")
		m.Reached = err == nil && n > 0
	}
	return m
}
