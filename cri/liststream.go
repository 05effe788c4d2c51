package cri

import (
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	api "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/internal/kind"
)

// batchBytes is about the size of a message of a streamed list, encoded. It is
// a quarter of what gRPC clients take without being told (4 MiB), and enough
// that a node's whole list is usually one message.
const batchBytes = 1 << 20

// batches cuts a list into parts of at most batchBytes encoded, each of at
// least one item: one that is larger by itself is a part of its own.
func batches[T proto.Message](items []T) [][]T {
	var parts [][]T
	first, size := 0, 0
	for i, item := range items {
		// A message holds an item as one byte of tag, its length and itself.
		n := 1 + protowire.SizeBytes(proto.Size(item))
		if i > first && size+n > batchBytes {
			parts = append(parts, items[first:i])
			first, size = i, 0
		}
		size += n
	}
	if first < len(items) {
		parts = append(parts, items[first:])
	}
	return parts
}

// streamList sends a list, which was taken before the first message and so is
// the same that the unary call would give, in as many messages as it needs. An
// empty list is a stream without messages.
func streamList[T proto.Message, R any](s *Server, out grpc.ServerStreamingServer[R], items []T, message func([]T) *R) error {
	for _, part := range batches(items) {
		m := message(part)
		if n := proto.Size(any(m).(proto.Message)); n > maxMessage {
			return kind.Errorf(kind.Exhausted, "one item of the list has %d bytes, more than the %d of a message (max_message): remove the pod or container with so many labels and annotations", n, maxMessage)
		}
		if err := s.send(out, m, nil); err != nil {
			return err
		}
	}
	return nil
}

// streamOf names the stream that stands in for a list too long for a message.
var streamOf = map[string]string{
	"ListPodSandbox":        "StreamPodSandboxes",
	"ListContainers":        "StreamContainers",
	"ListContainerStats":    "StreamContainerStats",
	"ListPodSandboxStats":   "StreamPodSandboxStats",
	"ListPodSandboxMetrics": "StreamPodSandboxMetrics",
	"ListImages":            "StreamImages",
}

// checkReply refuses an answer that the client could not take, and says what
// could be asked for instead; gRPC would name two numbers.
func checkReply(method string, resp any) error {
	m, ok := resp.(proto.Message)
	if !ok {
		return nil
	}
	n := proto.Size(m)
	if n <= maxMessage {
		return nil
	}
	instead := "ask for less"
	if stream := streamOf[method]; stream != "" {
		instead = "call " + stream + ", which has no limit, or give a filter"
	}
	return kind.Errorf(kind.Exhausted, "the answer has %d bytes, more than the %d of a message (max_message): %s", n, maxMessage, instead)
}

// StreamPodSandboxes is ListPodSandbox without a limit of size.
func (s *Server) StreamPodSandboxes(req *api.StreamPodSandboxesRequest, out grpc.ServerStreamingServer[api.StreamPodSandboxesResponse]) error {
	return streamList(s, out, s.sandboxes.ListPods(req.Filter), func(part []*api.PodSandbox) *api.StreamPodSandboxesResponse {
		return &api.StreamPodSandboxesResponse{PodSandboxes: part}
	})
}

// StreamContainers is ListContainers without a limit of size.
func (s *Server) StreamContainers(req *api.StreamContainersRequest, out grpc.ServerStreamingServer[api.StreamContainersResponse]) error {
	return streamList(s, out, s.sandboxes.ListContainers(req.Filter), func(part []*api.Container) *api.StreamContainersResponse {
		return &api.StreamContainersResponse{Containers: part}
	})
}

// StreamContainerStats is ListContainerStats without a limit of size.
func (s *Server) StreamContainerStats(req *api.StreamContainerStatsRequest, out grpc.ServerStreamingServer[api.StreamContainerStatsResponse]) error {
	stats, err := s.sandboxes.ListContainerStats(out.Context(), req.Filter)
	if err != nil {
		return err
	}
	return streamList(s, out, stats, func(part []*api.ContainerStats) *api.StreamContainerStatsResponse {
		return &api.StreamContainerStatsResponse{ContainerStats: part}
	})
}

// StreamPodSandboxStats is ListPodSandboxStats without a limit of size.
func (s *Server) StreamPodSandboxStats(req *api.StreamPodSandboxStatsRequest, out grpc.ServerStreamingServer[api.StreamPodSandboxStatsResponse]) error {
	stats, err := s.sandboxes.ListPodStats(out.Context(), req.Filter)
	if err != nil {
		return err
	}
	return streamList(s, out, stats, func(part []*api.PodSandboxStats) *api.StreamPodSandboxStatsResponse {
		return &api.StreamPodSandboxStatsResponse{PodSandboxStats: part}
	})
}

// StreamImages is ListImages without a limit of size.
func (s *Server) StreamImages(req *api.StreamImagesRequest, out grpc.ServerStreamingServer[api.StreamImagesResponse]) error {
	images, err := s.listImages(req.Filter)
	if err != nil {
		return err
	}
	return streamList(s, out, images, func(part []*api.Image) *api.StreamImagesResponse {
		return &api.StreamImagesResponse{Images: part}
	})
}

// StreamPodSandboxMetrics is ListPodSandboxMetrics without a limit of size.
func (s *Server) StreamPodSandboxMetrics(_ *api.StreamPodSandboxMetricsRequest, out grpc.ServerStreamingServer[api.StreamPodSandboxMetricsResponse]) error {
	list, err := s.sandboxes.ListPodMetrics(out.Context())
	if err != nil {
		return err
	}
	return streamList(s, out, list, func(part []*api.PodSandboxMetrics) *api.StreamPodSandboxMetricsResponse {
		return &api.StreamPodSandboxMetricsResponse{PodSandboxMetrics: part}
	})
}
