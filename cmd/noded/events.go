package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func eventsCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "events",
		Short: "Print what happens to containers, as it happens",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withClient(func(c *client) error { return a.events(cmd.Context(), c) })
		},
	}
}

func (a *app) events(ctx context.Context, c *client) error {
	stream, err := c.GetContainerEvents(ctx, &cri.GetEventsRequest{})
	if err != nil {
		return fmt.Errorf("ask for events: %w", err)
	}
	for {
		event, err := stream.Recv()
		if ctx.Err() != nil || errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read events: %w", err)
		}
		if err := a.printEvent(event); err != nil {
			return err
		}
	}
}

func (a *app) printEvent(event *cri.ContainerEventResponse) error {
	if a.format == "json" {
		raw, err := messageJSON(event)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(a.out, "%s\n", raw)
		return err
	}
	what := strings.ToLower(strings.TrimSuffix(strings.TrimPrefix(event.GetContainerEventType().String(), "CONTAINER_"), "_EVENT"))
	pod := event.GetPodSandboxStatus().GetMetadata()
	name, exit := "", ""
	for _, status := range event.GetContainersStatuses() {
		if status.GetId() == event.GetContainerId() {
			name = status.GetMetadata().GetName()
			if status.GetState() == cri.ContainerState_CONTAINER_EXITED {
				exit = fmt.Sprintf(" exit=%d %s", status.GetExitCode(), status.GetReason())
			}
		}
	}
	_, err := fmt.Fprintf(a.out, "%s %-8s %s %s/%s/%s%s\n",
		time.Unix(0, event.GetCreatedAt()).Format(time.RFC3339Nano), what, shortID(event.GetContainerId()),
		printable(pod.GetNamespace()), printable(pod.GetName()), printable(orDash(name)), printable(exit))
	return err
}
