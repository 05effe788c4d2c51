package cri

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	api "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/internal/feed"
)

// newEventEdge is an edge whose readers of events are dropped when more than
// four wait for them.
func newEventEdge(t *testing.T) *edge {
	e := newEdge(t)
	e.sandboxes.events = feed.New(feed.Limits{Values: 4, Bytes: 64 << 20}, func(m *api.ContainerEventResponse) int { return proto.Size(m) })
	return e
}

func (e *edge) publish(event *api.ContainerEventResponse) {
	e.sandboxes.events.Publish(func() *api.ContainerEventResponse { return event })
}

// readEvents returns when the reader is subscribed, which the header says.
func (e *edge) readEvents(t *testing.T, ctx context.Context) grpc.ServerStreamingClient[api.ContainerEventResponse] {
	t.Helper()
	events, err := e.runtime.GetContainerEvents(ctx, &api.GetEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := events.Header(); err != nil {
		t.Fatal(err)
	}
	return events
}

func TestEvents(t *testing.T) {
	e := newEventEdge(t)
	events := e.readEvents(t, limited(t))
	for i := range 3 {
		e.publish(&api.ContainerEventResponse{ContainerId: fmt.Sprint(i)})
	}
	for i := range 3 {
		if event, err := events.Recv(); err != nil || event.ContainerId != fmt.Sprint(i) {
			t.Errorf("event %d: %v, %v", i, event, err)
		}
	}
	ctx, cancel := context.WithCancel(limited(t))
	gone := e.readEvents(t, ctx)
	cancel()
	if _, err := gone.Recv(); status.Code(err) != codes.Canceled {
		t.Errorf("reader that went away: %v", err)
	}
	e.server.Close()
	if _, err := events.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("reader when the server closes: %v", err)
	}
}

// A reader that has stopped reading is dropped: its call ends on the server,
// which keeps nothing for it, and it hears why when it reads again.
func TestStalledEventReader(t *testing.T) {
	e := newEventEdge(t)
	stalled, other := e.readEvents(t, limited(t)), e.readEvents(t, limited(t))
	long := strings.Repeat("x", 1<<20) // more than gRPC takes without a reader
	ended := make(chan Call, 1)
	go func() { ended <- <-e.calls }()
	published := 0
	for done := false; !done; published++ {
		if published > 100 {
			t.Fatal("100 MiB wait for a reader that does not read")
		}
		e.publish(&api.ContainerEventResponse{ContainerId: fmt.Sprint(published, long)})
		if _, err := other.Recv(); err != nil {
			t.Fatalf("the other reader: %v", err)
		}
		select {
		case c := <-ended:
			if c.Method != "GetContainerEvents" || c.Code != "ResourceExhausted" {
				t.Fatalf("ended call: %+v", c)
			}
			done = true
		case <-time.After(20 * time.Millisecond): // gives the server time to find out
		}
	}
	var err error
	read := -1
	for ; err == nil; read++ {
		_, err = stalled.Recv()
	}
	if status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "list again") || read >= published {
		t.Errorf("the stalled reader read %d of %d events, then %v", read, published, err)
	}
}

// An event too large for a message ends the stream: left out, or cut, it
// would be a lie.
func TestGiantEvent(t *testing.T) {
	e := newEventEdge(t)
	events := e.readEvents(t, limited(t))
	e.publish(&api.ContainerEventResponse{PodSandboxStatus: &api.PodSandboxStatus{Id: "p1", Annotations: map[string]string{"a": strings.Repeat("x", maxMessage)}}})
	if _, err := events.Recv(); status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "event of pod p1") {
		t.Errorf("%v, want ResourceExhausted that names the pod", err)
	}
}
