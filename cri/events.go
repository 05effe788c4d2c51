package cri

import (
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	api "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/internal/kind"
)

// GetContainerEvents sends what happens to containers until the client goes
// away. A client that reads too slowly is cut off, and must list again: it
// never holds up the containers.
func (s *Server) GetContainerEvents(_ *api.GetEventsRequest, out grpc.ServerStreamingServer[api.ContainerEventResponse]) error {
	events := s.sandboxes.Subscribe()
	defer events.Close()
	// The header tells the client that it is subscribed: what it lists from
	// now on cannot be older than the events.
	if err := out.SendHeader(nil); err != nil {
		return err
	}
	for {
		event, err := events.Next(out.Context(), s.closing)
		if err != nil {
			return err
		}
		if n := proto.Size(event); n > maxMessage {
			return kind.Errorf(kind.Exhausted, "an event of pod %s has %d bytes, more than the %d of a message (max_message): list instead",
				event.PodSandboxStatus.GetId(), n, maxMessage)
		}
		if err := s.send(out, event, events.Done()); err != nil {
			return err
		}
	}
}
