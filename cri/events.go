package cri

import (
	"google.golang.org/grpc"
	api "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/internal/kind"
)

// GetContainerEvents sends what happens to containers until the client goes
// away. A client that reads too slowly is cut off, and must list again: it
// never holds up the containers.
func (s *Server) GetContainerEvents(_ *api.GetEventsRequest, out grpc.ServerStreamingServer[api.ContainerEventResponse]) error {
	events, cancel := s.sandboxes.Subscribe()
	defer cancel()
	// The header tells the client that it is subscribed: what it lists from
	// now on cannot be older than the events.
	if err := out.SendHeader(nil); err != nil {
		return err
	}
	ctx := out.Context()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.closing:
			return errStopping
		case event, ok := <-events:
			if !ok {
				return kind.Errorf(kind.Exhausted, "events were read too slowly and some are lost; list again")
			}
			if err := s.send(out, event, nil); err != nil {
				return err
			}
		}
	}
}
