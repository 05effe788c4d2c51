package main

import (
	"context"
	"fmt"
	"runtime"
	"time"

	"github.com/spf13/cobra"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func versionCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print this program's version and the daemon's",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withClient(func(c *client) error { return a.version(cmd.Context(), c) })
		},
	}
}

// version does not fail where no daemon answers: the program's own version is
// what is asked for first.
func (a *app) version(ctx context.Context, c *client) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	reply, err := c.Version(ctx, &cri.VersionRequest{})
	if a.format == "json" {
		v := map[string]string{"version": version, "go": runtime.Version()}
		if err == nil {
			v["runtime"], v["runtime_version"], v["runtime_api_version"] = reply.GetRuntimeName(), reply.GetRuntimeVersion(), reply.GetRuntimeApiVersion()
		}
		return writeJSON(a.out, v)
	}
	fmt.Fprintf(a.out, "noded %s (%s %s/%s)\n", version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
	if err != nil {
		fmt.Fprintf(a.out, "daemon: %s\n", explain(err, a.listen))
		return nil
	}
	fmt.Fprintf(a.out, "daemon: %s %s, CRI %s, at %s\n", reply.GetRuntimeName(), reply.GetRuntimeVersion(), reply.GetRuntimeApiVersion(), a.listen)
	return nil
}
