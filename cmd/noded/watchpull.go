package main

import (
	"context"

	"google.golang.org/grpc"
)

// watchPull sends how far the pull of an image is until ctx ends.
func watchPull(ctx context.Context, conn *grpc.ClientConn, name string, states chan<- pullState) {
}
