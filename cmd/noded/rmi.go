package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func rmiCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "rmi IMAGE...",
		Short: "Remove images, with all their tags",
		Args:  needArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withClient(func(c *client) error {
				return each(args, func(name string) error { return a.rmi(cmd.Context(), c, name) })
			})
		},
	}
}

// rmi differs from the CRI's idempotent RemoveImage: a name that nothing has
// is an error here, because it is most likely mistyped.
func (a *app) rmi(ctx context.Context, c *client, name string) error {
	spec := &cri.ImageSpec{Image: name}
	reply, err := c.images.ImageStatus(ctx, &cri.ImageStatusRequest{Image: spec})
	if err != nil {
		return fmt.Errorf("look for image %s: %w", name, err)
	}
	if reply.GetImage() == nil {
		return errNotFound{"image", name}
	}
	if _, err := c.images.RemoveImage(ctx, &cri.RemoveImageRequest{Image: spec}); err != nil {
		return fmt.Errorf("remove image %s: %w", name, err)
	}
	fmt.Fprintln(a.out, name)
	return nil
}

// each does f for every name and joins the errors.
func each(names []string, f func(string) error) error {
	var errs []error
	for _, name := range names {
		errs = append(errs, f(name))
	}
	return errors.Join(errs...)
}

// needArgs is cobra.MinimumNArgs with an error that execute knows as usage.
func needArgs(n int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < n {
			return usageError{fmt.Errorf("%s: too few arguments; usage: %s", cmd.Name(), cmd.UseLine())}
		}
		return nil
	}
}
