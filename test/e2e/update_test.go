package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/test/node"
)

// enforced is what the kernel says of a container, in the files' own words.
type enforced struct{ shares, quota, memory, swap, cpus string }

// enforcedBy reads with limit, which is given a file's names in v1 and v2.
func enforcedBy(limit func(v1, v2 string) string) enforced {
	e := enforced{
		shares: limit("cpu.shares", "cpu.weight"), memory: limit("memory.limit_in_bytes", "memory.max"),
		swap: limit("memory.memsw.limit_in_bytes", "memory.swap.max"), cpus: limit("cpuset.cpus", "cpuset.cpus"),
		quota: limit("cpu.cfs_quota_us", "cpu.max"),
	}
	if !node.UnifiedCgroup() {
		e.quota += " " + limit("cpu.cfs_period_us", "")
	}
	return e
}

func kernelLimits(t *testing.T, c *node.Container) enforced {
	t.Helper()
	return enforcedBy(func(v1, v2 string) string { return c.Limit(t, v1, v2) })
}

// TestUpdate changes limits one by one: what is not named keeps its value, the
// kernel has what status tells, and both directions of memory and swap work.
func TestUpdate(t *testing.T) {
	skipOnPeer(t, "it keeps less")
	n := start(t)
	p := n.RunPod(t)
	c := p.Run(t, "sleep 1000", func(c *cri.ContainerConfig) {
		c.Linux.Resources = &cri.LinuxContainerResources{CpuShares: 1024, CpuPeriod: 100000, CpuQuota: 50000, MemoryLimitInBytes: 64 << 20, CpusetCpus: "0-1"}
	})
	created := p.Create(t, "true")
	for _, step := range []struct {
		change *cri.LinuxContainerResources
		v1, v2 enforced
	}{
		{&cri.LinuxContainerResources{CpuShares: 512}, enforced{"512", "50000 100000", "67108864", "67108864", "0-1"}, enforced{"59", "50000 100000", "67108864", "0", "0-1"}},
		{&cri.LinuxContainerResources{CpuQuota: 20000}, enforced{"512", "20000 100000", "67108864", "67108864", "0-1"}, enforced{"59", "20000 100000", "67108864", "0", "0-1"}},
		{&cri.LinuxContainerResources{CpuPeriod: 50000}, enforced{"512", "20000 50000", "67108864", "67108864", "0-1"}, enforced{"59", "20000 50000", "67108864", "0", "0-1"}},
		{&cri.LinuxContainerResources{CpusetCpus: "0"}, enforced{"512", "20000 50000", "67108864", "67108864", "0"}, enforced{"59", "20000 50000", "67108864", "0", "0"}},
		{&cri.LinuxContainerResources{MemoryLimitInBytes: 128 << 20}, enforced{"512", "20000 50000", "134217728", "134217728", "0"}, enforced{"59", "20000 50000", "134217728", "0", "0"}},
		{&cri.LinuxContainerResources{MemorySwapLimitInBytes: 256 << 20}, enforced{"512", "20000 50000", "134217728", "268435456", "0"}, enforced{"59", "20000 50000", "134217728", "134217728", "0"}},
		{&cri.LinuxContainerResources{MemoryLimitInBytes: 32 << 20, MemorySwapLimitInBytes: 48 << 20}, enforced{"512", "20000 50000", "33554432", "50331648", "0"}, enforced{"59", "20000 50000", "33554432", "16777216", "0"}},
		{&cri.LinuxContainerResources{MemoryLimitInBytes: 512 << 20, MemorySwapLimitInBytes: 512 << 20, CpuQuota: -1}, enforced{"512", "-1 50000", "536870912", "536870912", "0"}, enforced{"59", "max 50000", "536870912", "0", "0"}},
	} {
		must(t, update(n, c.ID, step.change))
		want := step.v1
		if node.UnifiedCgroup() {
			want = step.v2
		}
		if got := kernelLimits(t, c); got != want {
			t.Errorf("after %v: %+v, want %+v", step.change, got, want)
		}
	}
	// What somebody else set is kept too: runc sets anew all that it remembers.
	c.SetLimit(t, "cpu.cfs_period_us", "cpu.max", map[bool]string{false: "80000", true: "max 80000"}[node.UnifiedCgroup()])
	must(t, update(n, c.ID, &cri.LinuxContainerResources{CpuShares: 512}))
	if got := kernelLimits(t, c).quota; !strings.HasSuffix(got, " 80000") {
		t.Errorf("period set by somebody else became %s", got)
	}
	must(t, update(n, c.ID, &cri.LinuxContainerResources{CpuPeriod: 50000}))
	r := c.Status(t).GetResources().GetLinux()
	if r.GetCpuShares() != 512 || r.GetCpuQuota() != -1 || r.GetCpuPeriod() != 50000 || r.GetMemoryLimitInBytes() != 512<<20 || r.GetMemorySwapLimitInBytes() != 512<<20 || r.GetCpusetCpus() != "0" {
		t.Errorf("status tells %v", r)
	}
	must(t, update(n, created.ID, &cri.LinuxContainerResources{CpuShares: 512}))
	if got := created.Status(t).GetResources().GetLinux().GetCpuShares(); got != 512 {
		t.Errorf("a created container has %d shares", got)
	}
}

// TestFigures checks that status tells what the kernel made of a request:
// whole pages, and the shares behind a weight.
func TestFigures(t *testing.T) {
	skipOnPeer(t, "it tells what was asked for")
	n := start(t)
	p := n.RunPod(t)
	c := p.Run(t, "sleep 1000", func(c *cri.ContainerConfig) {
		c.Linux.Resources = &cri.LinuxContainerResources{MemoryLimitInBytes: 50<<20 + 1000, CpuShares: 102}
	})
	r := c.Status(t).GetResources().GetLinux()
	if r.GetMemoryLimitInBytes() != 50<<20 || r.GetCpuShares() != 102 || r.GetCpuQuota() != 0 {
		t.Errorf("status tells %v", r)
	}
	if got := fmt.Sprint(r.GetMemoryLimitInBytes()); got != c.Limit(t, "memory.limit_in_bytes", "memory.max") {
		t.Errorf("the kernel has %s", c.Limit(t, "memory.limit_in_bytes", "memory.max"))
	}
	plain := p.Run(t, "sleep 1000")
	if r := plain.Status(t).GetResources().GetLinux(); r.GetMemoryLimitInBytes() != 0 || r.GetMemorySwapLimitInBytes() != 0 || r.GetCpuQuota() != 0 || r.GetCpuPeriod() == 0 {
		t.Errorf("a container without limits: %v", r)
	}
	must(t, c.Stop(0))
	if got := c.Status(t).GetResources().GetLinux().GetMemoryLimitInBytes(); got != 50<<20 {
		t.Errorf("after its end: %d", got)
	}
}

// TestUpdateRefused asks for changes of which one part cannot be: nothing
// changes, and the error names the part.
func TestUpdateRefused(t *testing.T) {
	skipOnPeer(t, "it applies what comes first")
	n := start(t)
	p := n.RunPod(t)
	c := p.Run(t, "x=$(head -c 30000000 /dev/zero | tr '\\0' x); echo full; sleep 1000; echo $x", func(c *cri.ContainerConfig) {
		c.Linux.Resources = &cri.LinuxContainerResources{CpuShares: 1024, CpuPeriod: 100000, CpuQuota: 50000, MemoryLimitInBytes: 256 << 20, OomScoreAdj: 500}
	})
	node.Eventually(t, "memory is in use", time.Minute, func() bool { return c.Log(t).Text() == "full\n" })
	before, pids := kernelLimits(t, c), c.Pids(t)
	told := c.Status(t).GetResources().String()
	huge := []*cri.HugepageLimit{{PageSize: "2MB", Limit: 4 << 20}}
	all := &cri.LinuxContainerResources{CpuShares: 300, CpuQuota: 20000, HugepageLimits: huge, OomScoreAdj: 600}
	with := func(edit func(*cri.LinuxContainerResources)) *cri.LinuxContainerResources {
		r := &cri.LinuxContainerResources{CpuShares: all.CpuShares, CpuQuota: all.CpuQuota, OomScoreAdj: all.OomScoreAdj}
		if node.UnifiedCgroup() {
			r.HugepageLimits = nil // not every v2 kernel has the controller
		} else {
			r.HugepageLimits = huge
		}
		edit(r)
		return r
	}
	for name, part := range map[string]struct {
		change *cri.LinuxContainerResources
		field  string
		code   codes.Code
	}{
		"memory in use":          {with(func(r *cri.LinuxContainerResources) { r.MemoryLimitInBytes = 8 << 20 }), "memory_limit_in_bytes", codes.FailedPrecondition},
		"swap below memory":      {with(func(r *cri.LinuxContainerResources) { r.MemorySwapLimitInBytes = 100 << 20 }), "memory_swap_limit_in_bytes", codes.InvalidArgument},
		"swap below its memory":  {with(func(r *cri.LinuxContainerResources) { r.MemoryLimitInBytes, r.MemorySwapLimitInBytes = 300<<20, 1<<20 }), "memory_swap_limit_in_bytes", codes.InvalidArgument},
		"CPU that is not there":  {with(func(r *cri.LinuxContainerResources) { r.CpusetCpus = "77" }), "cpuset_cpus", codes.InvalidArgument},
		"node that is not there": {with(func(r *cri.LinuxContainerResources) { r.CpusetMems = "5" }), "cpuset_mems", codes.InvalidArgument},
		"quota of too little":    {with(func(r *cri.LinuxContainerResources) { r.CpuQuota = 10 }), "cpu_quota", codes.InvalidArgument},
		"period of too much":     {with(func(r *cri.LinuxContainerResources) { r.CpuPeriod = 2000000 }), "cpu_period", codes.InvalidArgument},
		"page size unknown": {with(func(r *cri.LinuxContainerResources) {
			r.HugepageLimits = []*cri.HugepageLimit{{PageSize: "4MB", Limit: 4 << 20}}
		}), "4MB", codes.InvalidArgument},
		"score out of range":      {with(func(r *cri.LinuxContainerResources) { r.OomScoreAdj = 2000 }), "oom_score_adj", codes.InvalidArgument},
		"unified key with a path": {with(func(r *cri.LinuxContainerResources) { r.Unified = map[string]string{"../memory.max": "1"} }), "../memory.max", codes.InvalidArgument},
		"unified key of a slash":  {with(func(r *cri.LinuxContainerResources) { r.Unified = map[string]string{"memory.a/b": "1"} }), "memory.a/b", codes.InvalidArgument},
		"unified key of cgroup":   {with(func(r *cri.LinuxContainerResources) { r.Unified = map[string]string{"cgroup.procs": "1"} }), "cgroup.procs", codes.InvalidArgument},
	} {
		err := update(n, c.ID, part.change)
		wantCode(t, err, part.code)
		if err == nil || !strings.Contains(err.Error(), part.field) {
			t.Errorf("%s: error %v does not name %s", name, err, part.field)
		}
		if got := kernelLimits(t, c); got != before {
			t.Errorf("%s: %+v, want %+v", name, got, before)
		}
	}
	if !node.UnifiedCgroup() {
		err := update(n, c.ID, &cri.LinuxContainerResources{Unified: map[string]string{"memory.high": "max"}})
		wantCode(t, err, codes.InvalidArgument)
		if err == nil || !strings.Contains(err.Error(), "cgroup v2") {
			t.Errorf("unified on v1: %v", err)
		}
		if got := c.Limit(t, "hugetlb.2MB.limit_in_bytes", ""); len(got) < 12 {
			t.Errorf("a limit for huge pages is left: %s", got)
		}
	}
	if got := c.Shell(t, "cat /proc/1/oom_score_adj"); got != "500\n" {
		t.Errorf("score %q is left", got)
	}
	if got := c.Status(t); got.State != cri.ContainerState_CONTAINER_RUNNING || got.GetResources().String() != told || c.Pids(t)[0] != pids[0] {
		t.Errorf("%v, %v, processes %v of %v", got.State, got.Resources, c.Pids(t), pids)
	}
}

// TestUpdateOOMScore changes the score of what runs already and of what is
// executed later, and leaves processes alone that chose their own.
func TestUpdateOOMScore(t *testing.T) {
	skipOnPeer(t, "it leaves the processes as they are")
	n := start(t)
	p := n.RunPod(t)
	c := p.Run(t, "sleep 1000 & (echo 900 >/proc/self/oom_score_adj; exec sleep 2000) & wait", func(c *cri.ContainerConfig) { c.Linux.Resources.OomScoreAdj = 300 })
	scores := func() string {
		return c.Shell(t, "for p in 1 $(pidof sleep); do cat /proc/$p/oom_score_adj; done | sort -n | tr '\\n' ' '; cat /proc/self/oom_score_adj")
	}
	node.Eventually(t, "processes run", 5*time.Second, func() bool { return scores() == "300 300 900 300\n" })
	must(t, update(n, c.ID, &cri.LinuxContainerResources{OomScoreAdj: 400}))
	if got := scores(); got != "400 400 900 400\n" {
		t.Errorf("scores %q", got)
	}
	if got := c.Status(t).GetResources().GetLinux().GetOomScoreAdj(); got != 400 {
		t.Errorf("status tells %d", got)
	}
}

// TestUpdateHugePages changes limits that the OCI runtime's update leaves out.
func TestUpdateHugePages(t *testing.T) {
	skipOnPeer(t, "its runtime leaves them out")
	if node.UnifiedCgroup() {
		t.Skip("not every v2 kernel has the controller")
	}
	n := start(t)
	p := n.RunPod(t)
	c := p.Run(t, "sleep 1000", func(c *cri.ContainerConfig) {
		c.Linux.Resources.HugepageLimits = []*cri.HugepageLimit{{PageSize: "2MB", Limit: 6 << 20}}
	})
	check := func(limit uint64) {
		t.Helper()
		for _, file := range []string{"hugetlb.2MB.limit_in_bytes", "hugetlb.2MB.rsvd.limit_in_bytes"} {
			if got := c.Limit(t, file, ""); got != fmt.Sprint(limit) {
				t.Errorf("%s is %s, want %d", file, got, limit)
			}
		}
		if h := c.Status(t).GetResources().GetLinux().GetHugepageLimits(); len(h) != 1 || h[0].PageSize != "2MB" || h[0].Limit != limit {
			t.Errorf("status tells %v, want %d", h, limit)
		}
	}
	check(6 << 20)
	must(t, update(n, c.ID, &cri.LinuxContainerResources{HugepageLimits: []*cri.HugepageLimit{{PageSize: "2MB", Limit: 9<<20 + 1}}}))
	check(8 << 20) // the kernel counts in whole pages
	must(t, update(n, c.ID, &cri.LinuxContainerResources{CpuShares: 100}))
	check(8 << 20)
}

// TestUpdateAnnotations keeps what a request says beside the limits, for
// operators; the container's own annotations are not touched.
func TestUpdateAnnotations(t *testing.T) {
	skipOnPeer(t, "it forgets them")
	n := start(t)
	p := n.RunPod(t)
	c := p.Run(t, "sleep 1000", func(c *cri.ContainerConfig) { c.Annotations = map[string]string{"own": "1"} })
	ctx, cancel := node.Context()
	defer cancel()
	req := &cri.UpdateContainerResourcesRequest{ContainerId: c.ID, Linux: &cri.LinuxContainerResources{CpuShares: 512}, Annotations: map[string]string{"example.com/why": "burst"}}
	_, err := n.Runtime.UpdateContainerResources(ctx, req)
	must(t, err)
	s, err := n.Runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: c.ID, Verbose: true})
	must(t, err)
	if len(s.Status.Annotations) != 1 || s.Status.Annotations["own"] != "1" || !strings.Contains(s.Info["info"], `"example.com/why":"burst"`) {
		t.Errorf("annotations %v, info %s", s.Status.Annotations, s.Info["info"])
	}
	req.Annotations = map[string]string{"big": strings.Repeat("x", 2<<20)}
	_, err = n.Runtime.UpdateContainerResources(ctx, req)
	wantCode(t, err, codes.InvalidArgument)
}

// gatedRuntime starts a node with a further handler "gated": runc, whose
// updates do what the returned gate file says.
//
//	hang    nothing, for ever
//	fail    all that is asked, and then fail
//	stick   all that is asked, and then nothing, for ever
func gatedRuntime(t *testing.T) (n *node.Node, gate string) {
	t.Helper()
	dir := t.TempDir()
	gate = filepath.Join(dir, "gate")
	runc := os.Getenv("NODED_TEST_RUNC")
	if runc == "" {
		runc = "runc"
	}
	script := fmt.Sprintf(`#!/bin/sh
case " $* " in
*" update "*)
  case "$(cat %[1]s 2>/dev/null)" in
  hang) touch %[1]s.met; while :; do sleep 0.1; done;;
  fail) %[2]s "$@"; echo "cannot write to cpu.shares: the gate is closed" >&2; exit 1;;
  stick) %[2]s "$@"; touch %[1]s.met; while :; do sleep 0.1; done;;
  esac;;
esac
exec %[2]s "$@"
`, gate, runc)
	path := filepath.Join(dir, "gated-runc")
	must(t, os.WriteFile(path, []byte(script), 0o755))
	n = node.New(t, node.Options{Binary: binary, Registry: registry, Config: fmt.Sprintf("[runtime.handlers.gated]\npath = %q\n", path)})
	_, err := n.Pull(node.Image)
	must(t, err)
	return n, gate
}

// gatedPod runs a pod whose containers are made by the gated handler.
func gatedPod(t *testing.T, n *node.Node) *node.Pod {
	t.Helper()
	ctx, cancel := node.Context()
	defer cancel()
	config := n.PodConfig(t)
	r, err := n.Runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: config, RuntimeHandler: "gated"})
	must(t, err)
	p := &node.Pod{Node: n, ID: r.PodSandboxId, Config: config}
	t.Cleanup(func() { must(t, p.Remove()) })
	return p
}

func met(t *testing.T, gate string) {
	t.Helper()
	node.Eventually(t, "the runtime is at work", 10*time.Second, func() bool { _, err := os.Stat(gate + ".met"); return err == nil })
	must(t, os.Remove(gate+".met"))
}

// TestUpdateHangs updates by a runtime that never answers: whoever lists, asks
// or stops does not wait for it.
func TestUpdateHangs(t *testing.T) {
	skipOnPeer(t, "it hangs")
	n, gate := gatedRuntime(t)
	p := gatedPod(t, n)
	c := p.Run(t, "sleep 1000", func(c *cri.ContainerConfig) { c.Linux.Resources.CpuShares = 1024 })
	before := kernelLimits(t, c)
	must(t, os.WriteFile(gate, []byte("hang"), 0o600))
	answer := make(chan error, 1)
	go func() {
		answer <- update(n, c.ID, &cri.LinuxContainerResources{CpuShares: 512, MemoryLimitInBytes: 64 << 20})
	}()
	met(t, gate)
	ctx, cancel := node.Context()
	defer cancel()
	for name, call := range map[string]func() error{
		"ListContainers": func() error { _, err := n.Runtime.ListContainers(ctx, &cri.ListContainersRequest{}); return err },
		"ContainerStatus": func() error {
			_, err := n.Runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: c.ID, Verbose: true})
			return err
		},
		"ListPodSandbox": func() error { _, err := n.Runtime.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{}); return err },
		"PodSandboxStatus": func() error {
			_, err := n.Runtime.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: p.ID, Verbose: true})
			return err
		},
		"ContainerStats": func() error {
			_, err := n.Runtime.ContainerStats(ctx, &cri.ContainerStatsRequest{ContainerId: c.ID})
			return err
		},
		"ExecSync": func() error {
			_, err := n.Runtime.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: c.ID, Cmd: []string{"true"}})
			return err
		},
		"ReopenContainerLog":   func() error { return reopen(n, c.ID) },
		"another container":    func() error { return p.Create(t, "true").Start() },
		"UpdatePodSandboxReso": func() error { return updatePod(n, p.ID, &cri.LinuxContainerResources{CpuShares: 2048}, nil) },
	} {
		begin := time.Now()
		must(t, call())
		if took := time.Since(begin); took > 5*time.Second {
			t.Errorf("%s took %v while an update hangs", name, took)
		}
	}
	if got := kernelLimits(t, c); got != before {
		t.Errorf("%+v, want %+v", got, before)
	}
	begin := time.Now()
	must(t, c.Stop(0))
	must(t, os.Remove(gate))
	must(t, c.Remove())
	if took := time.Since(begin); took > 15*time.Second {
		t.Errorf("stopping and removing took %v", took)
	}
	if err := <-answer; err == nil {
		t.Error("the update of a container that ended succeeded")
	}
}

// TestUpdateUndone has the runtime apply a change and then fail: what it
// applied is put back, and the runtime forgets it too.
func TestUpdateUndone(t *testing.T) {
	skipOnPeer(t, "it leaves what was applied")
	n, gate := gatedRuntime(t)
	p := gatedPod(t, n)
	c := p.Run(t, "sleep 1000", func(c *cri.ContainerConfig) {
		c.Linux.Resources = &cri.LinuxContainerResources{CpuShares: 1024, CpuPeriod: 100000, CpuQuota: 50000, MemoryLimitInBytes: 64 << 20, CpusetCpus: "0-1", OomScoreAdj: 300}
	})
	before, told := kernelLimits(t, c), c.Status(t).GetResources().String()
	change := &cri.LinuxContainerResources{CpuShares: 512, CpuPeriod: 50000, CpuQuota: 20000, MemoryLimitInBytes: 128 << 20, CpusetCpus: "0", OomScoreAdj: 400}
	must(t, os.WriteFile(gate, []byte("fail"), 0o600))
	err := update(n, c.ID, change)
	if err == nil || !strings.Contains(err.Error(), "cpu_shares") {
		t.Errorf("error %v", err)
	}
	if got := kernelLimits(t, c); got != before || c.Status(t).GetResources().String() != told {
		t.Errorf("%+v, want %+v; told %v", got, before, c.Status(t).Resources)
	}
	if got := c.Shell(t, "cat /proc/1/oom_score_adj"); got != "300\n" {
		t.Errorf("score %q", got)
	}
	// runc writes all that it remembers at every update.
	must(t, os.Remove(gate))
	must(t, update(n, c.ID, &cri.LinuxContainerResources{CpusetCpus: "0"}))
	before.cpus = "0"
	if got := kernelLimits(t, c); got != before {
		t.Errorf("after the next update: %+v, want %+v", got, before)
	}
}

// TestUpdateCrash kills the daemon when the runtime has applied a change and
// not answered yet: the next daemon puts back what was in force.
func TestUpdateCrash(t *testing.T) {
	skipOnPeer(t, "it leaves what was applied")
	n, gate := gatedRuntime(t)
	p := gatedPod(t, n)
	c := p.Run(t, "sleep 1000", func(c *cri.ContainerConfig) {
		c.Linux.Resources = &cri.LinuxContainerResources{CpuShares: 1024, MemoryLimitInBytes: 64 << 20}
	})
	before := kernelLimits(t, c)
	must(t, os.WriteFile(gate, []byte("stick"), 0o600))
	go update(n, c.ID, &cri.LinuxContainerResources{CpuShares: 512, MemoryLimitInBytes: 128 << 20})
	met(t, gate)
	if kernelLimits(t, c) == before {
		t.Fatal("the runtime applied nothing, so this proves nothing")
	}
	n.Kill()
	must(t, os.Remove(gate))
	must(t, n.Launch())
	node.Eventually(t, "limits are put back", 20*time.Second, func() bool { return kernelLimits(t, c) == before })
	must(t, update(n, c.ID, &cri.LinuxContainerResources{CpuShares: 512}))
	if s := c.Status(t).GetResources().GetLinux(); s.GetCpuShares() != 512 || s.GetMemoryLimitInBytes() != 64<<20 {
		t.Errorf("told %v", s)
	}
}
