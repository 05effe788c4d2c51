package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"sync"

	rspec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/internal/cgroup"
	"noded.dev/noded/internal/kind"
	"noded.dev/noded/internal/steps"
	"noded.dev/noded/spec"
)

// resizeRecord is written before limits are changed and deleted after, so that
// a crash in between is undone.
type resizeRecord struct {
	Before   []cgroup.Setting      // what the kernel enforced
	Undo     *rspec.LinuxResources `json:",omitempty"` // the same for the OCI runtime, which remembers what it set
	OOMScore *oomScores            `json:",omitempty"`
}

type oomScores struct{ Before, After int }

// resize carries what one step of an update hands to the next.
type resize struct {
	*Container
	asked       *cri.LinuxContainerResources
	annotations map[string]string

	dir    string        // the container's cgroup
	now    cgroup.Limits // in force
	change *rspec.LinuxResources
	scores *oomScores
}

// check finds all that can be refused without changing anything.
func (r *resize) check(context.Context) (err error) {
	if r.change, err = spec.Resources(r.asked, r.m.opts.Facts); err != nil {
		return err
	}
	rec := r.record()
	r.dir = r.m.cgroups.Dir(rec.Cgroup)
	group := r.m.cgroups.Open(r.dir)
	defer group.Close()
	if r.now, err = group.Limits(); err != nil && !kind.Is(err, kind.NotFound) {
		return err
	}
	if err := completeChange(r.change, r.asked, r.now); err != nil {
		return err
	}
	if err := r.m.cgroups.CheckMemoryLimit(r.dir, r.asked.GetMemoryLimitInBytes()); err != nil {
		return fmt.Errorf("memory_limit_in_bytes: %w", err)
	}
	return r.checkOOMScore(rec)
}

func (r *resize) checkOOMScore(rec containerRecord) error {
	if r.asked.GetOomScoreAdj() == 0 {
		return nil
	}
	before, err := cgroup.OOMScore(rec.Process.Pid)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return kind.Errorf(kind.Precondition, "its process has ended")
	}
	if err != nil {
		return err
	}
	r.scores = &oomScores{Before: before, After: max(int(r.asked.OomScoreAdj), r.m.opts.Facts.OOMScoreFloor)}
	return nil
}

// completeChange adds what the kernel and the runtimes want together: quota
// with its period, and memory with memory and swap. The other half is what is
// in force, not what the runtime remembers.
func completeChange(change *rspec.LinuxResources, asked *cri.LinuxContainerResources, now cgroup.Limits) error {
	if cpu := change.CPU; cpu != nil && now.CPUPeriod != 0 {
		if cpu.Quota != nil && cpu.Period == nil {
			cpu.Period = &now.CPUPeriod
		}
		if cpu.Period != nil && cpu.Quota == nil {
			cpu.Quota = &now.CPUQuota
		}
	}
	swap := asked.GetMemorySwapLimitInBytes()
	if swap == 0 || asked.GetMemoryLimitInBytes() != 0 {
		return nil
	}
	limit := limitOf(now.MemoryLimit)
	if swap > 0 && limit > 0 && swap < limit {
		return kind.Errorf(kind.Invalid, "memory_swap_limit_in_bytes %d, which includes memory, is below the memory limit in force, %d", swap, limit)
	}
	if swap > 0 && limit < 0 {
		return kind.Errorf(kind.Invalid, "memory_swap_limit_in_bytes %d needs a memory limit, there is none", swap)
	}
	if change.Memory != nil {
		change.Memory.Limit = &limit
	}
	return nil
}

// limitOf is a limit as OCI and CRI write it.
func limitOf(v uint64) int64 {
	if v == cgroup.Unlimited {
		return -1
	}
	return int64(v)
}

// begin writes down how to undo what comes now.
func (r *resize) begin(context.Context) error {
	before, err := r.m.cgroups.Save(r.dir, slices.Collect(maps.Keys(r.merged().Unified))...)
	if err != nil {
		return err
	}
	undo := &resizeRecord{Before: before, Undo: undoOf(r.change, r.now), OOMScore: r.scores}
	return r.note(func(rec *containerRecord) { rec.Resize = undo })
}

// undoOf is the change that leads back. What it says inexactly, as CPU shares
// of a v2 weight, is corrected in the kernel's own files afterwards.
func undoOf(change *rspec.LinuxResources, now cgroup.Limits) *rspec.LinuxResources {
	undo := &rspec.LinuxResources{}
	if c := change.CPU; c != nil {
		undo.CPU = &rspec.LinuxCPU{Quota: c.Quota, Period: c.Period}
		if c.Shares != nil && now.CPUShares != 0 {
			undo.CPU.Shares = &now.CPUShares
		}
		if c.Quota != nil && now.CPUPeriod != 0 {
			undo.CPU.Quota, undo.CPU.Period = &now.CPUQuota, &now.CPUPeriod
		}
		if c.Cpus != "" {
			undo.CPU.Cpus = now.CpusetCPUs
		}
		if c.Mems != "" {
			undo.CPU.Mems = now.CpusetMems
		}
	}
	if m := change.Memory; m != nil {
		undo.Memory = &rspec.LinuxMemory{}
		limit, swap := limitOf(now.MemoryLimit), limitOf(now.MemorySwap)
		if m.Limit != nil {
			undo.Memory.Limit = &limit
		}
		if m.Swap != nil {
			undo.Memory.Swap = &swap
		}
	}
	return undo
}

// keepRest puts back what the runtime changed unasked, and sets what it left
// out: runc's update sets anew all that it remembers of the creation, and does
// not know the limits of huge pages.
func (r *resize) keepRest(context.Context) error {
	pages := map[string]uint64{}
	for _, h := range r.change.HugepageLimits {
		pages[h.Pagesize] = h.Limit
	}
	settings := r.m.cgroups.Settings(cgroup.Wanted{HugePages: pages}, r.now)
	asked := r.askedFiles()
	for _, s := range settings {
		asked[s.File] = true
	}
	for _, s := range r.record().Resize.Before {
		if !asked[s.File] {
			settings = append(settings, s)
		}
	}
	return refused(r.m.cgroups.Apply(r.dir, settings))
}

// askedFiles are the files, of both cgroup versions, that the runtime writes
// for the change.
func (r *resize) askedFiles() map[string]bool {
	files := map[string]bool{}
	add := func(asked bool, names ...string) {
		for _, n := range names {
			files[n] = files[n] || asked
		}
	}
	if c := r.change.CPU; c != nil {
		add(c.Shares != nil, "cpu.shares", "cpu.weight")
		add(c.Quota != nil || c.Period != nil, "cpu.cfs_quota_us", "cpu.cfs_period_us", "cpu.max")
		add(c.Cpus != "", "cpuset.cpus")
		add(c.Mems != "", "cpuset.mems")
	}
	add(r.change.Memory != nil, "memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.max", "memory.swap.max")
	for key := range r.change.Unified {
		add(true, key)
	}
	return files
}

// setOOMScore reaches every process, since none is made anew. Where the kernel
// does not let noded lower it, that degrades as at the container's creation.
func (r *resize) setOOMScore(context.Context) error {
	if r.scores == nil {
		return nil
	}
	err := r.m.cgroups.SetOOMScore(r.dir, r.scores.Before, r.scores.After)
	if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) {
		r.m.warnOnce(r.log, []spec.Warning{{Key: "oom-score", Text: "oom_score_adj cannot be lowered without CAP_SYS_RESOURCE"}})
		return nil
	}
	if err != nil {
		return fmt.Errorf("oom_score_adj: %w", err)
	}
	return nil
}

func (r *resize) updateInRuntime(ctx context.Context) error {
	change := *r.change
	if change.CPU == nil && change.Memory == nil && len(change.Unified) == 0 {
		return nil
	}
	if change.Memory != nil && change.Memory.Limit != nil {
		yes := true
		change.Memory.CheckBeforeUpdate = &yes
	}
	ctx, cancel := context.WithTimeout(ctx, runtimeUpdateLimit)
	var watch sync.WaitGroup
	watch.Go(func() { // whoever removes the container shall not wait for a runtime that hangs
		select {
		case <-r.ended:
			cancel()
		case <-ctx.Done():
		}
	})
	err := r.m.runtime.Update(ctx, r.request(), &change)
	cancel()
	watch.Wait()
	return refused(err, slices.Collect(maps.Keys(change.Unified))...)
}

// done shows what is in force now, and forgets how to undo it.
func (r *resize) done(context.Context) error {
	merged := r.merged()
	raw, err := encodeMessage(merged)
	if err != nil {
		return err
	}
	before := r.record()
	figures := r.figures(merged, before.Process.Pid)
	err = r.note(func(rec *containerRecord) {
		rec.Resources, rec.Figures, rec.UpdateAnnotations, rec.Resize = raw, figures, r.annotations, nil
	})
	if err != nil {
		// On disk the container is still being updated: then let it be so.
		_ = r.note(func(rec *containerRecord) {
			rec.Resources, rec.Figures, rec.UpdateAnnotations, rec.Resize = before.Resources, before.Figures, before.UpdateAnnotations, before.Resize
		})
	}
	return err
}

// restore puts the limits back that an update found. The runtime comes first:
// its call waits for one that hangs, and what it remembers becomes right. Then
// the kernel's files count, whatever the runtime said. It needs c.busy.
func (c *Container) restore(ctx context.Context) error {
	rec := c.record()
	if rec.Resize == nil {
		return nil
	}
	if !rec.State.alive() {
		return c.note(func(r *containerRecord) { r.Resize = nil })
	}
	return steps.Run(ctx, "undo update", nil,
		steps.Step{Name: "ask runtime", Do: func(ctx context.Context) error { c.undoInRuntime(ctx, rec.Resize.Undo); return nil }},
		steps.Step{Name: "restore files", Do: func(context.Context) error {
			return c.m.cgroups.Restore(c.m.cgroups.Dir(rec.Cgroup), rec.Resize.Before)
		}},
		steps.Step{Name: "restore oom score", Do: func(context.Context) error { return c.undoOOMScore(rec) }},
		steps.Step{Name: "record restored", Do: func(context.Context) error {
			return c.note(func(r *containerRecord) { r.Resize = nil })
		}},
	)
}

func (c *Container) undoInRuntime(ctx context.Context, undo *rspec.LinuxResources) {
	if undo == nil || undo.CPU == nil && undo.Memory == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, restoreLimit/2)
	defer cancel()
	if err := c.m.runtime.Update(ctx, c.request(), undo); err != nil {
		c.log.WithError(err).Warn("limits are put back without the runtime")
	}
}

func (c *Container) undoOOMScore(rec containerRecord) error {
	s := rec.Resize.OOMScore
	if s == nil {
		return nil
	}
	err := c.m.cgroups.SetOOMScore(c.m.cgroups.Dir(rec.Cgroup), s.After, s.Before)
	if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) {
		return nil // it was not lowered, or cannot be
	}
	return err
}

// refused says in the CRI's words which field the kernel did not take, and
// whose fault that is.
func refused(err error, unified ...string) error {
	if err == nil {
		return nil
	}
	text, field := err.Error(), ""
	if first := (*cgroup.SettingError)(nil); errors.As(err, &first) {
		text = first.Error() // those after it may only follow from it
	}
	for _, key := range unified {
		if strings.Contains(text, key) {
			field = "unified " + key
		}
	}
	for _, f := range limitFields {
		if field == "" && strings.Contains(text, f.in) {
			field = f.field
		}
	}
	if field == "" {
		return err
	}
	k := kind.Of(err)
	if k == kind.Internal || k == kind.Aborted { // not a deadline, nor a runtime that is missing
		k = kind.Invalid
		for _, state := range []string{unix.EBUSY.Error(), unix.ENOENT.Error(), unix.ENODEV.Error(), "usage"} {
			if strings.Contains(text, state) {
				k = kind.Precondition
			}
		}
	}
	return kind.Wrap(k, fmt.Errorf("%s: %w", field, err))
}

// limitFields finds the field in what the kernel and the runtimes say; the
// first that is found counts.
var limitFields = []struct{ in, field string }{
	{"memory.memsw", "memory_swap_limit_in_bytes"}, {"memory.swap.max", "memory_swap_limit_in_bytes"}, {"swap limit", "memory_swap_limit_in_bytes"},
	{"memory.limit_in_bytes", "memory_limit_in_bytes"}, {"memory.max", "memory_limit_in_bytes"}, {"memory limit", "memory_limit_in_bytes"},
	{"cpuset.cpus", "cpuset_cpus"}, {"cpuset.mems", "cpuset_mems"},
	{"cpu.shares", "cpu_shares"}, {"cpu.weight", "cpu_shares"}, {"cpu-shares", "cpu_shares"},
	{"cpu.cfs_period", "cpu_period"}, {"cpu.cfs_quota", "cpu_quota"}, {"cpu.max", "cpu_quota"},
	{"hugetlb.", "hugepage_limits"},
}
