package cri

import (
	"context"

	api "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/internal/kind"
)

// CheckpointContainer writes a running container's state into an archive; the
// container goes on.
func (s *Server) CheckpointContainer(ctx context.Context, req *api.CheckpointContainerRequest) (*api.CheckpointContainerResponse, error) {
	if err := checkID("container", req.ContainerId); err != nil {
		return nil, err
	}
	if req.Timeout < 0 {
		return nil, kind.Errorf(kind.Invalid, "timeout is %d seconds", req.Timeout)
	}
	if err := s.sandboxes.CheckpointContainer(ctx, req.ContainerId, req.Location, seconds(req.Timeout)); err != nil {
		return nil, err
	}
	return &api.CheckpointContainerResponse{}, nil
}

// CheckpointPod writes the state of containers of a pod into a folder; they go on.
func (s *Server) CheckpointPod(ctx context.Context, req *api.CheckpointPodRequest) (*api.CheckpointPodResponse, error) {
	if err := checkID("pod", req.PodSandboxId); err != nil {
		return nil, err
	}
	for _, id := range req.ContainerIds {
		if err := checkID("container", id); err != nil {
			return nil, err
		}
	}
	if err := s.sandboxes.CheckpointPod(ctx, req); err != nil {
		return nil, err
	}
	return &api.CheckpointPodResponse{}, nil
}

// RestorePod makes a pod whose containers go on from a checkpoint when they
// are started.
func (s *Server) RestorePod(ctx context.Context, req *api.RestorePodRequest) (*api.RestorePodResponse, error) {
	if err := checkPodConfig(req.Config); err != nil {
		return nil, err
	}
	for _, c := range req.ContainerConfigs {
		if err := checkContainerConfig(c); err != nil {
			return nil, err
		}
	}
	return s.sandboxes.RestorePod(ctx, req)
}
