package main

import (
	"context"

	"noded.dev/noded/runtime"
)

// shim is the process that is the parent of every container. It ends only when
// it is killed: as long as a container may be there, so must it be.
func shim(args []string) error { return runtime.RunShim(context.Background(), args) }
