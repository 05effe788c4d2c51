package cri

import (
	"context"

	api "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/internal/kind"
)

// CreateContainer makes a container; repeated with equal metadata it joins the
// call under way or returns the container that is there.
func (s *Server) CreateContainer(ctx context.Context, req *api.CreateContainerRequest) (*api.CreateContainerResponse, error) {
	if err := checkID("pod", req.PodSandboxId); err != nil {
		return nil, err
	}
	if err := checkContainerConfig(req.Config); err != nil {
		return nil, err
	}
	if err := s.checkHandler(req.Config.Image.RuntimeHandler); err != nil {
		return nil, err
	}
	id, err := s.sandboxes.CreateContainer(ctx, req.PodSandboxId, req.Config)
	if err != nil {
		return nil, createError(err)
	}
	return &api.CreateContainerResponse{ContainerId: id}, nil
}

// StartContainer starts a created container.
func (s *Server) StartContainer(ctx context.Context, req *api.StartContainerRequest) (*api.StartContainerResponse, error) {
	if err := checkID("container", req.ContainerId); err != nil {
		return nil, err
	}
	if err := s.sandboxes.StartContainer(ctx, req.ContainerId); err != nil {
		return nil, err
	}
	return &api.StartContainerResponse{}, nil
}

// StopContainer stops a container within its grace period; unknown ones are
// stopped already.
func (s *Server) StopContainer(ctx context.Context, req *api.StopContainerRequest) (*api.StopContainerResponse, error) {
	if plausibleID(req.ContainerId) {
		if err := s.sandboxes.StopContainer(ctx, req.ContainerId, seconds(req.Timeout)); err != nil {
			return nil, err
		}
	}
	return &api.StopContainerResponse{}, nil
}

// RemoveContainer removes a container, killing it if it runs; unknown ones are
// removed already.
func (s *Server) RemoveContainer(ctx context.Context, req *api.RemoveContainerRequest) (*api.RemoveContainerResponse, error) {
	if plausibleID(req.ContainerId) {
		if err := s.sandboxes.RemoveContainer(ctx, req.ContainerId); err != nil {
			return nil, err
		}
	}
	return &api.RemoveContainerResponse{}, nil
}

// ContainerStatus describes one container.
func (s *Server) ContainerStatus(_ context.Context, req *api.ContainerStatusRequest) (*api.ContainerStatusResponse, error) {
	if err := checkID("container", req.ContainerId); err != nil {
		return nil, err
	}
	return s.sandboxes.ContainerStatus(req.ContainerId, req.Verbose)
}

// ListContainers lists the containers that match all of the filter.
func (s *Server) ListContainers(_ context.Context, req *api.ListContainersRequest) (*api.ListContainersResponse, error) {
	return &api.ListContainersResponse{Containers: s.sandboxes.ListContainers(req.Filter)}, nil
}

// UpdateContainerResources changes a container's limits, all or nothing.
func (s *Server) UpdateContainerResources(ctx context.Context, req *api.UpdateContainerResourcesRequest) (*api.UpdateContainerResourcesResponse, error) {
	if err := checkID("container", req.ContainerId); err != nil {
		return nil, err
	}
	if req.Linux == nil {
		return nil, kind.Errorf(kind.Invalid, "linux resources are missing")
	}
	if err := checkMaps("update", req.Annotations); err != nil {
		return nil, err
	}
	if err := s.sandboxes.UpdateContainer(ctx, req); err != nil {
		return nil, err
	}
	return &api.UpdateContainerResourcesResponse{}, nil
}

// ReopenContainerLog makes a container log to a new file at its log path.
func (s *Server) ReopenContainerLog(ctx context.Context, req *api.ReopenContainerLogRequest) (*api.ReopenContainerLogResponse, error) {
	if err := checkID("container", req.ContainerId); err != nil {
		return nil, err
	}
	if err := s.sandboxes.ReopenLog(ctx, req.ContainerId); err != nil {
		return nil, err
	}
	return &api.ReopenContainerLogResponse{}, nil
}
