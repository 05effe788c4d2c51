package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/internal/cgroup"
	"noded.dev/noded/internal/kind"
	"noded.dev/noded/sandbox/metrics"
)

// ListPodMetrics measures the ready pods and their running containers for
// those who scrape. One that ends meanwhile, or cannot be measured, is left out.
func (m *Manager) ListPodMetrics(ctx context.Context) ([]*cri.PodSandboxMetrics, error) {
	return measureAll(ctx, m, m.readyPods(&cri.PodSandboxFilter{}), func(item *cri.PodSandbox) (*cri.PodSandboxMetrics, error) {
		p, err := m.pod(item.Id)
		if err != nil {
			return nil, err
		}
		return p.metrics(ctx)
	})
}

func (p *Pod) metrics(ctx context.Context) (*cri.PodSandboxMetrics, error) {
	containers, err := measureAll(ctx, p.m, p.running(), func(c *Container) (*cri.ContainerMetrics, error) { return c.metrics(ctx) })
	if err != nil {
		return nil, err
	}
	sample := p.m.sample(p.config.Metadata, p.cgroupDir())
	sample.Name, sample.Started = p.id, time.Unix(0, p.view.Load().item.CreatedAt)
	if sample.Cgroup, err = p.m.details(&p.stats, p.cgroupDir()); err != nil {
		return nil, fmt.Errorf("measure pod %s: %w", p.name(), err)
	}
	if sample.Cgroup != nil {
		sample.Cgroup.OOMKills = nil // on v1 the kernel counts only what was killed in the very cgroup
	}
	if sample.Network, err = p.interfaces(); err != nil {
		return nil, fmt.Errorf("measure pod %s: network: %w", p.name(), err)
	}
	return &cri.PodSandboxMetrics{PodSandboxId: p.id, Metrics: metrics.Of(sample), ContainerMetrics: containers}, nil
}

func (c *Container) metrics(ctx context.Context) (*cri.ContainerMetrics, error) {
	rec := c.record()
	dir := c.m.cgroups.Dir(rec.Cgroup)
	sample := c.m.sample(c.pod.config.Metadata, dir)
	sample.Name, sample.Container, sample.Started = c.id, c.config.Metadata.GetName(), rec.StartedAt
	sample.Image = c.config.Image.GetUserSpecifiedImage()
	if sample.Image == "" {
		sample.Image = rec.ImageName
	}
	var err error
	if sample.Cgroup, err = c.m.details(&c.stats, dir); err != nil {
		return nil, fmt.Errorf("measure %s: %w", c.name(), err)
	}
	if pids, err := c.m.cgroups.Pids(dir); err == nil {
		sample.Tasks = countTasks(pids, rec.Process.Pid)
	}
	if sample.Layer, err = c.layerSample(ctx); err != nil {
		return nil, fmt.Errorf("measure %s: writable layer: %w", c.name(), err)
	}
	return &cri.ContainerMetrics{ContainerId: c.id, Metrics: metrics.Of(sample)}, nil
}

// sample is one without figures yet.
func (m *Manager) sample(pod *cri.PodSandboxMetadata, cgroupDir string) *metrics.Sample {
	return &metrics.Sample{
		Labels: metrics.Labels{ID: filepath.Join("/", cgroupDir), Pod: pod.GetName(), Namespace: pod.GetNamespace()},
		At:     time.Now(), Device: blockDevice,
	}
}

// details are nil where there is no cgroup (yet).
func (m *Manager) details(s *sampler, dir string) (*cgroup.Details, error) {
	d, err := s.details(m.cgroups, dir)
	if kind.Is(err, kind.NotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return &d, nil
}

func (c *Container) layerSample(ctx context.Context) (*metrics.Layer, error) {
	layer, err := c.layer(ctx)
	if err != nil || layer.at.IsZero() {
		return nil, err
	}
	out := &metrics.Layer{Used: layer.Bytes}
	if !layer.live {
		out.CachedAt = layer.at
	}
	var st unix.Stat_t
	if err := unix.Stat(layer.Path, &st); err == nil {
		out.Device = blockDevice(uint64(unix.Major(st.Dev)), uint64(unix.Minor(st.Dev)))
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(layer.Path, &fs); err == nil {
		out.HasCapacity, out.Capacity, out.Inodes, out.InodesFree = true, fs.Blocks*uint64(fs.Bsize), fs.Files, fs.Ffree
	}
	return out, nil
}

// blockDevice names a device as in /dev; one that has no name there, as that
// of a tmpfs, by its numbers.
func blockDevice(major, minor uint64) string {
	number := fmt.Sprintf("%d:%d", major, minor)
	text, err := os.ReadFile(filepath.Join("/sys/dev/block", number, "uevent"))
	if err != nil {
		return number
	}
	for line := range strings.Lines(string(text)) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "DEVNAME="); ok {
			return "/dev/" + name
		}
	}
	return number
}

// maxDescriptors bounds how many descriptors of a container are looked at.
const maxDescriptors = 10000

// countTasks looks at a container's processes; first is the pid of its init.
func countTasks(pids []int, first int) *metrics.Tasks {
	t := &metrics.Tasks{Processes: uint64(len(pids))}
	var files, sockets uint64
	counted := true
	for _, pid := range pids {
		f, s, err := countFiles(pid, maxDescriptors-int(files))
		if errors.Is(err, errTooMany) {
			counted = false
			break
		}
		files, sockets = files+f, sockets+s // nothing of a process that has just ended
	}
	if counted {
		t.Files, t.Sockets = &files, &sockets
	}
	var limit unix.Rlimit
	if first > 0 && unix.Prlimit(first, unix.RLIMIT_NOFILE, nil, &limit) == nil && limit.Cur != unix.RLIM_INFINITY {
		t.FilesLimit = &limit.Cur
	}
	return t
}

var errTooMany = errors.New("too many descriptors to count")

// countFiles counts a process's descriptors, and sockets among them.
func countFiles(pid, most int) (files, sockets uint64, err error) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	f, err := os.Open(dir)
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	names, err := f.Readdirnames(most + 1)
	if len(names) > most {
		return 0, 0, errTooMany
	}
	for _, name := range names {
		if to, err := os.Readlink(filepath.Join(dir, name)); err == nil && strings.HasPrefix(to, "socket:") {
			sockets++
		}
	}
	return uint64(len(names)), sockets, nil
}
