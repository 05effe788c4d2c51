package sandbox

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/internal/kind"
	"noded.dev/noded/runtime"
)

var timeNow = time.Now

func TestLife(t *testing.T) {
	n := newNode(t)
	events := n.Subscribe()
	defer events.Close()
	pod := n.mustRun(t, "p")
	id := n.mustCreate(t, pod, "c")
	if s := n.state(t, id); s != cri.ContainerState_CONTAINER_CREATED {
		t.Errorf("created container is %v", s)
	}
	n.mustStart(t, id)
	if s := n.state(t, id); s != cri.ContainerState_CONTAINER_RUNNING {
		t.Errorf("started container is %v", s)
	}
	if err := n.StopContainer(t.Context(), id, time.Minute); err != nil {
		t.Fatal(err)
	}
	status, err := n.ContainerStatus(id, true)
	if err != nil {
		t.Fatal(err)
	}
	if s := status.Status; s.State != cri.ContainerState_CONTAINER_EXITED || s.ExitCode != 143 || s.Reason != "Error" || s.FinishedAt == 0 {
		t.Errorf("stopped container: %v", s)
	}
	for range 2 { // all are idempotent
		for _, err := range []error{
			n.StopContainer(t.Context(), id, 0), n.RemoveContainer(t.Context(), id),
			n.StopPod(t.Context(), pod), n.RemovePod(t.Context(), pod),
		} {
			if err != nil {
				t.Error(err)
			}
		}
	}
	n.nothingLeft(t)
	var got []cri.ContainerEventType
	for _, e := range drain(t, events) {
		got = append(got, e.ContainerEventType)
	}
	created, started, stopped, deleted := cri.ContainerEventType_CONTAINER_CREATED_EVENT, cri.ContainerEventType_CONTAINER_STARTED_EVENT,
		cri.ContainerEventType_CONTAINER_STOPPED_EVENT, cri.ContainerEventType_CONTAINER_DELETED_EVENT
	want := []cri.ContainerEventType{created, started, created, started, stopped, deleted, stopped, deleted}
	if len(got) != len(want) {
		t.Fatalf("events %v, want %v", got, want)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Fatalf("events %v, want %v", got, want)
		}
	}
}

// One stuck container slows nobody: lists and statuses answer while another
// container's runtime hangs, and its retries join.
func TestListingNeverWaits(t *testing.T) {
	n := newNode(t)
	pod := n.mustRun(t, "p")
	other := n.mustCreate(t, pod, "other")
	stuck, release := make(chan struct{}), make(chan struct{})
	n.runtime.create = func(context.Context, string) error {
		close(stuck)
		<-release
		return nil
	}
	var wg sync.WaitGroup
	ids := make(chan string, 3)
	for range 3 {
		wg.Go(func() {
			id, err := n.CreateContainer(t.Context(), pod, containerConfig("stuck"))
			if err != nil {
				t.Error(err)
			}
			ids <- id
		})
	}
	<-stuck
	if got := len(n.ListContainers(nil)); got != 1 {
		t.Errorf("%d containers are listed, want 1", got)
	}
	if got := len(n.ListPods(nil)); got != 1 {
		t.Errorf("%d pods are listed, want 1", got)
	}
	n.state(t, other)
	if _, err := n.PodStatus(pod, true); err != nil {
		t.Error(err)
	}
	n.mustStart(t, other)
	close(release)
	wg.Wait()
	if a, b, c := <-ids, <-ids, <-ids; a != b || b != c {
		t.Errorf("retries got ids %s %s %s", a, b, c)
	}
	if n.runtime.created != 2 {
		t.Errorf("the runtime created %d containers, want 2", n.runtime.created)
	}
}

// Whatever step fails, nothing is left and the same request succeeds then.
func TestFailedStepsLeaveNothing(t *testing.T) {
	boom := errors.New("boom")
	for name, c := range map[string]struct{ set, unset func(*node) }{
		"mount":  {func(n *node) { n.images.mount = func(string) error { return boom } }, func(n *node) { n.images.mount = nil }},
		"create": {func(n *node) { n.runtime.create = func(context.Context, string) error { return boom } }, func(n *node) { n.runtime.create = nil }},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			pod := n.mustRun(t, "p")
			c.set(n)
			if _, err := n.CreateContainer(t.Context(), pod, containerConfig("c")); !errors.Is(err, boom) {
				t.Fatalf("got %v", err)
			}
			if list := n.ListContainers(nil); len(list) != 0 {
				t.Errorf("listed: %v", list)
			}
			c.unset(n)
			n.mustCreate(t, pod, "c")
			if err := n.RemovePod(t.Context(), pod); err != nil {
				t.Error(err)
			}
			n.nothingLeft(t)
		})
	}
}

// A command that cannot be executed is an error of StartContainer, and shows as
// an exited container with a StartError.
func TestStartError(t *testing.T) {
	n := newNode(t)
	pod := n.mustRun(t, "p")
	n.runtime.create = func(context.Context, string) error {
		return kind.Wrap(kind.Aborted, &runtime.StartError{Code: 127, Err: errors.New("/run: not found")})
	}
	id := n.mustCreate(t, pod, "c")
	if err := n.StartContainer(t.Context(), id); !kind.Is(err, kind.Aborted) {
		t.Errorf("start: %v", err)
	}
	status, err := n.ContainerStatus(id, false)
	if err != nil {
		t.Fatal(err)
	}
	if s := status.Status; s.State != cri.ContainerState_CONTAINER_EXITED || s.ExitCode != 127 || s.Reason != "StartError" || s.Message != "/run: not found" {
		t.Errorf("status: %v", s)
	}
	if err := n.RemovePod(t.Context(), pod); err != nil {
		t.Error(err)
	}
	n.nothingLeft(t)
}

// The exit of an init that dies before its creation is written down counts.
func TestEarlyExit(t *testing.T) {
	n := newNode(t)
	pod := n.mustRun(t, "p")
	n.runtime.create = func(_ context.Context, id string) error {
		n.exited(runtime.Exit{ID: id, Code: 137, At: time.Now()})
		return nil
	}
	id := n.mustCreate(t, pod, "c")
	if s := n.state(t, id); s != cri.ContainerState_CONTAINER_EXITED {
		t.Errorf("container is %v", s)
	}
}

func TestRunPodAgain(t *testing.T) {
	n := newNode(t)
	id := n.mustRun(t, "p")
	if again := n.mustRun(t, "p"); again != id {
		t.Errorf("the same request gave %s, then %s", id, again)
	}
	different := podConfig("p")
	different.Labels = map[string]string{"a": "b"}
	if _, err := n.RunPod(t.Context(), different, ""); !kind.Is(err, kind.Exists) {
		t.Errorf("another configuration: %v", err)
	}
	if _, err := n.RunPod(t.Context(), podConfig("q"), "kata"); !kind.Is(err, kind.NotFound) {
		t.Errorf("unknown handler: %v", err)
	}
}

func TestFind(t *testing.T) {
	n := newNode(t)
	id := n.mustRun(t, "p")
	if _, err := n.PodStatus(id[:13], false); err != nil {
		t.Error(err)
	}
	for _, bad := range []string{"", "x", id + "0"} {
		if _, err := n.PodStatus(bad, false); !kind.Is(err, kind.NotFound) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	for range 17 { // two of seventeen ids begin alike
		n.mustRun(t, newID()[:8])
	}
	for _, c := range "0123456789abcdef" {
		matching := len(n.ListPods(&cri.PodSandboxFilter{Id: string(c)}))
		_, err := n.PodStatus(string(c), false)
		if matching > 1 && !kind.Is(err, kind.Invalid) {
			t.Errorf("ambiguous %c: %v", c, err)
		}
	}
}

// A pod is gone only after its containers are, also those whose removal was
// under way already when the pod's began.
func TestRemovePodWaitsForContainers(t *testing.T) {
	n := newNode(t)
	pod := n.mustRun(t, "p")
	id := n.mustCreate(t, pod, "c")
	n.mustStart(t, id)
	busy, release := make(chan struct{}), make(chan struct{})
	n.images.unmount = func(string) error {
		close(busy)
		<-release
		n.images.unmount = nil
		return errors.New("busy")
	}
	removed := make(chan error, 2)
	go func() { removed <- n.RemoveContainer(t.Context(), id) }()
	<-busy
	go func() { removed <- n.RemovePod(t.Context(), pod) }()
	close(release)
	if err := errors.Join(<-removed, <-removed); err == nil {
		t.Error("the busy root filesystem was not reported")
	}
	n.nothingLeft(t)
}
