package sandbox

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/runtime"
)

// drain returns the events that wait to be read.
func drain(t *testing.T, events *Events) []*cri.ContainerEventResponse {
	t.Helper()
	stop := make(chan struct{})
	close(stop)
	var list []*cri.ContainerEventResponse
	for {
		e, err := events.Next(t.Context(), stop)
		if err != nil {
			return list
		}
		list = append(list, e)
	}
}

const (
	evCreated = cri.ContainerEventType_CONTAINER_CREATED_EVENT
	evStarted = cri.ContainerEventType_CONTAINER_STARTED_EVENT
	evStopped = cri.ContainerEventType_CONTAINER_STOPPED_EVENT
	evDeleted = cri.ContainerEventType_CONTAINER_DELETED_EVENT
)

// checkEvents checks what holds for every sequence of events: times grow, each
// object goes through its life once and in order, and each event shows it, and
// all others of the pod, as they were at that moment.
func checkEvents(t *testing.T, events []*cri.ContainerEventResponse) map[string][]cri.ContainerEventType {
	t.Helper()
	lives := map[string][]cri.ContainerEventType{}
	last := int64(0)
	for i, e := range events {
		if e.CreatedAt <= last {
			t.Errorf("event %d is of %d, not after %d", i, e.CreatedAt, last)
		}
		last = e.CreatedAt
		lives[e.ContainerId] = append(lives[e.ContainerId], e.ContainerEventType)
		pod := e.PodSandboxStatus
		if pod.GetId() == "" || pod.GetMetadata() == nil {
			t.Errorf("event %d has no pod status: %v", i, e)
		}
		shown := map[string]*cri.ContainerStatus{}
		for _, s := range e.ContainersStatuses {
			shown[s.Id] = s
			if want := stateAfter(lives[s.Id]); s.State != want {
				t.Errorf("event %d (%v of %.8s) shows container %.8s as %v, it is %v by the events so far", i, e.ContainerEventType, e.ContainerId, s.Id, s.State, want)
			}
		}
		if e.ContainerId == pod.GetId() {
			if ready := pod.State == cri.PodSandboxState_SANDBOX_READY; ready != (e.ContainerEventType == evCreated || e.ContainerEventType == evStarted) {
				t.Errorf("event %d (%v) shows the pod as %v", i, e.ContainerEventType, pod.State)
			}
		} else if (shown[e.ContainerId] == nil) != (e.ContainerEventType == evDeleted) {
			t.Errorf("event %d (%v): its container is shown as %v", i, e.ContainerEventType, shown[e.ContainerId])
		}
	}
	return lives
}

// stateAfter is the state of a container after its events.
func stateAfter(life []cri.ContainerEventType) cri.ContainerState {
	if len(life) == 0 {
		return cri.ContainerState_CONTAINER_UNKNOWN
	}
	switch life[len(life)-1] {
	case evCreated:
		return cri.ContainerState_CONTAINER_CREATED
	case evStarted:
		return cri.ContainerState_CONTAINER_RUNNING
	}
	return cri.ContainerState_CONTAINER_EXITED
}

// Containers of several pods that are made, started, end by themselves, are
// stopped and removed by many at once: every life is told whole and in order.
func TestEventsOfManyAtOnce(t *testing.T) {
	n := newNode(t)
	events := n.Subscribe()
	defer events.Close()
	var wg sync.WaitGroup
	const pods, containers = 4, 8
	for p := range pods {
		pod := n.mustRun(t, fmt.Sprint("p", p))
		var inPod sync.WaitGroup
		for c := range containers {
			inPod.Go(func() {
				id := n.mustCreate(t, pod, fmt.Sprint("c", c))
				n.mustStart(t, id)
				if c%2 == 0 {
					n.exited(runtime.Exit{ID: id, Code: c, At: time.Now()})
				}
				if err := n.RemoveContainer(t.Context(), id); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Go(func() {
			inPod.Wait()
			if err := n.RemovePod(t.Context(), pod); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	lives := checkEvents(t, drain(t, events))
	if len(lives) != pods*(containers+1) {
		t.Errorf("%d objects had events, want %d", len(lives), pods*(containers+1))
	}
	want := []cri.ContainerEventType{evCreated, evStarted, evStopped, evDeleted}
	for id, life := range lives {
		if !slices.Equal(life, want) {
			t.Errorf("life of %.8s: %v", id, life)
		}
	}
}

// A container whose end is told before its start was written down has started
// all the same, and is told so first.
func TestEventsOfAShortLife(t *testing.T) {
	n := newNode(t)
	pod := n.mustRun(t, "p")
	id := n.mustCreate(t, pod, "c")
	events := n.Subscribe()
	defer events.Close()
	c := n.containers[id]
	if _, err := c.on(eventStart, func(r *containerRecord) { r.StartedAt = time.Now() }); err != nil {
		t.Fatal(err)
	}
	n.exited(runtime.Exit{ID: id, At: time.Now()})
	if err := c.started(); err != nil {
		t.Errorf("a start that comes late: %v", err)
	}
	got := drain(t, events)
	if len(got) != 2 || got[0].ContainerEventType != evStarted || got[1].ContainerEventType != evStopped {
		t.Fatalf("events: %v", got)
	}
	if s := got[0].ContainersStatuses[0]; s.State != cri.ContainerState_CONTAINER_RUNNING || s.StartedAt == 0 || s.FinishedAt != 0 {
		t.Errorf("when it started: %v", s)
	}
	if s := got[1].ContainersStatuses[0]; s.State != cri.ContainerState_CONTAINER_EXITED || s.FinishedAt == 0 {
		t.Errorf("when it ended: %v", s)
	}
}

// Of what never was there for a kubelet, nothing is told.
func TestNoEventsOfAFailedPod(t *testing.T) {
	n := newNode(t)
	events := n.Subscribe()
	defer events.Close()
	config := podConfig("p")
	config.LogDirectory = "/dev/null/logs"
	if _, err := n.RunPod(t.Context(), config, ""); err == nil {
		t.Fatal("the pod runs without its log folder")
	}
	if got := drain(t, events); len(got) != 0 {
		t.Errorf("events: %v", got)
	}
}

// A pod whose stop fails half-way was stopped, and that is told; once.
func TestEventsOfAStopThatFails(t *testing.T) {
	n := newNode(t)
	pod := n.mustRun(t, "p")
	events := n.Subscribe()
	defer events.Close()
	n.pods[pod].rec.NetworkOwe = true
	n.network.del = fmt.Errorf("plugin is missing")
	if err := n.StopPod(t.Context(), pod); err == nil {
		t.Fatal("the stop succeeds without the network's")
	}
	n.network.del = nil
	if err := n.StopPod(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	if got := drain(t, events); len(got) != 1 || got[0].ContainerEventType != evStopped || got[0].ContainerId != pod {
		t.Errorf("events: %v", got)
	}
}

// The kubelet discards what is older than what it has: a status asked for
// after an event is newer than it, also where nothing has happened since.
func TestStatusTime(t *testing.T) {
	n := newNode(t)
	events := n.Subscribe()
	defer events.Close()
	pod := n.mustRun(t, "p")
	last := drain(t, events)[1].CreatedAt
	for range 3 {
		s, err := n.PodStatus(pod, false)
		if err != nil || s.Timestamp <= last {
			t.Fatalf("status of %d, %v; want one after %d", s.GetTimestamp(), err, last)
		}
		last = s.Timestamp
	}
	// A clock that was set back stands still, as far as it must.
	n.clock.last.Store(time.Now().Add(time.Hour).UnixNano())
	if a, b := n.clock.now(), n.clock.now(); b <= a {
		t.Errorf("%d, then %d", a, b)
	}
}

// With EventedPLEG the kubelet takes the first status of a name for the
// container's, unsorted, so a new attempt comes before those it replaces.
func TestNewestStatusFirst(t *testing.T) {
	n := newNode(t)
	pod := n.mustRun(t, "p")
	var want []string
	for _, name := range []string{"a", "b", "c"} {
		want = append([]string{n.mustCreate(t, pod, name)}, want...)
	}
	s, err := n.PodStatus(pod, false)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, c := range s.ContainersStatuses {
		got = append(got, c.Id)
	}
	if !slices.Equal(got, want) {
		t.Errorf("containers %v, want %v", got, want)
	}
}

// Containers of one pod change at once, as fast as they can: no event shows
// another's change that is not announced yet.
func TestEventsOfOnePod(t *testing.T) {
	n := newNode(t)
	p := n.pods[n.mustRun(t, "p")]
	var list []*Container
	for i := range 64 {
		list = append(list, n.containers[n.mustCreate(t, p.id, fmt.Sprint("c", i))])
	}
	events := n.Subscribe()
	defer events.Close()
	var wg sync.WaitGroup
	for _, c := range list {
		wg.Go(func() {
			for _, e := range []containerEvent{eventStart, eventStarted, eventExit} {
				if _, _, err := c.move(e, func(*containerRecord) {}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	states := map[string]cri.ContainerState{}
	for i, e := range drain(t, events) {
		states[e.ContainerId] = stateAfter([]cri.ContainerEventType{e.ContainerEventType})
		for _, s := range e.ContainersStatuses {
			if s.State != states[s.Id] {
				t.Fatalf("event %d shows %.8s as %v, it is %v by the events so far", i, s.Id, s.State, states[s.Id])
			}
		}
	}
	if len(states) != len(list) {
		t.Errorf("%d containers had events", len(states))
	}
}
