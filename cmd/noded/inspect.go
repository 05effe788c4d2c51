package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func inspectCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "inspect NAME...",
		Short: "Show all that is known of containers, pods or images, as JSON",
		Args:  needArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withClient(func(c *client) error {
				var all []any
				err := each(args, func(name string) error {
					v, err := c.inspect(cmd.Context(), name)
					if err == nil {
						all = append(all, v)
					}
					return err
				})
				if len(all) == 0 {
					return err
				}
				return errors.Join(writeJSON(a.out, all), err)
			})
		},
	}
}

// inspected is what inspect prints for each name. Info's values are whatever
// the runtime says in the verbose status, decoded where they are JSON.
type inspected struct {
	Kind   string          `json:"kind"`
	Status json.RawMessage `json:"status"`
	Info   map[string]any  `json:"info,omitempty"`
}

func (c *client) inspect(ctx context.Context, name string) (any, error) {
	ctr, err := c.findContainer(ctx, name)
	if err == nil {
		return c.inspectContainer(ctx, ctr.GetId())
	}
	var missing errNotFound
	if !errors.As(err, &missing) {
		return nil, err
	}
	pod, err := c.findPod(ctx, name)
	if err == nil {
		return c.inspectPod(ctx, pod.GetId())
	}
	if !errors.As(err, &missing) {
		return nil, err
	}
	reply, err := c.images.ImageStatus(ctx, &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: name}, Verbose: true})
	if err != nil {
		return nil, fmt.Errorf("look for image %s: %w", name, err)
	}
	if reply.GetImage() == nil {
		return nil, errNotFound{"container, pod or image", name}
	}
	raw, err := messageJSON(reply.GetImage())
	return inspected{"image", raw, decodeInfo(reply.GetInfo())}, err
}

func (c *client) inspectContainer(ctx context.Context, id string) (any, error) {
	reply, err := c.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: id, Verbose: true})
	if err != nil {
		return nil, fmt.Errorf("ask for container %s: %w", shortID(id), err)
	}
	raw, err := messageJSON(reply.GetStatus())
	return inspected{"container", raw, decodeInfo(reply.GetInfo())}, err
}

func (c *client) inspectPod(ctx context.Context, id string) (any, error) {
	reply, err := c.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: id, Verbose: true})
	if err != nil {
		return nil, fmt.Errorf("ask for pod %s: %w", shortID(id), err)
	}
	raw, err := messageJSON(reply.GetStatus())
	return inspected{"pod", raw, decodeInfo(reply.GetInfo())}, err
}

func decodeInfo(info map[string]string) map[string]any {
	decoded := map[string]any{}
	for key, text := range info {
		if json.Valid([]byte(text)) {
			decoded[key] = json.RawMessage(text)
		} else {
			decoded[key] = text
		}
	}
	return decoded
}
