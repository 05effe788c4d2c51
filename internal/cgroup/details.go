package cgroup

import (
	"errors"
	"fmt"
)

// Details is Stats with what metrics tell besides, which takes reading more
// files. A nil figure is one that this kernel or cgroup version does not give.
type Details struct {
	Stats
	IO      []IOStats
	Hugetlb []HugetlbStats
	Limits  Limits

	MemoryMax       *uint64 // bytes, the most that was ever used
	MemoryFailures  *uint64 // how often the limit was met
	MemoryKernel    *uint64 // bytes used by the kernel for the cgroup
	MemoryProtected *uint64 // bytes that reclaim spares (memory.min), or spares if it can (v1 soft limit); Unlimited for all
	OOMKills        *uint64 // processes killed for want of memory
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
	Limit    uint64  // Unlimited if none
	Max      *uint64 // the most that was ever used; v1 only
	Failures *uint64 // how often the limit was met
}

// Details reads all figures; see Stats for what is missing.
func (g *Group) Details() (Details, error) {
	limits, err := g.Limits()
	if err != nil {
		return Details{}, err
	}
	kills, err := g.OOMKills()
	g.mu.Lock()
	defer g.mu.Unlock()
	d := Details{Limits: limits}
	if err == nil {
		d.OOMKills = &kills
	}
	if d.Stats, err = g.stats(); err != nil {
		return d, err
	}
	io, memory := g.ioV1, g.memoryHistoryV1
	if g.v2("blkio") {
		io = g.ioV2
	}
	if g.v2("memory") {
		memory = g.memoryHistoryV2
	}
	memory(&d)
	if err := errors.Join(optional(io(&d)), optional(g.hugetlb(&d))); err != nil {
		return d, fmt.Errorf("read stats of cgroup %s: %w", g.dir, err)
	}
	return d, nil
}

func (g *Group) memoryHistoryV1(d *Details) {
	d.MemoryMax = g.figure("memory", "memory.max_usage_in_bytes")
	d.MemoryFailures = g.figure("memory", "memory.failcnt")
	d.MemoryKernel = g.figure("memory", "memory.kmem.usage_in_bytes")
	d.MemoryProtected = g.figure("memory", "memory.soft_limit_in_bytes")
}

func (g *Group) memoryHistoryV2(d *Details) {
	d.MemoryMax = g.figure("memory", "memory.peak") // since Linux 5.19
	d.MemoryFailures = g.line("memory", "memory.events", "max")
	d.MemoryKernel = g.line("memory", "memory.stat", "kernel") // since Linux 5.18
	d.MemoryProtected = g.figure("memory", "memory.min")
}

// hugetlbHistory fills in what the versions keep differently.
func (g *Group) hugetlbHistory(st *HugetlbStats) {
	if g.v2("hugetlb") {
		st.Failures = g.line("hugetlb", "hugetlb."+st.PageSize+".events", "max")
		return
	}
	st.Max = g.figure("hugetlb", "hugetlb."+st.PageSize+".max_usage_in_bytes")
	st.Failures = g.figure("hugetlb", "hugetlb."+st.PageSize+".failcnt")
}

// figure is a file of one number; nil where there is none.
func (g *Group) figure(controller, file string) *uint64 {
	n, err := g.number(controller, file)
	if err != nil {
		return nil
	}
	return &n
}

// line is one value of a flat keyed file; nil where there is none.
func (g *Group) line(controller, file, name string) *uint64 {
	b, err := g.read(controller, file)
	if err != nil {
		return nil
	}
	var found *uint64
	keyed(b, func(key string, n uint64) {
		if key == name {
			found = &n
		}
	})
	return found
}
