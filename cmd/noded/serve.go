package main

import (
	"context"
	"errors"

	"noded.dev/noded/config"
)

// serve is the daemon's life: it builds the parts, serves until ctx ends and
// stops them in reverse order. reload reads the configuration anew for SIGHUP.
func serve(ctx context.Context, cfg config.Config, reload func() (config.Config, error)) error {
	return errors.New("this build has no daemon")
}

// shim is the process that is the parent of every container.
func shim(args []string) error { return errors.New("this build has no shim") }
