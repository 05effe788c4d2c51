package main

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func psCommand(a *app) *cobra.Command {
	var all, quiet bool
	cmd := &cobra.Command{
		Use:   "ps",
		Short: "List containers",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withClient(func(c *client) error { return a.ps(cmd.Context(), c, all, quiet) })
		},
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "also those that do not run")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "ids only")
	return cmd
}

func (a *app) ps(ctx context.Context, c *client, all, quiet bool) error {
	containers, err := c.listContainers(ctx, nil)
	if err != nil {
		return err
	}
	pods, err := c.podNames(ctx)
	if err != nil {
		return err
	}
	slices.SortFunc(containers, func(x, y *cri.Container) int { return cmp.Compare(y.GetCreatedAt(), x.GetCreatedAt()) })
	containers = slices.DeleteFunc(containers, func(ctr *cri.Container) bool {
		return !all && ctr.GetState() != cri.ContainerState_CONTAINER_RUNNING
	})
	if a.format == "json" {
		return printJSON(a.out, containers)
	}
	var rows [][]string
	if !quiet {
		rows = append(rows, []string{"CONTAINER", "NAME", "POD", "IMAGE", "STATE", "CREATED"})
	}
	for _, ctr := range containers {
		if quiet {
			rows = append(rows, []string{ctr.GetId()})
			continue
		}
		rows = append(rows, []string{
			shortID(ctr.GetId()), printable(ctr.GetMetadata().GetName()), printable(orDash(pods[ctr.GetPodSandboxId()])),
			printable(imageName(ctr)), containerState(ctr.GetState()), age(ctr.GetCreatedAt(), time.Now()),
		})
	}
	return table(a.out, rows)
}

// imageName prefers what the user asked for over what it resolved to.
func imageName(ctr *cri.Container) string {
	name := ctr.GetImage().GetUserSpecifiedImage()
	if name == "" {
		name = ctr.GetImage().GetImage()
	}
	if strings.HasPrefix(name, "sha256:") {
		return shortID(name)
	}
	return name
}

func containerState(s cri.ContainerState) string {
	return strings.ToLower(strings.TrimPrefix(s.String(), "CONTAINER_"))
}
