package main

import (
	"context"

	"google.golang.org/grpc"

	"noded.dev/noded/cri"
	"noded.dev/noded/imagestore"
)

// watchPull sends how far the pull of an image is until ctx ends. Another
// runtime than noded has no such call, and then nothing is sent.
func watchPull(ctx context.Context, conn *grpc.ClientConn, name string, states chan<- pullState) {
	// An error costs only the figures; the pull's own error is the one to tell.
	_ = cri.WatchPulls(ctx, conn, name, func(p imagestore.Progress) {
		select {
		case states <- pullState{done: p.Done, total: p.Total, layers: p.Layers, ready: p.Ready}:
		case <-ctx.Done():
		}
	})
}
