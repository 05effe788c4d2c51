package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// drain reads a streamed list to its end. The call is bounded as unary ones are.
func drain[R, T any](ctx context.Context, open func(context.Context) (grpc.ServerStreamingClient[R], error), items func(*R) []T) ([]T, error) {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	stream, err := open(ctx)
	var list []T
	for err == nil {
		var message *R
		if message, err = stream.Recv(); err == nil {
			list = append(list, items(message)...)
		}
	}
	if errors.Is(err, io.EOF) {
		return list, nil
	}
	return nil, err
}

// notThere says that the runtime does not have the streams of lists, which are
// new in version 0.36 of the CRI; their unary twins then do.
func notThere(err error) bool { return status.Code(err) == codes.Unimplemented }

func (c *client) listContainers(ctx context.Context, filter *cri.ContainerFilter) ([]*cri.Container, error) {
	list, err := drain(ctx, func(ctx context.Context) (grpc.ServerStreamingClient[cri.StreamContainersResponse], error) {
		return c.StreamContainers(ctx, &cri.StreamContainersRequest{Filter: filter})
	}, (*cri.StreamContainersResponse).GetContainers)
	if notThere(err) {
		var reply *cri.ListContainersResponse
		reply, err = c.ListContainers(ctx, &cri.ListContainersRequest{Filter: filter})
		list = reply.GetContainers()
	}
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	return list, nil
}

func (c *client) listPods(ctx context.Context) ([]*cri.PodSandbox, error) {
	list, err := drain(ctx, func(ctx context.Context) (grpc.ServerStreamingClient[cri.StreamPodSandboxesResponse], error) {
		return c.StreamPodSandboxes(ctx, &cri.StreamPodSandboxesRequest{})
	}, (*cri.StreamPodSandboxesResponse).GetPodSandboxes)
	if notThere(err) {
		var reply *cri.ListPodSandboxResponse
		reply, err = c.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
		list = reply.GetItems()
	}
	if err != nil {
		return nil, fmt.Errorf("list pods: %w", err)
	}
	return list, nil
}

func (c *client) listImages(ctx context.Context) ([]*cri.Image, error) {
	list, err := drain(ctx, func(ctx context.Context) (grpc.ServerStreamingClient[cri.StreamImagesResponse], error) {
		return c.images.StreamImages(ctx, &cri.StreamImagesRequest{})
	}, (*cri.StreamImagesResponse).GetImages)
	if notThere(err) {
		var reply *cri.ListImagesResponse
		reply, err = c.images.ListImages(ctx, &cri.ListImagesRequest{})
		list = reply.GetImages()
	}
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	return list, nil
}

func (c *client) listContainerStats(ctx context.Context) ([]*cri.ContainerStats, error) {
	list, err := drain(ctx, func(ctx context.Context) (grpc.ServerStreamingClient[cri.StreamContainerStatsResponse], error) {
		return c.StreamContainerStats(ctx, &cri.StreamContainerStatsRequest{})
	}, (*cri.StreamContainerStatsResponse).GetContainerStats)
	if notThere(err) {
		var reply *cri.ListContainerStatsResponse
		reply, err = c.ListContainerStats(ctx, &cri.ListContainerStatsRequest{})
		list = reply.GetStats()
	}
	if err != nil {
		return nil, fmt.Errorf("list statistics: %w", err)
	}
	return list, nil
}
