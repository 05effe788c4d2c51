package cri

import (
	"bytes"
	"context"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
	api "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/cri/stream"
	"noded.dev/noded/imagestore"
	"noded.dev/noded/internal/feed"
	"noded.dev/noded/internal/kind"
	"noded.dev/noded/sandbox"
)

// fakeSandboxes answers with its functions; a call of one that is not set
// panics, which the interceptor turns into Internal. calls are the ids called with.
type fakeSandboxes struct {
	Sandboxes // nil

	mu    sync.Mutex
	calls []string

	runPod        func(ctx context.Context, config *api.PodSandboxConfig, handler string) (string, error)
	createFunc    func(ctx context.Context, podID string, config *api.ContainerConfig) (string, error)
	stopContainer func(ctx context.Context, id string, grace time.Duration) error
	exec          func(ctx context.Context, id string, cmd []string, io sandbox.IO) (int, error)
	attachConfig  *api.ContainerConfig
	attach        func(ctx context.Context, id string, io sandbox.IO) error
	portForward   func(ctx context.Context, id string, port int32, conn io.ReadWriteCloser) error
	events        *feed.Feed[*api.ContainerEventResponse]
	pods          []*api.PodSandbox
	containers    []*api.Container
	stats         []*api.ContainerStats
	podStats      []*api.PodSandboxStats
	status        sandbox.Status
	cidrs         []string
}

func (f *fakeSandboxes) CheckpointContainer(context.Context, string, string, time.Duration) error {
	return kind.Errorf(kind.Unimplemented, "switched off")
}

// found records a call, and knows one container and one pod.
func (f *fakeSandboxes) found(id string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, id)
	if id != "c1" && id != "p1" {
		return kind.Errorf(kind.NotFound, "no such id %q", id)
	}
	return nil
}

func (f *fakeSandboxes) called() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls
}

func (f *fakeSandboxes) RunPod(ctx context.Context, config *api.PodSandboxConfig, handler string) (string, error) {
	return f.runPod(ctx, config, handler)
}
func (f *fakeSandboxes) StopPod(_ context.Context, id string) error   { f.found(id); return nil }
func (f *fakeSandboxes) RemovePod(_ context.Context, id string) error { f.found(id); return nil }
func (f *fakeSandboxes) PodStatus(id string, _ bool) (*api.PodSandboxStatusResponse, error) {
	return &api.PodSandboxStatusResponse{}, f.found(id)
}
func (f *fakeSandboxes) ListPods(filter *api.PodSandboxFilter) []*api.PodSandbox {
	f.found(filter.GetId())
	return f.pods
}
func (f *fakeSandboxes) CreateContainer(ctx context.Context, podID string, config *api.ContainerConfig) (string, error) {
	if err := f.found(podID); err != nil {
		return "", err
	}
	return f.createFunc(ctx, podID, config)
}
func (f *fakeSandboxes) StartContainer(_ context.Context, id string) error { return f.found(id) }
func (f *fakeSandboxes) StopContainer(ctx context.Context, id string, grace time.Duration) error {
	f.found(id)
	if f.stopContainer != nil {
		return f.stopContainer(ctx, id, grace)
	}
	return nil
}
func (f *fakeSandboxes) RemoveContainer(_ context.Context, id string) error { f.found(id); return nil }
func (f *fakeSandboxes) ContainerStatus(id string, _ bool) (*api.ContainerStatusResponse, error) {
	return &api.ContainerStatusResponse{}, f.found(id)
}
func (f *fakeSandboxes) ListContainers(filter *api.ContainerFilter) []*api.Container {
	f.found(filter.GetPodSandboxId())
	return f.containers
}
func (f *fakeSandboxes) UpdateContainer(_ context.Context, req *api.UpdateContainerResourcesRequest) error {
	return f.found(req.ContainerId)
}
func (f *fakeSandboxes) ReopenLog(_ context.Context, id string) error { return f.found(id) }
func (f *fakeSandboxes) Exec(ctx context.Context, id string, cmd []string, io sandbox.IO) (int, error) {
	if err := f.found(id); err != nil {
		return 0, err
	}
	return f.exec(ctx, id, cmd, io)
}
func (f *fakeSandboxes) Attach(ctx context.Context, id string, io sandbox.IO) error {
	return f.attach(ctx, id, io)
}
func (f *fakeSandboxes) PortForward(ctx context.Context, id string, port int32, conn io.ReadWriteCloser) error {
	return f.portForward(ctx, id, port, conn)
}
func (f *fakeSandboxes) CheckExec(id string) error { return f.found(id) }
func (f *fakeSandboxes) CheckAttach(id string) (*api.ContainerConfig, error) {
	return f.attachConfig, f.found(id)
}
func (f *fakeSandboxes) CheckPod(id string) error { return f.found(id) }
func (f *fakeSandboxes) ContainerStats(_ context.Context, id string) (*api.ContainerStats, error) {
	return &api.ContainerStats{}, f.found(id)
}
func (f *fakeSandboxes) ListContainerStats(_ context.Context, filter *api.ContainerStatsFilter) ([]*api.ContainerStats, error) {
	f.found(filter.GetId())
	return f.stats, nil
}
func (f *fakeSandboxes) ListPodStats(_ context.Context, filter *api.PodSandboxStatsFilter) ([]*api.PodSandboxStats, error) {
	f.found(filter.GetId())
	return f.podStats, nil
}
func (f *fakeSandboxes) PodStats(_ context.Context, id string) (*api.PodSandboxStats, error) {
	return &api.PodSandboxStats{}, f.found(id)
}
func (f *fakeSandboxes) Subscribe() *sandbox.Events      { return f.events.Subscribe() }
func (f *fakeSandboxes) Status() sandbox.Status          { return f.status }
func (f *fakeSandboxes) SetPodCIDR(cidrs []string) error { f.cidrs = cidrs; return nil }
func (f *fakeSandboxes) CgroupDriver() api.CgroupDriver  { return api.CgroupDriver_CGROUPFS }

// fakeImages is a store of images by reference.
type fakeImages struct {
	mu     sync.Mutex
	images map[string]imagestore.Image
	pull   func(ctx context.Context, ref string, opts imagestore.PullOptions) (imagestore.Image, error)
	remove func(ref string) error
	pulls  []imagestore.Progress
}

func (f *fakeImages) Pull(ctx context.Context, ref string, opts imagestore.PullOptions) (imagestore.Image, error) {
	return f.pull(ctx, ref, opts)
}
func (f *fakeImages) Lookup(ref string) (imagestore.Image, error) {
	if image, ok := f.images[ref]; ok {
		return image, nil
	}
	if ref == "BAD REF" {
		return imagestore.Image{}, kind.Errorf(kind.Invalid, "malformed reference %q", ref)
	}
	return imagestore.Image{}, kind.Errorf(kind.NotFound, "no image %q", ref)
}
func (f *fakeImages) List() []imagestore.Image {
	var list []imagestore.Image
	for _, image := range f.images {
		list = append(list, image)
	}
	return list
}
func (f *fakeImages) ContainerUsage(context.Context) (imagestore.Usage, error) { return f.Usage() }
func (f *fakeImages) Admit(string, string) error                               { return nil }
func (f *fakeImages) Remove(_ context.Context, ref string) error               { return f.remove(ref) }
func (f *fakeImages) Usage() (imagestore.Usage, error) {
	return imagestore.Usage{Path: "/var/lib/noded/images", Bytes: 42, Inodes: 7}, nil
}
func (f *fakeImages) Pulls() []imagestore.Progress {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.pulls
}

// edge is a server on fakes, with a client that comes through real gRPC.
type edge struct {
	sandboxes *fakeSandboxes
	images    *fakeImages
	server    *Server
	runtime   api.RuntimeServiceClient
	image     api.ImageServiceClient
	conn      *grpc.ClientConn
	log       *lockedBuffer
	calls     chan Call
}

func newEdge(t *testing.T) *edge {
	t.Helper()
	e := &edge{sandboxes: &fakeSandboxes{}, images: &fakeImages{}, log: &lockedBuffer{}, calls: make(chan Call, 10000)}
	log := logrus.New()
	log.SetOutput(e.log)
	log.SetLevel(logrus.DebugLevel)
	streams, err := stream.New(stream.Options{Addr: "127.0.0.1:0", Log: log.WithField("part", "stream")})
	if err != nil {
		t.Fatal(err)
	}
	e.server = NewServer(Options{
		Sandboxes: e.sandboxes, Images: e.images, Streams: streams, Version: "v1.2.3",
		Log: log.WithField("part", "cri"), Observe: func(c Call) { e.calls <- c },
		Info: func() map[string]any { return map[string]any{"config": map[string]string{"root": "/var/lib/noded"}} },
	})
	g := grpc.NewServer(e.server.ServerOptions()...)
	e.server.Register(g)
	l := bufconn.Listen(1 << 20)
	served := make(chan error, 1)
	go func() { served <- g.Serve(l) }()
	e.conn, err = grpc.NewClient("passthrough:bufconn",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(64<<20)))
	if err != nil {
		t.Fatal(err)
	}
	e.runtime, e.image = api.NewRuntimeServiceClient(e.conn), api.NewImageServiceClient(e.conn)
	t.Cleanup(func() {
		e.conn.Close()
		e.server.Close()
		g.GracefulStop()
		if err := <-served; err != nil {
			t.Error(err)
		}
		if err := streams.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
