package sandbox

import (
	"context"
	"errors"
	"os"
	"sync"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/internal/kind"
	"noded.dev/noded/runtime"
)

// A container whose creation began before its pod was stopped does not live on
// in the stopped pod.
func TestStopPodDuringCreate(t *testing.T) {
	n := newNode(t)
	pod := n.mustRun(t, "p")
	creating, release := make(chan struct{}), make(chan struct{})
	n.runtime.create = func(context.Context, string) error {
		close(creating)
		<-release
		return nil
	}
	created, stopped := make(chan string, 1), make(chan error, 1)
	go func() {
		id, err := n.CreateContainer(t.Context(), pod, containerConfig("c"))
		if err != nil {
			t.Error(err)
		}
		created <- id
	}()
	<-creating
	go func() { stopped <- n.StopPod(t.Context(), pod) }()
	select {
	case err := <-stopped:
		t.Fatalf("the stop did not wait for the creation: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	close(release)
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	if id := <-created; n.runtime.lives(id) || n.state(t, id) != cri.ContainerState_CONTAINER_EXITED {
		t.Error("the container lives in a stopped pod")
	}
}

// The same without a hook: whichever comes first, nothing lives afterwards.
func TestStopPodAgainstCreate(t *testing.T) {
	n := newNode(t)
	for range 300 {
		pod := n.mustRun(t, newID()[:8])
		var wg sync.WaitGroup
		var id string
		wg.Go(func() { id, _ = n.CreateContainer(t.Context(), pod, containerConfig("c")) })
		wg.Go(func() {
			if err := n.StopPod(t.Context(), pod); err != nil {
				t.Error(err)
			}
		})
		wg.Wait()
		if id != "" && n.runtime.lives(id) {
			t.Fatal("a container lives in a stopped pod")
		}
	}
}

// The end of the daemon ends no container, also none whose start is under way;
// the next daemon finishes the start.
func TestCloseDuringStart(t *testing.T) {
	n := newNode(t)
	id := n.mustCreate(t, n.mustRun(t, "p"), "c")
	starting := make(chan struct{})
	n.runtime.start = func(ctx context.Context, _ string) error {
		close(starting)
		<-ctx.Done()
		return ctx.Err()
	}
	failed := make(chan error, 1)
	go func() { failed <- n.StartContainer(t.Context(), id) }()
	<-starting
	n.close()
	if err := <-failed; err == nil {
		t.Error("the start succeeded")
	}
	if !n.runtime.lives(id) {
		t.Fatal("the end of the daemon has killed the container")
	}
	n.runtime.start = nil
	n.open(t)
	if s := n.state(t, id); s != cri.ContainerState_CONTAINER_RUNNING {
		t.Errorf("after the restart it is %v", s)
	}
}

// A repeated StopContainer joins the first: one stop signal, and the shortest
// grace counts.
func TestStopSignalIsSentOnce(t *testing.T) {
	n := newNode(t)
	id := n.mustCreate(t, n.mustRun(t, "p"), "c")
	n.mustStart(t, id)
	var mu sync.Mutex
	sent := map[int]int{}
	got := make(chan int, 8)
	n.runtime.signal = func(_ string, signal int) bool {
		mu.Lock()
		defer mu.Unlock()
		sent[signal]++
		got <- signal
		return signal != 9
	}
	stopped := make(chan error, 2)
	go func() { stopped <- n.StopContainer(t.Context(), id, time.Hour) }()
	<-got
	go func() { stopped <- n.StopContainer(t.Context(), id, 10*time.Millisecond) }()
	if err := errors.Join(<-stopped, <-stopped); err != nil {
		t.Error(err)
	}
	if sent[15] != 1 || sent[9] != 1 {
		t.Errorf("signals sent: %v", sent)
	}
}

// Removing a pod does not wait for the grace of a stop that is under way.
func TestRemovePodDuringStop(t *testing.T) {
	n := newNode(t)
	pod := n.mustRun(t, "p")
	id := n.mustCreate(t, pod, "c")
	n.mustStart(t, id)
	asked := make(chan struct{}, 8)
	n.runtime.signal = func(_ string, signal int) bool {
		asked <- struct{}{}
		return signal != 9
	}
	stopped := make(chan error, 1)
	go func() { stopped <- n.StopContainer(t.Context(), id, time.Hour) }()
	<-asked
	if err := n.RemovePod(t.Context(), pod); err != nil {
		t.Error(err)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	n.nothingLeft(t)
}

// sharedPID makes a container share its pod's PID namespace.
func sharedPID(config *cri.ContainerConfig) *cri.ContainerConfig {
	config.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD
	return config
}

// An init that ends before its start is written down is no init: nobody may
// join the PID namespace of whoever gets its pid next.
func TestInitEndsAtOnce(t *testing.T) {
	n := newNode(t)
	pod := n.mustRun(t, "p")
	n.runtime.create = func(_ context.Context, id string) error {
		if id == pod {
			n.exited(runtime.Exit{ID: id, Code: 1, At: time.Now()})
		}
		return nil
	}
	if _, err := n.CreateContainer(t.Context(), pod, sharedPID(containerConfig("c"))); !kind.Is(err, kind.Aborted) {
		t.Errorf("create: %v", err)
	}
	if pid := n.pods[pod].record().Init.Pid; pid != 0 {
		t.Errorf("the dead process %d is the pod's init", pid)
	}
	n.runtime.create = nil
	if _, err := n.CreateContainer(t.Context(), pod, sharedPID(containerConfig("c"))); err != nil {
		t.Error(err)
	}
	if err := n.RemovePod(t.Context(), pod); err != nil {
		t.Error(err)
	}
	n.nothingLeft(t)
}

// The end of the init takes the pod out of service and is announced; for a pod
// that is stopped or going away it changes nothing.
func TestInitEnds(t *testing.T) {
	n := newNode(t)
	pod := n.mustRun(t, "p")
	if _, err := n.CreateContainer(t.Context(), pod, sharedPID(containerConfig("c"))); err != nil {
		t.Fatal(err)
	}
	events := n.Subscribe()
	defer events.Close()
	p := n.pods[pod]
	p.initExited(runtime.Exit{ID: pod})
	if s := p.view.Load().state; s != podStopped {
		t.Errorf("the pod is %s", s)
	}
	if e := drain(t, events)[0]; e.ContainerId != pod || e.ContainerEventType != cri.ContainerEventType_CONTAINER_STOPPED_EVENT {
		t.Errorf("announced: %v", e)
	}
	if err := p.update(func(r *podRecord) { r.State = podRemoving }); err != nil {
		t.Fatal(err)
	}
	p.initExited(runtime.Exit{ID: pod})
	if s := p.view.Load().state; s != podRemoving {
		t.Errorf("a pod that was being removed is %s", s)
	}
}

// An init whose start outlasts the stop of its pod is not left behind.
func TestStopPodDuringInitStart(t *testing.T) {
	n := newNode(t)
	pod := n.mustRun(t, "p")
	creating, release := make(chan struct{}), make(chan struct{})
	n.runtime.create = func(_ context.Context, id string) error {
		if id == pod {
			close(creating)
			<-release
		}
		return nil
	}
	created := make(chan struct{})
	go func() {
		defer close(created)
		_, _ = n.pods[pod].ensureInit(t.Context())
	}()
	<-creating
	stopped := make(chan error, 1)
	go func() { stopped <- n.StopPod(t.Context(), pod) }()
	time.AfterFunc(20*time.Millisecond, func() { close(release) })
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	<-created
	if n.runtime.lives(pod) {
		t.Error("the init lives in a stopped pod")
	}
	if _, err := n.pods[pod].ensureInit(t.Context()); !kind.Is(err, kind.Precondition) {
		t.Errorf("an init for a stopped pod: %v", err)
	}
}

// A container that ended while its removal went on and failed is listed as
// exited, and the next removal is not kept waiting for an end that was told.
func TestFailedRemovalOfEnded(t *testing.T) {
	n := newNode(t)
	pod := n.mustRun(t, "p")
	id := n.mustCreate(t, pod, "c")
	c := n.containers[id]
	n.images.unmount = func(string) error { return errors.New("busy") }
	if err := exclusively(t.Context(), c.busy, c.destroy); err == nil {
		t.Fatal("the removal succeeded")
	}
	if s := n.state(t, id); s != cri.ContainerState_CONTAINER_EXITED {
		t.Errorf("what the runtime holds no more is %v", s)
	}
	n.images.unmount = nil
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if err := n.RemoveContainer(ctx, id); err != nil {
		t.Error(err)
	}
}

// An exit whose record cannot be saved stays with the shim, where a restart
// finds it.
func TestExitOnFullDisk(t *testing.T) {
	n := newNode(t)
	id := n.mustCreate(t, n.mustRun(t, "p"), "c")
	n.mustStart(t, id)
	c := n.containers[id]
	// As root no permission would stop the save; a missing folder does.
	if err := os.Rename(c.paths.root, c.paths.root+".away"); err != nil {
		t.Fatal(err)
	}
	n.runtime.end(id, 3)
	<-c.ended
	n.close()
	if n.runtime.deleted[id] != 0 {
		t.Error("the shim was told to forget an exit that is not recorded")
	}
	if err := os.Rename(c.paths.root+".away", c.paths.root); err != nil {
		t.Fatal(err)
	}
	n.open(t)
	if s, err := n.ContainerStatus(id, false); err != nil || s.Status.ExitCode != 3 {
		t.Errorf("after the restart: %v, %v", s, err)
	}
}

// Many callers at once remove one pod; all succeed and it is announced once.
func TestRemovePodByMany(t *testing.T) {
	n := newNode(t)
	pod := n.mustRun(t, "p")
	n.mustStart(t, n.mustCreate(t, pod, "c"))
	events := n.Subscribe()
	defer events.Close()
	var wg sync.WaitGroup
	for range 32 {
		wg.Go(func() {
			if err := errors.Join(n.StopPod(t.Context(), pod), n.RemovePod(t.Context(), pod)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	n.nothingLeft(t)
	deleted := 0
	for _, e := range drain(t, events) {
		if e.ContainerId == pod && e.ContainerEventType == cri.ContainerEventType_CONTAINER_DELETED_EVENT {
			deleted++
		}
	}
	if deleted != 1 {
		t.Errorf("the pod's end was announced %d times", deleted)
	}
}

// One pod that cannot be measured does not blind the kubelet to the others.
func TestStatsLeaveOutTheBroken(t *testing.T) {
	n := newNode(t)
	broken, good := n.mustRun(t, "broken"), n.mustRun(t, "good")
	// Its network is its own now, and there is none.
	namespaces(n.pods[broken].config).Network = cri.NamespaceMode_POD
	list, err := n.ListPodStats(t.Context(), nil)
	if err != nil || len(list) != 1 || list[0].Attributes.Id != good {
		t.Errorf("got %v, %v", list, err)
	}
}
