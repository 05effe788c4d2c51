package e2e

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/test/node"
)

// subscribe reads events from now on.
func subscribe(t *testing.T, n *node.Node, ctx context.Context) grpc.ServerStreamingClient[cri.ContainerEventResponse] {
	t.Helper()
	stream, err := n.Runtime.GetContainerEvents(ctx, &cri.GetEventsRequest{})
	must(t, err)
	_, err = stream.Header() // the subscription is made when this arrives
	must(t, err)
	return stream
}

func eventName(e *cri.ContainerEventResponse) string {
	return strings.TrimSuffix(strings.TrimPrefix(e.ContainerEventType.String(), "CONTAINER_"), "_EVENT")
}

// TestEvents follows a pod's life as it is announced.
func TestEvents(t *testing.T) {
	skipOnPeer(t, "it is older than this")
	n := start(t)
	ctx, cancel := node.Context()
	defer cancel()
	stream := subscribe(t, n, ctx)
	p := n.RunPod(t)
	c := p.Run(t, "exit 3")
	c.WaitExit(t)
	must(t, c.Remove())
	must(t, p.Remove())
	want := []string{"pod CREATED", "pod STARTED", "c CREATED", "c STARTED", "c STOPPED 3", "c DELETED", "pod STOPPED", "pod DELETED"}
	for len(want) > 0 {
		e, err := stream.Recv()
		must(t, err)
		got := ""
		switch e.ContainerId {
		case p.ID:
			got = "pod " + eventName(e)
		case c.ID:
			got = "c " + eventName(e)
			if got == "c STOPPED" && len(e.ContainersStatuses) == 1 {
				got += " " + itoa(int(e.ContainersStatuses[0].ExitCode))
			}
		default:
			continue
		}
		if got != want[0] {
			t.Fatalf("event %q, want %q", got, want[0])
		}
		if e.PodSandboxStatus.GetId() != p.ID || e.PodSandboxStatus.GetMetadata().GetUid() != p.Config.Metadata.Uid {
			t.Errorf("%s: status of pod %v", got, e.PodSandboxStatus)
		}
		want = want[1:]
	}
	wantNoMore(t, cancel, stream)
}

// wantNoMore ends the stream and checks that nothing waited in it.
func wantNoMore(t *testing.T, cancel func(), stream grpc.ServerStreamingClient[cri.ContainerEventResponse]) {
	t.Helper()
	cancel()
	if e, err := stream.Recv(); err == nil {
		t.Errorf("one event too many: %v", e)
	}
}

// TestEventsOfManyPods runs pods at once, each with a container that ends by
// itself at once, one that is killed and one that the pod's removal kills.
// Each life is told whole and in order, each event with all statuses as they
// were at its moment, and times never go back.
func TestEventsOfManyPods(t *testing.T) {
	skipOnPeer(t, "it is older than this")
	n := start(t)
	ctx, cancel := node.Context()
	defer cancel()
	stream := subscribe(t, n, ctx)
	const pods = 5
	var wg sync.WaitGroup
	for range pods {
		config := n.PodConfig(t)
		wg.Go(func() {
			if err := threeLives(n, config); err != nil {
				t.Error(err)
			}
		})
	}
	lives := map[string][]string{} // by container or pod id
	last := int64(0)
	for ended := 0; ended < pods; {
		e, err := stream.Recv()
		must(t, err)
		if e.CreatedAt <= last {
			t.Errorf("an event of %d comes after one of %d", e.CreatedAt, last)
		}
		last = e.CreatedAt
		lives[e.ContainerId] = append(lives[e.ContainerId], eventName(e))
		checkStatuses(t, e, lives)
		if e.ContainerId == e.PodSandboxStatus.GetId() && eventName(e) == "DELETED" {
			ended++
		}
	}
	wg.Wait()
	wantNoMore(t, cancel, stream)
	if len(lives) != 4*pods {
		t.Errorf("%d pods and containers had events, want %d", len(lives), 4*pods)
	}
	for id, life := range lives {
		if !slices.Equal(life, []string{"CREATED", "STARTED", "STOPPED", "DELETED"}) {
			t.Errorf("life of %s: %v", id, life)
		}
	}
}

func threeLives(n *node.Node, config *cri.PodSandboxConfig) error {
	ctx, cancel := node.Context()
	defer cancel()
	r, err := n.Runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: config})
	if err != nil {
		return err
	}
	p := &node.Pod{Node: n, ID: r.PodSandboxId, Config: config}
	for name, script := range map[string]string{"short": "exit 0", "killed": "sleep 1000", "left": "sleep 1000"} {
		c, err := p.TryCreate(node.ContainerConfig(name, script))
		if err != nil {
			return err
		}
		if err := c.Start(); err != nil {
			return err
		}
		if name == "killed" {
			err = c.Stop(0)
		}
		if err != nil {
			return err
		}
	}
	_, err = n.Runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: p.ID})
	return err
}

// checkStatuses compares the statuses in an event with what the events so far,
// this one included, have told.
func checkStatuses(t *testing.T, e *cri.ContainerEventResponse, lives map[string][]string) {
	t.Helper()
	shown := false
	for _, s := range e.ContainersStatuses {
		life := append([]string{"UNKNOWN"}, lives[s.Id]...)
		want := map[string]cri.ContainerState{
			"CREATED": cri.ContainerState_CONTAINER_CREATED, "STARTED": cri.ContainerState_CONTAINER_RUNNING,
			"STOPPED": cri.ContainerState_CONTAINER_EXITED,
		}[life[len(life)-1]]
		if s.State != want || len(life) == 1 {
			t.Errorf("event %s of %.8s shows %.8s as %v, whose life is %v", eventName(e), e.ContainerId, s.Id, s.State, life)
		}
		shown = shown || s.Id == e.ContainerId
	}
	pod := e.PodSandboxStatus
	switch {
	case e.ContainerId != pod.GetId():
		if shown == (eventName(e) == "DELETED") {
			t.Errorf("event %s of %.8s shows its container: %v", eventName(e), e.ContainerId, shown)
		}
	case (pod.State == cri.PodSandboxState_SANDBOX_READY) != (eventName(e) == "CREATED" || eventName(e) == "STARTED"):
		t.Errorf("event %s of pod %.8s shows it as %v", eventName(e), pod.Id, pod.State)
	}
}

// TestStalledEvents has a reader that stops reading. It is dropped when 64 MiB
// wait for it, holds up nobody, and hears of it when it reads again.
func TestStalledEvents(t *testing.T) {
	skipOnPeer(t, "it is older than this")
	n := start(t)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	stalled, reads := subscribe(t, n, ctx), subscribe(t, n, ctx)
	// Every event of this pod carries its megabyte.
	p := n.RunPod(t, func(c *cri.PodSandboxConfig) { c.Annotations["long"] = strings.Repeat("x", 1000<<10) })
	events := 0
	read := func(n int) {
		for range n {
			_, err := reads.Recv()
			must(t, err)
			events++
		}
	}
	read(2) // created, started
	for events < 80 {
		must(t, p.Create(t, "true").Remove())
		read(3) // created, stopped, deleted
	}
	got := 0
	_, err := stalled.Recv()
	for ; err == nil; got++ {
		_, err = stalled.Recv()
	}
	wantCode(t, err, codes.ResourceExhausted)
	if got >= events || !strings.Contains(err.Error(), "67108864 bytes") || !strings.Contains(err.Error(), "list again") {
		t.Errorf("it read %d of %d events and then got %v", got, events, err)
	}
}
