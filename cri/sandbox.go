package cri

import (
	"context"
	"net/netip"
	"strings"

	api "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/internal/kind"
)

// RunPodSandbox makes and starts a pod; repeated with equal metadata it joins
// the call under way or returns the pod that is there.
func (s *Server) RunPodSandbox(ctx context.Context, req *api.RunPodSandboxRequest) (*api.RunPodSandboxResponse, error) {
	if err := checkPodConfig(req.Config); err != nil {
		return nil, err
	}
	id, err := s.sandboxes.RunPod(ctx, req.Config, req.RuntimeHandler)
	if err != nil {
		return nil, err
	}
	return &api.RunPodSandboxResponse{PodSandboxId: id}, nil
}

// StopPodSandbox stops a pod; unknown ones are stopped already.
func (s *Server) StopPodSandbox(ctx context.Context, req *api.StopPodSandboxRequest) (*api.StopPodSandboxResponse, error) {
	if plausibleID(req.PodSandboxId) {
		if err := s.sandboxes.StopPod(ctx, req.PodSandboxId); err != nil {
			return nil, err
		}
	}
	return &api.StopPodSandboxResponse{}, nil
}

// RemovePodSandbox removes a pod; unknown ones are removed already.
func (s *Server) RemovePodSandbox(ctx context.Context, req *api.RemovePodSandboxRequest) (*api.RemovePodSandboxResponse, error) {
	if plausibleID(req.PodSandboxId) {
		if err := s.sandboxes.RemovePod(ctx, req.PodSandboxId); err != nil {
			return nil, err
		}
	}
	return &api.RemovePodSandboxResponse{}, nil
}

// PodSandboxStatus describes one pod.
func (s *Server) PodSandboxStatus(_ context.Context, req *api.PodSandboxStatusRequest) (*api.PodSandboxStatusResponse, error) {
	if err := checkID("pod", req.PodSandboxId); err != nil {
		return nil, err
	}
	return s.sandboxes.PodStatus(req.PodSandboxId, req.Verbose)
}

// ListPodSandbox lists the pods that match all of the filter.
func (s *Server) ListPodSandbox(_ context.Context, req *api.ListPodSandboxRequest) (*api.ListPodSandboxResponse, error) {
	return &api.ListPodSandboxResponse{Items: s.sandboxes.ListPods(req.Filter)}, nil
}

// UpdatePodSandboxResources takes the limits of a pod as a whole.
func (s *Server) UpdatePodSandboxResources(ctx context.Context, req *api.UpdatePodSandboxResourcesRequest) (*api.UpdatePodSandboxResourcesResponse, error) {
	if err := checkID("pod", req.PodSandboxId); err != nil {
		return nil, err
	}
	if req.Overhead == nil && req.Resources == nil {
		return nil, kind.Errorf(kind.Invalid, "overhead and resources are missing")
	}
	if err := s.sandboxes.UpdatePodResources(ctx, req); err != nil {
		return nil, err
	}
	return &api.UpdatePodSandboxResourcesResponse{}, nil
}

// UpdateRuntimeConfig takes the pod ranges of the node from the kubelet.
func (s *Server) UpdateRuntimeConfig(_ context.Context, req *api.UpdateRuntimeConfigRequest) (*api.UpdateRuntimeConfigResponse, error) {
	text := req.GetRuntimeConfig().GetNetworkConfig().GetPodCidr()
	if text == "" {
		return &api.UpdateRuntimeConfigResponse{}, nil
	}
	var cidrs []string
	for _, c := range strings.Split(text, ",") {
		prefix, err := netip.ParsePrefix(strings.TrimSpace(c))
		if err != nil {
			return nil, kind.Errorf(kind.Invalid, "pod_cidr %.128q: %w", text, err)
		}
		cidrs = append(cidrs, prefix.String())
	}
	if err := s.sandboxes.SetPodCIDR(cidrs); err != nil {
		return nil, err
	}
	return &api.UpdateRuntimeConfigResponse{}, nil
}
