package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func stopCommand(a *app) *cobra.Command {
	var grace time.Duration
	cmd := &cobra.Command{
		Use:   "stop NAME...",
		Short: "Stop containers or pods",
		Args:  needArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withClient(func(c *client) error {
				return each(args, func(name string) error {
					t, err := c.find(cmd.Context(), name)
					if err != nil {
						return err
					}
					if err := c.stop(cmd.Context(), t, grace); err != nil {
						return err
					}
					fmt.Fprintln(a.out, name)
					return nil
				})
			})
		},
	}
	cmd.Flags().DurationVarP(&grace, "time", "t", 10*time.Second, "time between the stop signal and SIGKILL")
	return cmd
}

// stop stops a container, or a pod's containers and then the pod.
func (c *client) stop(ctx context.Context, t target, grace time.Duration) error {
	if t.container != nil {
		return c.stopContainer(ctx, t.container.GetId(), grace)
	}
	id := t.pod.GetId()
	containers, err := c.listContainers(ctx, &cri.ContainerFilter{PodSandboxId: id})
	if err != nil {
		return err
	}
	for _, ctr := range containers {
		if ctr.GetState() != cri.ContainerState_CONTAINER_RUNNING {
			continue
		}
		if err := c.stopContainer(ctx, ctr.GetId(), grace); err != nil {
			return err
		}
	}
	if _, err := c.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: id}); err != nil {
		return fmt.Errorf("stop pod %s: %w", shortID(id), err)
	}
	return nil
}

func (c *client) stopContainer(ctx context.Context, id string, grace time.Duration) error {
	seconds := int64((grace + time.Second - 1) / time.Second)
	if _, err := c.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: id, Timeout: seconds}); err != nil {
		return fmt.Errorf("stop container %s: %w", shortID(id), err)
	}
	return nil
}
