package e2e

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/test/node"
)

// resizing is a container in a pod whose cgroup is noded's own, with limits
// that are changed between two sets.
type resizing struct {
	n        *node.Node
	p        *node.Pod
	c        *node.Container
	old, new state
}

// state is what the kernel and status tell of the two.
type state struct {
	container, pod enforced
	told, score    string
}

func limitSets(i int64) (container, pod *cri.LinuxContainerResources) {
	return &cri.LinuxContainerResources{CpuShares: 1024 * i, CpuPeriod: 100000, CpuQuota: 50000 * i, MemoryLimitInBytes: i * 64 << 20, CpusetCpus: "0", OomScoreAdj: 300 * i},
		&cri.LinuxContainerResources{CpuShares: 2048 * i, CpuPeriod: 100000, CpuQuota: 80000 * i, MemoryLimitInBytes: i * 256 << 20}
}

// change asks for the first or the second set. The pod's comes first where it
// grows and last where it shrinks, since v1 lets no quota exceed that above.
func (r *resizing) change(i int64) error {
	container, pod := limitSets(i)
	calls := []func() error{
		func() error { return updatePod(r.n, r.p.ID, pod, nil) },
		func() error { return update(r.n, r.c.ID, container) },
	}
	if i == 1 {
		slices.Reverse(calls)
	}
	for _, call := range calls {
		if err := call(); err != nil {
			return err
		}
	}
	return nil
}

func (r *resizing) state(t *testing.T) state {
	t.Helper()
	return state{kernelLimits(t, r.c), podLimits(t, r.p), r.c.Status(t).GetResources().String(), r.c.Shell(t, "cat /proc/1/oom_score_adj")}
}

// TestUpdateSweep kills the daemon before and after every step of an update,
// and in every step of undoing one: the next daemon leaves all or nothing of
// it, and another update goes through.
func TestUpdateSweep(t *testing.T) {
	skipOnPeer(t, "it has no named steps")
	faulty, err := node.Build(t.TempDir(), "faults")
	must(t, err)
	n := node.New(t, node.Options{Binary: faulty, Registry: registry})
	must(t, n.Warm())
	r := &resizing{n: n}
	r.p = n.RunPod(t, func(c *cri.PodSandboxConfig) { c.Linux.CgroupParent = "" })
	r.c = r.p.Run(t, "exec sleep 1000", func(c *cri.ContainerConfig) { c.Linux.Resources, _ = limitSets(1) })
	must(t, r.change(1))
	r.old = r.state(t)
	points := r.points(t)
	r.new = r.state(t)
	if len(points) < 20 || r.old.container == r.new.container || r.old.pod == r.new.pod {
		t.Fatalf("points %v, from %+v to %+v", points, r.old, r.new)
	}
	for _, point := range points {
		t.Run(strings.ReplaceAll(point, " ", "_"), func(t *testing.T) { r.crash(t, point) })
	}
	for _, step := range []string{"ask runtime", "restore files", "restore oom score", "record restored"} {
		for _, when := range []string{"before", "after"} {
			t.Run("undo/"+strings.ReplaceAll(step, " ", "_")+"/"+when, func(t *testing.T) {
				r.crash(t, "update/record/before", "undo update/"+step+"/"+when)
			})
		}
	}
}

// points are what one update of both passes.
func (r *resizing) points(t *testing.T) []string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "points")
	relaunch(t, r.n, "NODED_CRASH_LIST="+file)
	must(t, r.n.Ready(10*time.Second))
	must(t, r.change(2))
	_, err := r.n.Terminate()
	must(t, err)
	must(t, r.n.Launch())
	data, err := os.ReadFile(file)
	must(t, err)
	points := slices.DeleteFunc(strings.Split(strings.TrimSpace(string(data)), "\n"), func(p string) bool { return !strings.HasPrefix(p, "update") })
	slices.Sort(points)
	return slices.Compact(points)
}

// crash updates with a daemon that dies at the first point, and starts one
// after the other that die at the further ones.
func (r *resizing) crash(t *testing.T, points ...string) {
	must(t, r.change(1))
	relaunch(t, r.n, "NODED_CRASH="+points[0])
	must(t, r.n.Ready(10*time.Second))
	if err := r.change(2); err == nil {
		t.Logf("the answer came before the end at %s", points[0])
	}
	for i, point := range points {
		select {
		case <-r.n.Ended():
		case <-time.After(10 * time.Second):
			t.Fatalf("the daemon did not die at %s", point)
		}
		if i+1 < len(points) {
			r.n.Env = []string{"NODED_CRASH=" + points[i+1]}
			must(t, r.n.Begin())
			r.n.Env = nil
		}
	}
	must(t, r.n.Launch())
	whole := func() bool {
		s := r.state(t)
		podOnly := r.old
		podOnly.pod = r.new.pod // the pod's update was done, the container's not
		return s == r.old || s == podOnly || s == r.new
	}
	deadline := time.Now().Add(20 * time.Second)
	for !whole() {
		if time.Now().After(deadline) {
			t.Fatalf("half an update is left: %+v, neither %+v nor %+v", r.state(t), r.old, r.new)
		}
		time.Sleep(50 * time.Millisecond) // undoing has no event
	}
	must(t, r.change(2))
	if s := r.state(t); s != r.new {
		t.Errorf("after another update %+v, want %+v", s, r.new)
	}
}
