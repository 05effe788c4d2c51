package sandbox

import (
	"cmp"
	"context"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/internal/kind"
	"noded.dev/noded/internal/namespace"
)

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
	list := m.ListContainers(&cri.ContainerFilter{
		Id: filter.GetId(), PodSandboxId: filter.GetPodSandboxId(), LabelSelector: filter.GetLabelSelector(),
		State: &cri.ContainerStateValue{State: cri.ContainerState_CONTAINER_RUNNING},
	})
	return measureAll(ctx, m, list, func(item *cri.Container) (*cri.ContainerStats, error) { return m.ContainerStats(ctx, item.Id) })
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
	list := m.readyPods(&cri.PodSandboxFilter{Id: filter.GetId(), LabelSelector: filter.GetLabelSelector()})
	return measureAll(ctx, m, list, func(item *cri.PodSandbox) (*cri.PodSandboxStats, error) { return m.PodStats(ctx, item.Id) })
}

func (m *Manager) readyPods(filter *cri.PodSandboxFilter) []*cri.PodSandbox {
	filter.State = &cri.PodSandboxStateValue{State: cri.PodSandboxState_SANDBOX_READY}
	return m.ListPods(filter)
}

// measureAll measures a list side by side, on as many threads as there are
// processors, and keeps its order. What ended meanwhile, or cannot be
// measured, is left out: a kubelet without any statistics evicts by guesswork.
func measureAll[T, R any](ctx context.Context, m *Manager, list []T, measure func(T) (R, error)) ([]R, error) {
	figures := make([]R, len(list))
	errs := make([]error, len(list))
	next := make(chan int)
	var wait sync.WaitGroup
	for range min(len(list), runtime.GOMAXPROCS(0)) {
		wait.Go(func() {
			for i := range next {
				if errs[i] = ctx.Err(); errs[i] == nil {
					figures[i], errs[i] = measure(list[i])
				}
			}
		})
	}
	for i := range list {
		next <- i
	}
	close(next)
	wait.Wait()
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	out := make([]R, 0, len(list))
	for i, err := range errs {
		switch {
		case err == nil:
			out = append(out, figures[i])
		case !kind.Is(err, kind.NotFound):
			m.log.WithError(err).Warn("left out of a list of statistics")
		}
	}
	return out, nil
}

func (c *Container) measure(ctx context.Context) (*cri.ContainerStats, error) {
	out := &cri.ContainerStats{Attributes: &cri.ContainerAttributes{
		Id: c.id, Metadata: c.config.Metadata, Labels: c.config.Labels, Annotations: c.config.Annotations,
	}}
	if c.view.Load().state.alive() {
		stats, rate, err := c.stats.read(c.m.cgroups, c.m.cgroups.Dir(c.record().Cgroup))
		if err != nil {
			return nil, fmt.Errorf("measure %s: %w", c.name(), err)
		}
		out.Cpu, out.Memory, out.Swap, out.Io = criCPU(stats, rate), criMemory(stats), criSwap(stats), criIO(stats)
	}
	layer, err := c.layer(ctx)
	if err != nil {
		return nil, fmt.Errorf("measure %s: writable layer: %w", c.name(), err)
	}
	if !layer.at.IsZero() {
		out.WritableLayer = &cri.FilesystemUsage{
			Timestamp: layer.at.UnixNano(), FsId: &cri.FilesystemIdentifier{Mountpoint: layer.Path},
			UsedBytes: value(layer.Bytes), InodesUsed: value(layer.Inodes),
		}
	}
	return out, nil
}

// running are the pod's containers that run, oldest first.
func (p *Pod) running() []*Container {
	list := slices.DeleteFunc(p.list(), func(c *Container) bool { return c.view.Load().state != stateRunning })
	slices.SortFunc(list, func(a, b *Container) int {
		x, y := a.view.Load().item, b.view.Load().item
		return cmp.Or(cmp.Compare(x.CreatedAt, y.CreatedAt), strings.Compare(x.Id, y.Id))
	})
	return list
}

func (p *Pod) measure(ctx context.Context) (*cri.PodSandboxStats, error) {
	linux := &cri.LinuxPodSandboxStats{}
	out := &cri.PodSandboxStats{Linux: linux, Attributes: &cri.PodSandboxAttributes{
		Id: p.id, Metadata: p.config.Metadata, Labels: p.config.Labels, Annotations: p.config.Annotations,
	}}
	var err error
	if linux.Containers, err = measureAll(ctx, p.m, p.running(), func(c *Container) (*cri.ContainerStats, error) { return c.measure(ctx) }); err != nil {
		return nil, err
	}
	if p.view.Load().state != podReady {
		return out, nil
	}
	stats, rate, err := p.stats.read(p.m.cgroups, p.cgroupDir())
	switch {
	case kind.Is(err, kind.NotFound): // nothing was created in it yet
	case err != nil:
		return nil, fmt.Errorf("measure pod %s: %w", p.name(), err)
	default:
		linux.Cpu, linux.Memory, linux.Io, linux.Process = criCPU(stats, rate), criMemory(stats), criIO(stats), criProcess(stats)
	}
	interfaces, err := p.interfaces()
	if err != nil {
		return nil, fmt.Errorf("measure pod %s: network: %w", p.name(), err)
	}
	if interfaces != nil {
		linux.Network = criNetwork(time.Now(), interfaces)
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

// interfaces are the pod's, without loopback, by name; nil for a pod without a
// network of its own: the node's traffic is not the pod's.
func (p *Pod) interfaces() ([]namespace.Interface, error) {
	if !sharedNetwork(p.config) {
		return nil, nil
	}
	all, err := namespace.Stats(namespace.Path(p.paths.ns, "net"))
	if err != nil {
		return nil, err
	}
	all = slices.DeleteFunc(all, func(i namespace.Interface) bool { return i.Loopback })
	slices.SortFunc(all, func(a, b namespace.Interface) int { return strings.Compare(a.Name, b.Name) })
	return all, nil
}
