package sandbox

import (
	"context"
	"encoding/json"
	"fmt"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/internal/cgroup"
	"noded.dev/noded/internal/kind"
	"noded.dev/noded/internal/steps"
	"noded.dev/noded/spec"
)

// podResources are a pod's own limits: the sum of its containers' and what the
// pod itself costs.
type podResources struct{ overhead, resources *cri.LinuxContainerResources }

// UpdatePodResources takes the limits of a pod as a whole. Where the pod's
// cgroup is noded's own they are put in force, all or nothing; a kubelet has
// changed its own cgroup before it calls, and then they are written down.
func (m *Manager) UpdatePodResources(ctx context.Context, req *cri.UpdatePodSandboxResourcesRequest) error {
	p, err := m.pod(req.PodSandboxId)
	if err != nil {
		return err
	}
	key, err := requestKey("update pod "+p.id, req)
	if err != nil {
		return err
	}
	_, err = m.flights.do(ctx, key, updateLimit, func(ctx context.Context, at func(string)) (string, error) {
		if err := acquire(ctx, p.busy); err != nil {
			return "", fmt.Errorf("update pod %s: an operation on it is under way: %w", p.name(), err)
		}
		defer func() { <-p.busy }()
		return "", p.updateResources(ctx, req, at)
	})
	return err
}

func (p *Pod) updateResources(ctx context.Context, req *cri.UpdatePodSandboxResourcesRequest, at func(string)) error {
	rec := p.record()
	if rec.State != podReady {
		return kind.Errorf(kind.Precondition, "pod %s (%s) is %s, its limits cannot be changed", p.id, p.name(), rec.State)
	}
	asked := podResources{req.Overhead, req.Resources}
	have := p.resources()
	want := podResources{spec.MergeResources(have.overhead, req.Overhead), spec.MergeResources(have.resources, req.Resources)}
	err := steps.Run(ctx, "update pod", at,
		steps.Step{Name: "check limits", Do: func(context.Context) error { return asked.validate(p.m.opts.Facts) }},
		steps.Step{Name: "record limits in force", Do: func(context.Context) error { return p.beginResize() }},
		steps.Step{Name: "set limits", Do: func(context.Context) error { return p.setLimits(want) }},
		steps.Step{Name: "record", Do: func(context.Context) error { return p.recordResources(want) }},
	)
	if err == nil {
		return nil
	}
	if e := p.restoreLimits(); e != nil {
		p.log.WithError(e).Error("limits are not put back, the next start of noded tries again")
		err = fmt.Errorf("%w; undo: %w", err, e)
	}
	return fmt.Errorf("update pod %s: %w", p.name(), err)
}

// resources are the pod's limits as last asked for.
func (p *Pod) resources() podResources {
	rec, linux := p.record(), p.config.GetLinux()
	r := podResources{linux.GetOverhead(), linux.GetResources()}
	for raw, to := range map[*json.RawMessage]**cri.LinuxContainerResources{&rec.Overhead: &r.overhead, &rec.Resources: &r.resources} {
		later := new(cri.LinuxContainerResources)
		if len(*raw) > 0 && decodeMessage(*raw, later) == nil {
			*to = later
		}
	}
	return r
}

func (r podResources) validate(f spec.Facts) error {
	if _, err := spec.Resources(r.overhead, f); err != nil {
		return fmt.Errorf("overhead: %w", err)
	}
	if _, err := spec.Resources(r.resources, f); err != nil {
		return fmt.Errorf("resources: %w", err)
	}
	return nil
}

// beginResize writes down how to undo what comes now.
func (p *Pod) beginResize() error {
	rec := p.record()
	if !rec.OwnCgroup {
		return nil
	}
	if rec.Resize != nil { // one that could not be undone: what it found counts
		return p.restoreLimits()
	}
	var unified []string
	for key := range p.resources().resources.GetUnified() {
		unified = append(unified, key)
	}
	before, err := p.m.cgroups.Save(rec.Cgroup, unified...)
	if err != nil {
		return err
	}
	return p.update(func(r *podRecord) { r.Resize = &resizeRecord{Before: before} })
}

// setLimits puts limits in force in a cgroup of noded's own.
func (p *Pod) setLimits(r podResources) error {
	rec := p.record()
	if !rec.OwnCgroup {
		return nil
	}
	group := p.m.cgroups.Open(rec.Cgroup)
	defer group.Close()
	now, err := group.Limits()
	if err != nil {
		return err
	}
	wanted := r.sum(p.m.opts.Facts)
	if now.MemoryLimit != uint64(wanted.MemoryLimit) {
		if err := p.m.cgroups.CheckMemoryLimit(rec.Cgroup, wanted.MemoryLimit); err != nil {
			return fmt.Errorf("memory_limit_in_bytes: %w", err)
		}
	}
	return refused(p.m.cgroups.Apply(rec.Cgroup, p.m.cgroups.Settings(wanted, now)))
}

func (p *Pod) recordResources(want podResources) error {
	overhead, err := encodeMessage(want.overhead)
	if err != nil {
		return err
	}
	resources, err := encodeMessage(want.resources)
	if err != nil {
		return err
	}
	before := p.record()
	err = p.update(func(r *podRecord) { r.Overhead, r.Resources, r.Resize = overhead, resources, nil })
	if err != nil { // on disk the pod is still being updated: then let it be so
		_ = p.update(func(r *podRecord) {
			r.Overhead, r.Resources, r.Resize = before.Overhead, before.Resources, before.Resize
		})
	}
	return err
}

// restoreLimits puts back what an update found. It needs p.busy.
func (p *Pod) restoreLimits() error {
	rec := p.record()
	if rec.Resize == nil {
		return nil
	}
	if err := p.m.cgroups.Restore(rec.Cgroup, rec.Resize.Before); err != nil {
		return err
	}
	return p.update(func(r *podRecord) { r.Resize = nil })
}

// sum is what the pod's cgroup has to allow: the containers' together and the
// overhead. An overhead limits nothing where the containers are not limited.
func (r podResources) sum(f spec.Facts) cgroup.Wanted {
	own, over := r.resources, r.overhead
	w := cgroup.Wanted{
		CPUQuota: own.GetCpuQuota(), CPUPeriod: uint64(own.GetCpuPeriod()), CpusetCPUs: own.GetCpusetCpus(), CpusetMems: own.GetCpusetMems(),
		MemoryLimit: own.GetMemoryLimitInBytes(), Unified: own.GetUnified(), HugePages: map[string]uint64{},
	}
	if own.GetCpuShares() != 0 {
		w.CPUShares = uint64(own.GetCpuShares() + over.GetCpuShares())
	}
	if w.CPUQuota > 0 && over.GetCpuQuota() > 0 {
		const period = 100000 // µs, the kernel's own where none is given
		mine, its := own.GetCpuPeriod(), over.GetCpuPeriod()
		if mine == 0 {
			mine = period
		}
		if its == 0 {
			its = period
		}
		w.CPUQuota += over.GetCpuQuota() * mine / its
	}
	if w.MemoryLimit > 0 {
		w.MemoryLimit += max(over.GetMemoryLimitInBytes(), 0)
	}
	if f.Swap {
		w.MemorySwap = w.MemoryLimit
		if swap := own.GetMemorySwapLimitInBytes(); swap > 0 {
			w.MemorySwap = swap + max(over.GetMemoryLimitInBytes(), 0)
		} else if swap < 0 {
			w.MemorySwap = swap
		}
	}
	for _, list := range [][]*cri.HugepageLimit{own.GetHugepageLimits(), over.GetHugepageLimits()} {
		for _, h := range list {
			w.HugePages[h.PageSize] += h.Limit
		}
	}
	return w
}
