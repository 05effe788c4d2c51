package cgroup

import (
	"math"
	"strconv"
)

// Wanted is a change of limits: what is zero or nil stays as it is. The units
// are those of the CRI's LinuxContainerResources.
type Wanted struct {
	CPUShares   uint64
	CPUQuota    int64 // -1: no quota
	CPUPeriod   uint64
	CpusetCPUs  string
	CpusetMems  string
	MemoryLimit int64 // -1: none
	MemorySwap  int64 // memory and swap together; -1: none
	HugePages   map[string]uint64
	Unified     map[string]string // v2 only
}

// Settings translates a change into this host's files. Where only one of CPU
// quota and period, or only swap, is changed, now says what the other one is.
func (h *Host) Settings(w Wanted, now Limits) []Setting {
	var list []Setting
	add := func(file, value string) { list = append(list, Setting{file, value}) }
	if _, v2 := h.controller("cpu"); v2 {
		h.cpuV2(w, now, add)
	} else {
		h.cpuV1(w, add)
	}
	if w.CpusetCPUs != "" {
		add("cpuset.cpus", w.CpusetCPUs)
	}
	if w.CpusetMems != "" {
		add("cpuset.mems", w.CpusetMems)
	}
	if _, v2 := h.controller("memory"); v2 {
		h.memoryV2(w, now, add)
	} else {
		h.memoryV1(w, add)
	}
	for size, limit := range w.HugePages {
		for _, file := range h.hugeFiles(size) {
			add(file, strconv.FormatUint(limit, 10))
		}
	}
	for key, value := range w.Unified {
		add(key, value)
	}
	return list
}

func (h *Host) cpuV1(w Wanted, add func(file, value string)) {
	if w.CPUShares != 0 {
		add("cpu.shares", strconv.FormatUint(w.CPUShares, 10))
	}
	if w.CPUPeriod != 0 {
		add("cpu.cfs_period_us", strconv.FormatUint(w.CPUPeriod, 10))
	}
	if w.CPUQuota != 0 {
		add("cpu.cfs_quota_us", strconv.FormatInt(w.CPUQuota, 10))
	}
}

func (h *Host) cpuV2(w Wanted, now Limits, add func(file, value string)) {
	if w.CPUShares != 0 {
		add("cpu.weight", strconv.FormatUint(WeightOf(w.CPUShares), 10))
	}
	if w.CPUQuota == 0 && w.CPUPeriod == 0 {
		return
	}
	quota, period := w.CPUQuota, w.CPUPeriod
	if quota == 0 {
		quota = now.CPUQuota
	}
	if period == 0 {
		period = now.CPUPeriod
	}
	text := "max"
	if quota > 0 {
		text = strconv.FormatInt(quota, 10)
	}
	add("cpu.max", text+" "+strconv.FormatUint(period, 10))
}

func (h *Host) memoryV1(w Wanted, add func(file, value string)) {
	if w.MemoryLimit != 0 {
		add("memory.limit_in_bytes", strconv.FormatInt(w.MemoryLimit, 10))
	}
	if w.MemorySwap != 0 {
		add("memory.memsw.limit_in_bytes", strconv.FormatInt(w.MemorySwap, 10))
	}
}

func (h *Host) memoryV2(w Wanted, now Limits, add func(file, value string)) {
	memory := w.MemoryLimit
	if memory > 0 {
		add("memory.max", strconv.FormatInt(memory, 10))
	} else if memory < 0 {
		add("memory.max", "max")
	} else if now.MemoryLimit != Unlimited {
		memory = int64(now.MemoryLimit)
	}
	switch {
	case w.MemorySwap < 0:
		add("memory.swap.max", "max")
	case w.MemorySwap > 0: // v2 limits swap apart from memory
		add("memory.swap.max", strconv.FormatInt(max(w.MemorySwap-max(memory, 0), 0), 10))
	}
}

// WeightOf converts CPU shares to a v2 weight the way runtimes have since 2025;
// sharesOf is its inverse.
func WeightOf(shares uint64) uint64 {
	switch {
	case shares <= 2:
		return 1
	case shares >= 262144:
		return 10000
	}
	x := math.Log2(float64(shares))
	return uint64(math.Ceil(math.Pow(10, (x*x+125*x)/612-7.0/34)))
}

// oldWeightOf is the linear conversion of runtimes before that.
func oldWeightOf(shares uint64) uint64 {
	shares = min(max(shares, 2), 262144)
	return 1 + (shares-2)*9999/262142
}
