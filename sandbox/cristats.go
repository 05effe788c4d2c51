package sandbox

import (
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/internal/cgroup"
	"noded.dev/noded/internal/namespace"
)

// The figures of the kernel in the words of the CRI. What the kernel does not
// give is left out, as is what a limit leaves where there is none: the kubelet
// takes a zero for a measurement.

func value(v uint64) *cri.UInt64Value { return &cri.UInt64Value{Value: v} }

func criCPU(s cgroup.Stats, r rate) *cri.CpuUsage {
	if !s.Has.CPU {
		return nil
	}
	out := &cri.CpuUsage{Timestamp: s.Time.UnixNano(), UsageCoreNanoSeconds: value(s.CPU.Usage), Psi: criPSI(s.PSI.CPU)}
	if r.known {
		out.UsageNanoCores = value(r.nanoCores)
	}
	return out
}

func criMemory(s cgroup.Stats) *cri.MemoryUsage {
	if !s.Has.Memory {
		return nil
	}
	m := s.Memory
	out := &cri.MemoryUsage{
		Timestamp: s.Time.UnixNano(), WorkingSetBytes: value(m.WorkingSet), UsageBytes: value(m.Usage),
		RssBytes: value(m.RSS), PageFaults: value(m.PageFaults), MajorPageFaults: value(m.MajorPageFaults), Psi: criPSI(s.PSI.Memory),
	}
	if m.Limit != cgroup.Unlimited {
		out.AvailableBytes = value(m.Available)
	}
	return out
}

func criSwap(s cgroup.Stats) *cri.SwapUsage {
	if !s.Has.Swap {
		return nil
	}
	out := &cri.SwapUsage{Timestamp: s.Time.UnixNano(), SwapUsageBytes: value(s.Swap.Usage)}
	if s.Swap.Limit != cgroup.Unlimited {
		out.SwapAvailableBytes = value(s.Swap.Available)
	}
	return out
}

func criIO(s cgroup.Stats) *cri.IoUsage {
	if s.PSI.IO == nil {
		return nil // there is nothing else in it
	}
	return &cri.IoUsage{Timestamp: s.Time.UnixNano(), Psi: criPSI(s.PSI.IO)}
}

// criProcess counts tasks, as what limits them does and the kubelet's ranking
// for pressure on process ids wants.
func criProcess(s cgroup.Stats) *cri.ProcessUsage {
	if !s.Has.Pids {
		return nil
	}
	return &cri.ProcessUsage{Timestamp: s.Time.UnixNano(), ProcessCount: value(s.Pids.Current)}
}

func criPSI(p *cgroup.Pressure) *cri.PsiStats {
	if p == nil {
		return nil
	}
	stall := func(s cgroup.Stall) *cri.PsiData {
		// The kernel counts microseconds.
		return &cri.PsiData{Total: s.Total * uint64(time.Microsecond), Avg10: s.Avg10, Avg60: s.Avg60, Avg300: s.Avg300}
	}
	return &cri.PsiStats{Some: stall(p.Some), Full: stall(p.Full)}
}

func criNetwork(at time.Time, interfaces []namespace.Interface) *cri.NetworkUsage {
	out := &cri.NetworkUsage{Timestamp: at.UnixNano()}
	for _, i := range interfaces {
		usage := &cri.NetworkInterfaceUsage{
			Name: i.Name, RxBytes: value(i.Rx.Bytes), RxErrors: value(i.Rx.Errors), TxBytes: value(i.Tx.Bytes), TxErrors: value(i.Tx.Errors),
		}
		// CNI names the pod's first interface eth0 (CRI clients assume it).
		if i.Name == "eth0" {
			out.DefaultInterface = usage
		} else {
			out.Interfaces = append(out.Interfaces, usage)
		}
	}
	return out
}
