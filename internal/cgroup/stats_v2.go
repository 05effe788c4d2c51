package cgroup

import (
	"cmp"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Formats: Documentation/admin-guide/cgroup-v2.rst.

func (g *Group) cpuV2(s *Stats) error {
	b, err := g.read("cpu", "cpu.stat")
	if err != nil {
		return err
	}
	const us = 1000
	keyed(b, func(key string, n uint64) {
		switch key {
		case "usage_usec":
			s.CPU.Usage = n * us
		case "user_usec":
			s.CPU.User = n * us
		case "system_usec":
			s.CPU.System = n * us
		case "nr_periods":
			s.CPU.Periods = n
		case "nr_throttled":
			s.CPU.ThrottledPeriods = n
		case "throttled_usec":
			s.CPU.Throttled = n * us
		case "nr_bursts":
			s.CPU.Bursts = n
		case "burst_usec":
			s.CPU.Burst = n * us
		}
	})
	return nil
}

func (g *Group) memoryV2(s *Stats) error {
	b, err := g.read("memory", "memory.stat")
	if err != nil {
		return err
	}
	keyed(b, func(key string, n uint64) {
		switch key {
		case "inactive_file":
			s.Memory.InactiveFile = n
		case "active_file":
			s.Memory.ActiveFile = n
		case "file_mapped":
			s.Memory.MappedFile = n
		case "anon":
			s.Memory.RSS = n
		case "file":
			s.Memory.Cache = n
		case "pgfault":
			s.Memory.PageFaults = n
		case "pgmajfault":
			s.Memory.MajorPageFaults = n
		}
	})
	var err1, err2, err3, err4 error
	s.Memory.Usage, err1 = g.number("memory", "memory.current")
	s.Memory.Limit, err2 = g.number("memory", "memory.max")
	s.Memory.WorkingSet = s.Memory.Usage - min(s.Memory.InactiveFile, s.Memory.Usage)
	// The swap files are missing where the kernel has no swap.
	s.Swap.Usage, err3 = g.number("memory", "memory.swap.current")
	s.Swap.Limit, err4 = g.number("memory", "memory.swap.max")
	s.Has.Swap = err3 == nil && err4 == nil
	return cmp.Or(err1, err2, optional(err3), optional(err4))
}

// ioV2 reads lines such as "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0".
func (g *Group) ioV2(s *Details) error {
	b, err := g.read("io", "io.stat")
	if err != nil {
		return err
	}
	devices := ioDevices{}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue // a device that was only ever idle has its number alone
		}
		dev := devices.device(f[0])
		if dev == nil {
			continue
		}
		for _, pair := range f[1:] {
			key, value, _ := strings.Cut(pair, "=")
			n, err := strconv.ParseUint(value, 10, 64)
			if err != nil {
				continue
			}
			switch key {
			case "rbytes":
				dev.ReadBytes = n
			case "wbytes":
				dev.WriteBytes = n
			case "rios":
				dev.Reads = n
			case "wios":
				dev.Writes = n
			}
		}
	}
	s.IO = devices.list
	return nil
}

// hugetlb reads both versions: they differ in the names of two files. The page
// sizes are those of the machine.
func (g *Group) hugetlb(s *Details) error {
	usage, limit := ".usage_in_bytes", ".limit_in_bytes"
	if g.v2("hugetlb") {
		usage, limit = ".current", ".max"
	}
	for _, size := range g.host.hugePageSizes() {
		st := HugetlbStats{PageSize: size}
		var err1, err2 error
		st.Usage, err1 = g.number("hugetlb", "hugetlb."+size+usage)
		st.Limit, err2 = g.number("hugetlb", "hugetlb."+size+limit)
		if err := cmp.Or(err1, err2); err != nil {
			return err
		}
		// v1's largest value is LONG_MAX in whole huge pages.
		if st.Limit > 1<<62 {
			st.Limit = Unlimited
		}
		g.hugetlbHistory(&st)
		s.Hugetlb = append(s.Hugetlb, st)
	}
	return nil
}

// hugePageSizes names the machine's huge pages as the controller does.
func (h *Host) hugePageSizes() []string {
	if root, _ := h.controller("hugetlb"); root == "" {
		return nil
	}
	dirs, err := filepath.Glob("/sys/kernel/mm/hugepages/hugepages-*kB")
	if err != nil {
		return nil
	}
	var list []string
	for _, d := range dirs {
		name := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(d), "hugepages-"), "kB")
		kb, err := strconv.ParseUint(name, 10, 64)
		if err != nil {
			continue
		}
		switch {
		case kb >= 1<<20:
			name = strconv.FormatUint(kb>>20, 10) + "GB"
		case kb >= 1<<10:
			name = strconv.FormatUint(kb>>10, 10) + "MB"
		default:
			name = strconv.FormatUint(kb, 10) + "KB"
		}
		list = append(list, name)
	}
	return list
}

// pressure is read from the v2 tree, on a hybrid host too: there it counts the
// same processes, whatever hierarchy limits them.
func (g *Group) pressure(s *Stats) error {
	if g.host.unified == "" {
		return nil
	}
	if _, err := os.Stat(g.host.Unified(g.dir)); err != nil {
		return nil // a hybrid host's runtime may leave the v2 tree out
	}
	for _, p := range []struct {
		file string
		to   **Pressure
	}{{"cpu.pressure", &s.PSI.CPU}, {"memory.pressure", &s.PSI.Memory}, {"io.pressure", &s.PSI.IO}} {
		b, err := g.read("pressure", p.file)
		if err == nil {
			*p.to = parsePressure(string(b))
		} else if optional(err) != nil {
			return err
		}
	}
	return nil
}

// parsePressure reads "some avg10=0.00 avg60=0.00 avg300=0.00 total=0" and the
// same for "full".
func parsePressure(content string) *Pressure {
	p := &Pressure{}
	for line := range strings.Lines(content) {
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		stall := &p.Some
		if f[0] == "full" {
			stall = &p.Full
		}
		for _, pair := range f[1:] {
			key, value, _ := strings.Cut(pair, "=")
			switch key {
			case "avg10":
				stall.Avg10, _ = strconv.ParseFloat(value, 64)
			case "avg60":
				stall.Avg60, _ = strconv.ParseFloat(value, 64)
			case "avg300":
				stall.Avg300, _ = strconv.ParseFloat(value, 64)
			case "total":
				stall.Total, _ = strconv.ParseUint(value, 10, 64)
			}
		}
	}
	return p
}
