package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func podsCommand(a *app) *cobra.Command {
	var quiet bool
	cmd := &cobra.Command{
		Use:   "pods",
		Short: "List pods",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withClient(func(c *client) error { return a.pods(cmd.Context(), c, quiet) })
		},
	}
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "ids only")
	return cmd
}

func (a *app) pods(ctx context.Context, c *client, quiet bool) error {
	pods, err := c.listPods(ctx)
	if err != nil {
		return err
	}
	slices.SortFunc(pods, func(x, y *cri.PodSandbox) int { return cmp.Compare(y.GetCreatedAt(), x.GetCreatedAt()) })
	if a.format == "json" {
		return printJSON(a.out, pods)
	}
	var rows [][]string
	if !quiet {
		rows = append(rows, []string{"POD", "NAME", "NAMESPACE", "STATE", "IP", "RUNTIME", "CREATED"})
	}
	for _, p := range pods {
		if quiet {
			rows = append(rows, []string{p.GetId()})
			continue
		}
		ip, err := c.podIP(ctx, p.GetId())
		if err != nil {
			return err
		}
		rows = append(rows, []string{
			shortID(p.GetId()), printable(p.GetMetadata().GetName()), printable(p.GetMetadata().GetNamespace()),
			podState(p.GetState()), orDash(ip), orDash(p.GetRuntimeHandler()), age(p.GetCreatedAt(), time.Now()),
		})
	}
	return table(a.out, rows)
}

// podIP is a pod's main address; "" if it has none, or was removed meanwhile.
func (c *client) podIP(ctx context.Context, id string) (string, error) {
	reply, err := c.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: id})
	if isNotFound(err) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("ask for pod %s: %w", shortID(id), err)
	}
	return reply.GetStatus().GetNetwork().GetIp(), nil
}

func podState(s cri.PodSandboxState) string {
	return strings.ToLower(strings.TrimPrefix(s.String(), "SANDBOX_"))
}
