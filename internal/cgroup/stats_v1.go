package cgroup

import (
	"cmp"
	"strconv"
	"strings"
)

// userHZ is the unit of cpuacct.stat, the same on all Linux architectures that
// Go runs on (USER_HZ, see times(2)).
const userHZ = 100

func (g *Group) cpuV1(s *Stats) error {
	var err error
	if s.CPU.Usage, err = g.number("cpuacct", "cpuacct.usage"); err != nil {
		return err
	}
	b, err := g.read("cpuacct", "cpuacct.stat")
	if err != nil {
		return err
	}
	keyed(b, func(key string, n uint64) {
		switch key {
		case "user":
			s.CPU.User = n * (1e9 / userHZ)
		case "system":
			s.CPU.System = n * (1e9 / userHZ)
		}
	})
	if b, err = g.read("cpu", "cpu.stat"); err != nil {
		return err
	}
	keyed(b, func(key string, n uint64) {
		switch key {
		case "nr_periods":
			s.CPU.Periods = n
		case "nr_throttled":
			s.CPU.ThrottledPeriods = n
		case "throttled_time":
			s.CPU.Throttled = n
		case "nr_bursts":
			s.CPU.Bursts = n
		case "burst_time":
			s.CPU.Burst = n
		}
	})
	return nil
}

// memoryV1 takes the total_ figures, which include the cgroups below, as those
// of v2 always do.
func (g *Group) memoryV1(s *Stats) error {
	b, err := g.read("memory", "memory.stat")
	if err != nil {
		return err
	}
	keyed(b, func(key string, n uint64) {
		switch key {
		case "total_inactive_file":
			s.Memory.InactiveFile = n
		case "total_active_file":
			s.Memory.ActiveFile = n
		case "total_mapped_file":
			s.Memory.MappedFile = n
		case "pgfault":
			s.Memory.OwnPageFaults = n
		case "pgmajfault":
			s.Memory.OwnMajorPageFaults = n
		case "total_rss":
			s.Memory.RSS = n
		case "total_cache":
			s.Memory.Cache = n
		case "total_pgfault":
			s.Memory.PageFaults = n
		case "total_pgmajfault":
			s.Memory.MajorPageFaults = n
		}
	})
	var err1, err2 error
	s.Memory.Usage, err1 = g.number("memory", "memory.usage_in_bytes")
	s.Memory.Limit, err2 = g.number("memory", "memory.limit_in_bytes")
	if err := cmp.Or(err1, err2); err != nil {
		return err
	}
	s.Memory.WorkingSet = s.Memory.Usage - min(s.Memory.InactiveFile, s.Memory.Usage)
	return optional(g.swapV1(s))
}

// swapV1 subtracts: memsw counts memory and swap together. The files are
// missing where the kernel was started with swapaccount=0.
func (g *Group) swapV1(s *Stats) error {
	both, err := g.number("memory", "memory.memsw.usage_in_bytes")
	if err != nil {
		return err
	}
	limit, err := g.number("memory", "memory.memsw.limit_in_bytes")
	if err != nil {
		return err
	}
	s.Has.Swap = true
	s.Swap.Usage = both - min(s.Memory.Usage, both)
	s.Swap.Limit = Unlimited
	if limit != Unlimited && s.Memory.Limit != Unlimited {
		s.Swap.Limit = limit - min(s.Memory.Limit, limit)
	}
	return nil
}

// ioV1 prefers the throttle figures: those of the bfq scheduler exist only for
// devices that use it. Lines are "8:0 Read 4096" and one "Total n".
func (g *Group) ioV1(s *Details) error {
	bytes, err := g.read("blkio", "blkio.throttle.io_service_bytes_recursive")
	if err != nil {
		return err
	}
	devices := ioDevices{}
	devices.addV1(string(bytes), func(d *IOStats, write bool, n uint64) {
		if write {
			d.WriteBytes = n
		} else {
			d.ReadBytes = n
		}
	})
	ops, err := g.read("blkio", "blkio.throttle.io_serviced_recursive")
	if err != nil {
		return err
	}
	devices.addV1(string(ops), func(d *IOStats, write bool, n uint64) {
		if write {
			d.Writes = n
		} else {
			d.Reads = n
		}
	})
	s.IO = devices.list
	return nil
}

// ioDevices keeps the kernel's order of devices.
type ioDevices struct{ list []IOStats }

// device finds or adds the entry of "8:0"; nil if name is not of that form.
func (d *ioDevices) device(name string) *IOStats {
	a, b, ok := strings.Cut(name, ":")
	major, err1 := strconv.ParseUint(a, 10, 32)
	minor, err2 := strconv.ParseUint(b, 10, 32)
	if !ok || err1 != nil || err2 != nil {
		return nil
	}
	for i := range d.list {
		if d.list[i].Major == major && d.list[i].Minor == minor {
			return &d.list[i]
		}
	}
	d.list = append(d.list, IOStats{Major: major, Minor: minor})
	return &d.list[len(d.list)-1]
}

func (d *ioDevices) addV1(content string, set func(d *IOStats, write bool, n uint64)) {
	for line := range strings.Lines(content) {
		f := strings.Fields(line)
		if len(f) != 3 || f[1] != "Read" && f[1] != "Write" {
			continue
		}
		n, err := strconv.ParseUint(f[2], 10, 64)
		if dev := d.device(f[0]); dev != nil && err == nil {
			set(dev, f[1] == "Write", n)
		}
	}
}
