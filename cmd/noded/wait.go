package main

import (
	"context"
	"fmt"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Where the runtime has no event stream, a container is asked for every
// pollStep: the CRI offers no other way. With one, every checkStep: an event
// between opening the stream and the server's subscription is never sent.
const (
	pollStep  = 200 * time.Millisecond
	checkStep = 2 * time.Second
)

// exitWatch is an event stream, opened before the container could end.
type exitWatch struct {
	ids    chan string // of containers to which something happened; closed without (more) events
	cancel context.CancelFunc
	ended  chan struct{}
}

func (c *client) watchExits(ctx context.Context) *exitWatch {
	ctx, cancel := context.WithCancel(ctx)
	w := &exitWatch{make(chan string), cancel, make(chan struct{})}
	go func() {
		defer close(w.ended)
		defer close(w.ids)
		events, err := c.GetContainerEvents(ctx, &cri.GetEventsRequest{})
		for err == nil {
			var event *cri.ContainerEventResponse
			if event, err = events.Recv(); err != nil {
				return
			}
			select {
			case w.ids <- event.GetContainerId():
			case <-ctx.Done():
				return
			}
		}
	}()
	return w
}

// close ends the stream and waits for its goroutine.
func (w *exitWatch) close() {
	w.cancel()
	<-w.ended
}

// waitExit returns the status of a container that has ended. After each event
// it asks for the status, which alone counts: events can be lost.
func (c *client) waitExit(ctx context.Context, w *exitWatch, id string) (*cri.ContainerStatus, error) {
	for {
		reply, err := c.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: id})
		if err != nil {
			return nil, fmt.Errorf("ask for container %s: %w", shortID(id), err)
		}
		if s := reply.GetStatus(); s.GetState() == cri.ContainerState_CONTAINER_EXITED {
			return s, nil
		}
		if err := w.next(ctx, id); err != nil {
			return nil, err
		}
	}
}

// next waits until something may have happened to the container.
func (w *exitWatch) next(ctx context.Context, id string) error {
	timer := time.NewTimer(checkStep)
	defer timer.Stop()
	ids := w.ids
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
			return nil
		case changed, ok := <-ids:
			if !ok {
				ids = nil
				timer.Reset(pollStep)
			} else if changed == id {
				return nil
			}
		}
	}
}
