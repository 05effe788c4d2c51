package sandbox

import (
	"context"
	"fmt"
	"sort"
	"sync"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/internal/cgroup"
	"noded.dev/noded/internal/kind"
	"noded.dev/noded/internal/namespace"
)

// sampler reads a cgroup's statistics through descriptors that stay open, and
// makes CPU rates from the last two reads. Nothing polls.
type sampler struct {
	mu    sync.Mutex
	group *cgroup.Group
	last  cgroup.Stats
	rate  uint64 // nano cores between the last two reads
}

// rateWindow is the least time between the two reads of a rate; several
// readers at once would else see noise.
const rateWindow = 100 * time.Millisecond

// read returns the statistics of dir and the CPU rate; hasRate is false before
// the second read.
func (s *sampler) read(h *cgroup.Host, dir string) (stats cgroup.Stats, rate uint64, hasRate bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.group == nil {
		s.group = h.Open(dir)
	}
	if stats, err = s.group.Stats(); err != nil {
		return stats, 0, false, err
	}
	switch elapsed := stats.Time.Sub(s.last.Time); {
	case s.last.Time.IsZero() || stats.CPU.Usage < s.last.CPU.Usage:
		s.last = stats
	case elapsed >= rateWindow:
		s.rate = uint64(float64(stats.CPU.Usage-s.last.CPU.Usage) / elapsed.Seconds())
		s.last = stats
		return stats, s.rate, true, nil
	}
	return stats, s.rate, s.rate > 0, nil
}

func (s *sampler) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.group != nil {
		s.group.Close()
		s.group = nil
	}
}

// ContainerStats measures one container.
func (m *Manager) ContainerStats(ctx context.Context, id string) (*cri.ContainerStats, error) {
	c, err := m.container(id)
	if err != nil {
		return nil, err
	}
	return c.measure(ctx)
}

// ListContainerStats measures the containers that pass the filter and run. One
// that ends meanwhile, or cannot be measured, is left out.
func (m *Manager) ListContainerStats(ctx context.Context, filter *cri.ContainerStatsFilter) ([]*cri.ContainerStats, error) {
	out := []*cri.ContainerStats{}
	list := m.ListContainers(&cri.ContainerFilter{Id: filter.GetId(), PodSandboxId: filter.GetPodSandboxId(), LabelSelector: filter.GetLabelSelector()})
	for _, item := range list {
		if item.State != cri.ContainerState_CONTAINER_RUNNING {
			continue
		}
		if stats, err := m.ContainerStats(ctx, item.Id); m.measured(ctx, err) {
			out = append(out, stats)
		}
	}
	return out, ctx.Err()
}

func (c *Container) measure(ctx context.Context) (*cri.ContainerStats, error) {
	v := c.view.Load()
	out := &cri.ContainerStats{Attributes: &cri.ContainerAttributes{
		Id: c.id, Metadata: c.config.Metadata, Labels: c.config.Labels, Annotations: c.config.Annotations,
	}}
	if v.state.alive() {
		stats, rate, hasRate, err := c.stats.read(c.m.cgroups, c.m.cgroups.Dir(c.record().Cgroup))
		if err != nil {
			return nil, fmt.Errorf("measure %s: %w", c.name(), err)
		}
		out.Cpu, out.Memory, out.Swap, out.Io = criCPU(stats, rate, hasRate), criMemory(stats), criSwap(stats), criIO(stats)
	}
	usage, err := c.m.images.WritableUsage(ctx, c.id)
	if err != nil {
		return nil, fmt.Errorf("measure %s: writable layer: %w", c.name(), err)
	}
	out.WritableLayer = &cri.FilesystemUsage{
		Timestamp: time.Now().UnixNano(), FsId: &cri.FilesystemIdentifier{Mountpoint: usage.Path},
		UsedBytes: value(usage.Bytes), InodesUsed: value(usage.Inodes),
	}
	return out, nil
}

// PodStats measures one pod and its containers.
func (m *Manager) PodStats(ctx context.Context, id string) (*cri.PodSandboxStats, error) {
	p, err := m.pod(id)
	if err != nil {
		return nil, err
	}
	return p.measure(ctx)
}

// ListPodStats measures the ready pods that pass the filter. One that ends
// meanwhile, or cannot be measured, is left out.
func (m *Manager) ListPodStats(ctx context.Context, filter *cri.PodSandboxStatsFilter) ([]*cri.PodSandboxStats, error) {
	out := []*cri.PodSandboxStats{}
	for _, item := range m.ListPods(&cri.PodSandboxFilter{Id: filter.GetId(), LabelSelector: filter.GetLabelSelector()}) {
		if item.State != cri.PodSandboxState_SANDBOX_READY {
			continue
		}
		if stats, err := m.PodStats(ctx, item.Id); m.measured(ctx, err) {
			out = append(out, stats)
		}
	}
	return out, ctx.Err()
}

// measured says whether one of a list could be measured. If not, the others
// still are: a kubelet without any statistics evicts by guesswork.
func (m *Manager) measured(ctx context.Context, err error) bool {
	if err != nil && !kind.Is(err, kind.NotFound) && ctx.Err() == nil {
		m.log.WithError(err).Warn("left out of a list of statistics")
	}
	return err == nil
}

func (p *Pod) measure(ctx context.Context) (*cri.PodSandboxStats, error) {
	linux := &cri.LinuxPodSandboxStats{}
	out := &cri.PodSandboxStats{Linux: linux, Attributes: &cri.PodSandboxAttributes{
		Id: p.id, Metadata: p.config.Metadata, Labels: p.config.Labels, Annotations: p.config.Annotations,
	}}
	containers, err := p.m.ListContainerStats(ctx, &cri.ContainerStatsFilter{PodSandboxId: p.id})
	if err != nil {
		return nil, err
	}
	linux.Containers = containers
	if p.view.Load().state != podReady {
		return out, nil
	}
	stats, rate, hasRate, err := p.stats.read(p.m.cgroups, p.cgroupDir())
	switch {
	case kind.Is(err, kind.NotFound): // nothing was created in it yet
	case err != nil:
		return nil, fmt.Errorf("measure pod %s: %w", p.name(), err)
	default:
		linux.Cpu, linux.Memory, linux.Io = criCPU(stats, rate, hasRate), criMemory(stats), criIO(stats)
		linux.Process = &cri.ProcessUsage{Timestamp: stats.Time.UnixNano(), ProcessCount: value(stats.Pids.Current)}
	}
	if linux.Network, err = p.networkUsage(); err != nil {
		return nil, fmt.Errorf("measure pod %s: network: %w", p.name(), err)
	}
	return out, nil
}

// cgroupDir is the folder that holds the pod's containers.
func (p *Pod) cgroupDir() string {
	rec := p.record()
	if p.m.opts.SystemdCgroup {
		return p.m.cgroups.SliceDir(rec.Cgroup)
	}
	return rec.Cgroup
}

// networkUsage reads the pod's interfaces; nil for a pod without a network of
// its own: the node's traffic is not the pod's.
func (p *Pod) networkUsage() (*cri.NetworkUsage, error) {
	if !sharedNetwork(p.config) {
		return nil, nil
	}
	interfaces, err := namespace.Stats(namespace.Path(p.paths.ns, "net"))
	if err != nil {
		return nil, err
	}
	out := &cri.NetworkUsage{Timestamp: time.Now().UnixNano()}
	sort.Slice(interfaces, func(i, j int) bool { return interfaces[i].Name < interfaces[j].Name })
	for _, i := range interfaces {
		if i.Loopback {
			continue
		}
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
	return out, nil
}

func value(v uint64) *cri.UInt64Value { return &cri.UInt64Value{Value: v} }

func criCPU(s cgroup.Stats, rate uint64, hasRate bool) *cri.CpuUsage {
	out := &cri.CpuUsage{Timestamp: s.Time.UnixNano(), UsageCoreNanoSeconds: value(s.CPU.Usage), Psi: criPSI(s.PSI.CPU)}
	if hasRate {
		out.UsageNanoCores = value(rate)
	}
	return out
}

func criMemory(s cgroup.Stats) *cri.MemoryUsage {
	m := s.Memory
	return &cri.MemoryUsage{
		Timestamp: s.Time.UnixNano(), WorkingSetBytes: value(m.WorkingSet), AvailableBytes: value(m.Available), UsageBytes: value(m.Usage),
		RssBytes: value(m.RSS), PageFaults: value(m.PageFaults), MajorPageFaults: value(m.MajorPageFaults), Psi: criPSI(s.PSI.Memory),
	}
}

func criSwap(s cgroup.Stats) *cri.SwapUsage {
	return &cri.SwapUsage{Timestamp: s.Time.UnixNano(), SwapUsageBytes: value(s.Swap.Usage), SwapAvailableBytes: value(s.Swap.Available)}
}

func criIO(s cgroup.Stats) *cri.IoUsage {
	if s.PSI.IO == nil {
		return nil
	}
	return &cri.IoUsage{Timestamp: s.Time.UnixNano(), Psi: criPSI(s.PSI.IO)}
}

func criPSI(p *cgroup.Pressure) *cri.PsiStats {
	if p == nil {
		return nil
	}
	stall := func(s cgroup.Stall) *cri.PsiData {
		return &cri.PsiData{Total: s.Total, Avg10: s.Avg10, Avg60: s.Avg60, Avg300: s.Avg300}
	}
	return &cri.PsiStats{Some: stall(p.Some), Full: stall(p.Full)}
}
