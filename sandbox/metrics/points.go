package metrics

import (
	"time"

	"noded.dev/noded/internal/cgroup"
	"noded.dev/noded/internal/namespace"
)

// What follows makes points of the parts of a sample, and none of a part that
// is not there.

func one(v uint64) []point { return []point{{value: v}} }

func maybe(v *uint64) []point {
	if v == nil {
		return nil
	}
	return one(*v)
}

func seconds(t time.Time) uint64 { return uint64(max(t.Unix(), 0)) }

// whole makes seconds of nanoseconds: the CRI has whole numbers only.
func whole(nanoseconds uint64) uint64 { return nanoseconds / uint64(time.Second) }

// limit says 0 for none, as cAdvisor does.
func limit(v uint64) uint64 {
	if v == cgroup.Unlimited {
		return 0
	}
	return v
}

func some(p *cgroup.Pressure) cgroup.Stall { return p.Some }
func full(p *cgroup.Pressure) cgroup.Stall { return p.Full }

func ofCgroup(f func(*cgroup.Details) []point) func(*Sample) []point {
	return func(s *Sample) []point {
		if s.Cgroup == nil {
			return nil
		}
		return f(s.Cgroup)
	}
}

func ofCPU(f func(cgroup.CPUStats) []point) func(*Sample) []point {
	return ofCgroup(func(d *cgroup.Details) []point {
		if !d.Has.CPU {
			return nil
		}
		return f(d.CPU)
	})
}

func ofQuota(f func(cgroup.CPUStats) []point) func(*Sample) []point {
	return ofCgroup(func(d *cgroup.Details) []point {
		if !d.Has.CPU || d.Limits.CPUQuota <= 0 {
			return nil
		}
		return f(d.CPU)
	})
}

func ofLimits(f func(*cgroup.Details) []point) func(*Sample) []point {
	return ofCgroup(func(d *cgroup.Details) []point {
		if d.Limits.CPUPeriod == 0 { // no CPU controller
			return nil
		}
		return f(d)
	})
}

func ofMemory(f func(cgroup.MemoryStats) []point) func(*Sample) []point {
	return ofCgroup(func(d *cgroup.Details) []point {
		if !d.Has.Memory {
			return nil
		}
		return f(d.Memory)
	})
}

func ofPids(f func(cgroup.PidsStats) uint64) func(*Sample) []point {
	return ofCgroup(func(d *cgroup.Details) []point {
		if !d.Has.Pids {
			return nil
		}
		return one(f(d.Pids))
	})
}

func ofHuge(f func(cgroup.HugetlbStats) *uint64) func(*Sample) []point {
	return ofCgroup(func(d *cgroup.Details) (list []point) {
		for _, h := range d.Hugetlb {
			if v := f(h); v != nil {
				list = append(list, point{value: *v, labels: []string{h.PageSize}})
			}
		}
		return list
	})
}

func ofPressure(of func(cgroup.PSIStats) *cgroup.Pressure, stall func(*cgroup.Pressure) cgroup.Stall) func(*Sample) []point {
	return ofCgroup(func(d *cgroup.Details) []point {
		p := of(d.PSI)
		if p == nil {
			return nil
		}
		return one(stall(p).Total / uint64(time.Second/time.Microsecond))
	})
}

func ofDevices(f func(cgroup.IOStats) uint64) func(*Sample) []point {
	return func(s *Sample) (list []point) {
		if s.Cgroup == nil {
			return nil
		}
		for _, d := range s.Cgroup.IO {
			list = append(list, point{value: f(d), labels: []string{s.Device(d.Major, d.Minor)}})
		}
		return list
	}
}

func ofNetwork(f func(namespace.Interface) uint64) func(*Sample) []point {
	return func(s *Sample) (list []point) {
		for _, i := range s.Network {
			list = append(list, point{value: f(i), labels: []string{i.Name}})
		}
		return list
	}
}

func ofTasks(f func(*Tasks) []point) func(*Sample) []point {
	return func(s *Sample) []point {
		if s.Tasks == nil {
			return nil
		}
		return f(s.Tasks)
	}
}

func ofLayer(f func(*Layer) uint64) func(*Sample) []point {
	return func(s *Sample) []point {
		if s.Layer == nil || !s.Layer.HasCapacity {
			return nil
		}
		return []point{{value: f(s.Layer), labels: []string{s.Layer.Device}}}
	}
}
