package node

import (
	"context"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// dial makes the clients. The connection comes back by itself after a restart
// of the daemon, and soon: the usual second of back-off is for networks.
func (n *Node) dial() error {
	conn, err := grpc.NewClient("passthrough:///"+n.Socket,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, path string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		}),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: 5 * time.Millisecond, Multiplier: 1.5, MaxDelay: 50 * time.Millisecond}, MinConnectTimeout: time.Second}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20)), // as the kubelet has it
	)
	if err != nil {
		return err
	}
	n.conn, n.Runtime, n.Images = conn, cri.NewRuntimeServiceClient(conn), cri.NewImageServiceClient(conn)
	return nil
}

// Context is bounded as the kubelet's calls are by default.
func Context() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), 2*time.Minute)
}
