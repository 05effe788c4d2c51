package cri

import (
	"context"

	api "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/sandbox/metrics"
)

// ContainerStats measures one container.
func (s *Server) ContainerStats(ctx context.Context, req *api.ContainerStatsRequest) (*api.ContainerStatsResponse, error) {
	if err := checkID("container", req.ContainerId); err != nil {
		return nil, err
	}
	stats, err := s.sandboxes.ContainerStats(ctx, req.ContainerId)
	if err != nil {
		return nil, err
	}
	return &api.ContainerStatsResponse{Stats: stats}, nil
}

// ListContainerStats measures the running containers that match the filter.
func (s *Server) ListContainerStats(ctx context.Context, req *api.ListContainerStatsRequest) (*api.ListContainerStatsResponse, error) {
	stats, err := s.sandboxes.ListContainerStats(ctx, req.Filter)
	if err != nil {
		return nil, err
	}
	return &api.ListContainerStatsResponse{Stats: stats}, nil
}

// PodSandboxStats measures one pod and its containers.
func (s *Server) PodSandboxStats(ctx context.Context, req *api.PodSandboxStatsRequest) (*api.PodSandboxStatsResponse, error) {
	if err := checkID("pod", req.PodSandboxId); err != nil {
		return nil, err
	}
	stats, err := s.sandboxes.PodStats(ctx, req.PodSandboxId)
	if err != nil {
		return nil, err
	}
	return &api.PodSandboxStatsResponse{Stats: stats}, nil
}

// ListPodSandboxStats measures the ready pods that match the filter.
func (s *Server) ListPodSandboxStats(ctx context.Context, req *api.ListPodSandboxStatsRequest) (*api.ListPodSandboxStatsResponse, error) {
	stats, err := s.sandboxes.ListPodStats(ctx, req.Filter)
	if err != nil {
		return nil, err
	}
	return &api.ListPodSandboxStatsResponse{Stats: stats}, nil
}

// ListMetricDescriptors describes the metrics of ListPodSandboxMetrics; they
// are the same as long as noded runs.
func (s *Server) ListMetricDescriptors(context.Context, *api.ListMetricDescriptorsRequest) (*api.ListMetricDescriptorsResponse, error) {
	return &api.ListMetricDescriptorsResponse{Descriptors: metrics.Descriptors()}, nil
}

// ListPodSandboxMetrics measures the ready pods and their running containers.
func (s *Server) ListPodSandboxMetrics(ctx context.Context, _ *api.ListPodSandboxMetricsRequest) (*api.ListPodSandboxMetricsResponse, error) {
	list, err := s.sandboxes.ListPodMetrics(ctx)
	if err != nil {
		return nil, err
	}
	return &api.ListPodSandboxMetricsResponse{PodMetrics: list}, nil
}
