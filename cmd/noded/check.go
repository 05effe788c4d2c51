package main

import "github.com/spf13/cobra"

func checkCommand(a *app) *cobra.Command {
	return &cobra.Command{Use: "check", Short: "Say what this machine lacks and what is wrong in the configuration"}
}
