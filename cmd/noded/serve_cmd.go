package main

import (
	"github.com/spf13/cobra"

	"noded.dev/noded/config"
)

const defaultConfig = "/etc/noded/config.toml"

func serveCommand(a *app) *cobra.Command {
	var f configFlags
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the daemon",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			load := func() (config.Config, error) { return f.load(cmd) }
			cfg, err := load()
			if err != nil {
				return err
			}
			return serve(cmd.Context(), cfg, load)
		},
	}
	f.add(cmd)
	return cmd
}
