package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func rmCommand(a *app) *cobra.Command {
	var force, all bool
	cmd := &cobra.Command{
		Use:   "rm NAME...",
		Short: "Remove containers or pods",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 && !all {
				return needArgs(1)(cmd, args)
			}
			return a.withClient(func(c *client) error {
				if all {
					names, err := c.runPods(cmd.Context())
					if err != nil {
						return err
					}
					args = append(args, names...)
				}
				return each(args, func(name string) error { return a.rm(cmd.Context(), c, name, force) })
			})
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "also if it runs: SIGKILL first")
	cmd.Flags().BoolVarP(&all, "all", "a", false, "all pods that `noded run` made")
	return cmd
}

func (c *client) runPods(ctx context.Context) ([]string, error) {
	pods, err := c.listPods(ctx)
	var ids []string
	for _, p := range pods {
		if p.GetLabels()[runLabel] != "" {
			ids = append(ids, p.GetId())
		}
	}
	return ids, err
}

func (a *app) rm(ctx context.Context, c *client, name string, force bool) error {
	t, err := c.find(ctx, name)
	if err != nil {
		return err
	}
	if t.container != nil {
		err = c.removeContainer(ctx, t.container, force)
	} else {
		err = c.removePod(ctx, t.pod, force)
	}
	if err != nil {
		return err
	}
	fmt.Fprintln(a.out, name)
	return nil
}

func (c *client) removeContainer(ctx context.Context, ctr *cri.Container, force bool) error {
	id := ctr.GetId()
	if ctr.GetState() == cri.ContainerState_CONTAINER_RUNNING {
		if !force {
			return fmt.Errorf("container %s runs: stop it first, or use -f", shortID(id))
		}
		if err := c.stopContainer(ctx, id, 0); err != nil {
			return err
		}
	}
	if _, err := c.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: id}); err != nil {
		return fmt.Errorf("remove container %s: %w", shortID(id), err)
	}
	return nil
}

// removePod removes a pod with its containers. Logs of pods that `noded run`
// made go too; those of a kubelet's pods are the kubelet's.
func (c *client) removePod(ctx context.Context, pod *cri.PodSandbox, force bool) error {
	id := pod.GetId()
	containers, err := c.listContainers(ctx, &cri.ContainerFilter{PodSandboxId: id})
	if err != nil {
		return err
	}
	for _, ctr := range containers {
		if ctr.GetState() == cri.ContainerState_CONTAINER_RUNNING && !force {
			return fmt.Errorf("container %s of pod %s runs: stop it first, or use -f", shortID(ctr.GetId()), pod.GetMetadata().GetName())
		}
	}
	if err := c.stop(ctx, target{pod: pod}, 0); err != nil {
		return err
	}
	logs := runLogDir(pod)
	if _, err := c.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: id}); err != nil {
		return fmt.Errorf("remove pod %s: %w", shortID(id), err)
	}
	if logs == "" {
		return nil
	}
	if err := removeLogs(logs); err != nil {
		return fmt.Errorf("remove logs: %w", err)
	}
	return nil
}

// removeLogs deletes the files of a log folder that this command line made,
// and the folder. It does not descend: a CRI log folder made here has files
// only, so a wrong annotation cannot make it delete a tree.
func removeLogs(dir string) error {
	files, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, f := range files {
		if f.Type().IsRegular() {
			if err := os.Remove(filepath.Join(dir, f.Name())); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
	}
	return os.Remove(dir)
}
