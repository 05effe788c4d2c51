package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func execCommand(a *app) *cobra.Command {
	var stdin, tty bool
	cmd := &cobra.Command{
		Use:   "exec [-it] CONTAINER COMMAND...",
		Short: "Run a command in a container; its exit status is this command's",
		Args:  needArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withClient(func(c *client) error {
				return a.exec(cmd.Context(), c, args[0], &cri.ExecRequest{
					Cmd: args[1:], Stdin: stdin, Tty: tty, Stdout: true, Stderr: !tty,
				})
			})
		},
	}
	cmd.Flags().SetInterspersed(false) // flags after CONTAINER are the command's
	cmd.Flags().BoolVarP(&stdin, "interactive", "i", false, "pass standard input on")
	cmd.Flags().BoolVarP(&tty, "tty", "t", false, "with a terminal")
	return cmd
}

func (a *app) exec(ctx context.Context, c *client, name string, req *cri.ExecRequest) error {
	ctr, err := c.findContainer(ctx, name)
	if err != nil {
		return err
	}
	req.ContainerId = ctr.GetId()
	reply, err := c.Exec(ctx, req)
	if err != nil {
		return fmt.Errorf("exec in %s: %w", name, err)
	}
	s := &session{url: reply.GetUrl(), stdout: a.out}
	if req.GetStdin() {
		s.stdin = a.in
	}
	if !req.GetTty() {
		s.stderr = a.err
		return exitStatus(s.run(ctx))
	}
	return withTerminal(ctx, a.in, func(sizes <-chan windowSize) error {
		s.sizes = sizes
		return exitStatus(s.run(ctx))
	})
}

// exitStatus makes an error of a command's exit status other than 0.
func exitStatus(code int, err error) error {
	if err == nil && code != 0 {
		return exitCode(code)
	}
	return err
}
