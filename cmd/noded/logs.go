package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/spf13/cobra"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

type logOptions struct {
	follow, timestamps bool
	tail               int
}

func logsCommand(a *app) *cobra.Command {
	var o logOptions
	cmd := &cobra.Command{
		Use:   "logs CONTAINER",
		Short: "Print a container's output",
		Args:  needArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withClient(func(c *client) error { return a.logs(cmd.Context(), c, args[0], o) })
		},
	}
	cmd.Flags().BoolVarP(&o.follow, "follow", "f", false, "go on until the container ends")
	cmd.Flags().BoolVarP(&o.timestamps, "timestamps", "t", false, "print the time of each line")
	cmd.Flags().IntVarP(&o.tail, "tail", "n", -1, "only the last so many lines")
	return cmd
}

func (a *app) logs(ctx context.Context, c *client, name string, o logOptions) error {
	ctr, err := c.findContainer(ctx, name)
	if err != nil {
		return err
	}
	watch := c.watchExits(ctx)
	defer watch.close()
	reply, err := c.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: ctr.GetId()})
	if err != nil {
		return fmt.Errorf("ask for container %s: %w", shortID(ctr.GetId()), err)
	}
	path := reply.GetStatus().GetLogPath()
	if path == "" {
		return fmt.Errorf("container %s keeps no log", name)
	}
	follower := &logFollower{path: path, printer: &logPrinter{out: a.out, err: a.err, timestamps: o.timestamps}}
	if !o.follow {
		err := follower.read(ctx, o.tail, nil)
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("the log %s is not on this machine (any more)", path)
		}
		return err
	}
	return follower.read(ctx, o.tail, c.closedAtExit(ctx, watch, ctr.GetId()))
}

// closedAtExit returns a channel that is closed when the container has ended
// or cannot be asked for any more; its goroutine ends with it or with ctx.
func (c *client) closedAtExit(ctx context.Context, watch *exitWatch, id string) <-chan struct{} {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		// Whatever the error is, no more output is to be expected.
		_, _ = c.waitExit(ctx, watch, id)
	}()
	return ended
}
