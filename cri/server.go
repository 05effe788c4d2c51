// Package cri is the gRPC edge of noded: RuntimeService and ImageService of
// the CRI (k8s.io/cri-api, runtime.v1). A handler checks the shape of its
// request, makes one call and returns the error as it is; one interceptor maps
// the error's kind to a gRPC code, logs, measures, recovers from panics and
// takes secrets out of what is said about them.
package cri

import (
	"context"
	"io"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
	api "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/cri/stream"
	"noded.dev/noded/imagestore"
	"noded.dev/noded/sandbox"
)

// Sandboxes are the pods and containers of the node. *sandbox.Manager is one.
// Errors carry a kind. Ids may be unambiguous prefixes; an ambiguous one is
// kind Invalid, an unknown one NotFound, except where "unknown id: nil" is said.
type Sandboxes interface {
	RunPod(ctx context.Context, config *api.PodSandboxConfig, handler string) (id string, err error)
	StopPod(ctx context.Context, id string) error   // unknown id: nil
	RemovePod(ctx context.Context, id string) error // unknown id: nil
	PodStatus(id string, verbose bool) (*api.PodSandboxStatusResponse, error)
	ListPods(filter *api.PodSandboxFilter) []*api.PodSandbox
	UpdatePodResources(ctx context.Context, req *api.UpdatePodSandboxResourcesRequest) error

	CreateContainer(ctx context.Context, podID string, config *api.ContainerConfig) (id string, err error)
	StartContainer(ctx context.Context, id string) error
	StopContainer(ctx context.Context, id string, grace time.Duration) error // unknown id: nil
	RemoveContainer(ctx context.Context, id string) error                    // unknown id: nil
	ContainerStatus(id string, verbose bool) (*api.ContainerStatusResponse, error)
	ListContainers(filter *api.ContainerFilter) []*api.Container
	UpdateContainer(ctx context.Context, req *api.UpdateContainerResourcesRequest) error
	ReopenLog(ctx context.Context, id string) error
	CheckpointContainer(ctx context.Context, id, location string, timeout time.Duration) error
	CheckpointPod(ctx context.Context, req *api.CheckpointPodRequest) error
	RestorePod(ctx context.Context, req *api.RestorePodRequest) (*api.RestorePodResponse, error)

	// Exec runs a command and returns its exit code; when ctx ends, the
	// command and all it started are killed.
	Exec(ctx context.Context, id string, cmd []string, io sandbox.IO) (code int, err error)
	Attach(ctx context.Context, id string, io sandbox.IO) error
	PortForward(ctx context.Context, podID string, port int32, conn io.ReadWriteCloser) error
	CheckExec(id string) error                           // nil if the container runs
	CheckAttach(id string) (*api.ContainerConfig, error) // the config says tty and stdin
	CheckPod(id string) error                            // nil if the pod is ready
	ContainerStats(ctx context.Context, id string) (*api.ContainerStats, error)
	ListContainerStats(ctx context.Context, filter *api.ContainerStatsFilter) ([]*api.ContainerStats, error)
	PodStats(ctx context.Context, id string) (*api.PodSandboxStats, error)
	ListPodStats(ctx context.Context, filter *api.PodSandboxStatsFilter) ([]*api.PodSandboxStats, error)
	ListPodMetrics(ctx context.Context) ([]*api.PodSandboxMetrics, error)

	// Subscribe delivers events from now on; a reader too slow for its bounded
	// queue is dropped. The caller must close it.
	Subscribe() *sandbox.Events
	Status() sandbox.Status // immutable, no I/O
	SetPodCIDR(cidrs []string) error
	CgroupDriver() api.CgroupDriver
}

// Images is the image store. *imagestore.Store is one.
type Images interface {
	Pull(ctx context.Context, ref string, opts imagestore.PullOptions) (imagestore.Image, error)
	Lookup(ref string) (imagestore.Image, error) // by id, id prefix, tag or digest; kind NotFound
	List() []imagestore.Image
	Admit(id, name string) error // whether the policy lets it be run under that name
	Remove(ctx context.Context, ref string) error
	Usage() (imagestore.Usage, error)
	ContainerUsage(ctx context.Context) (imagestore.Usage, error) // writable layers; Usage where images are
	Pulls() []imagestore.Progress                                 // pulls under way
}

// Options are what a Server is made of. Sandboxes, Images, Streams and Log
// must be set.
type Options struct {
	Sandboxes Sandboxes
	Images    Images
	Streams   *stream.Server
	Version   string // of noded; made a semantic version where it is none
	Log       *logrus.Entry

	// Info adds keys to the verbose answer of Status, each marshalled as JSON:
	// the configuration, the shim. nil adds none.
	Info func() map[string]any

	// Observe is told of every finished call, for metrics; nil is not told.
	Observe func(Call)
}

// Call is one finished call.
type Call struct {
	Method   string // "RunPodSandbox"
	Code     string // gRPC code: "OK", "NotFound"
	Duration time.Duration
}

// Server answers the CRI, all of it: what it embeds has no calls that answer
// Unimplemented, so that one a new CRI brings does not compile until it is there.
type Server struct {
	api.UnsafeRuntimeServiceServer
	api.UnsafeImageServiceServer

	sandboxes Sandboxes
	images    Images
	streams   *stream.Server
	version   string
	log       *logrus.Entry
	info      func() map[string]any
	observe   func(Call)
	execs     *execLimits
	sending   sends
	closing   chan struct{} // closed by Close
	closeOnce sync.Once
}

// NewServer returns a server; Register and ServerOptions connect it to gRPC.
func NewServer(o Options) *Server {
	return &Server{
		sandboxes: o.Sandboxes,
		images:    o.Images,
		streams:   o.Streams,
		version:   semver(o.Version),
		log:       o.Log,
		info:      o.Info,
		observe:   o.Observe,
		execs:     newExecLimits(),
		closing:   make(chan struct{}),
	}
}

// Register adds the CRI's two services and noded's own progress service.
func (s *Server) Register(r grpc.ServiceRegistrar) {
	api.RegisterRuntimeServiceServer(r, s)
	api.RegisterImageServiceServer(r, s)
	r.RegisterService(&progressService, s)
}

// Close ends the calls that otherwise last as long as their clients (streams),
// so that a graceful stop of the gRPC server can finish.
func (s *Server) Close() {
	s.closeOnce.Do(func() { close(s.closing) })
	s.sending.close()
}

// maxMessage bounds requests and replies, in bytes. The kubelet refuses
// replies above 16 MiB (cri-client, maxMsgSize).
const maxMessage = 16 << 20

// ServerOptions are the options a grpc.Server must be made with.
func (s *Server) ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.UnaryInterceptor(s.unary),
		grpc.StreamInterceptor(s.streaming),
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxSendMsgSize(maxMessage),
		// Bounds what one hostile connection can have under way.
		grpc.MaxConcurrentStreams(4096),
		grpc.ConnectionTimeout(20 * time.Second),
		// Finds event readers that are gone without a word.
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: time.Minute, Timeout: 20 * time.Second}),
		// Clients that ping while idle (crictl, kubelet) are not punished for it.
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{
			MinTime: 5 * time.Second, PermitWithoutStream: true,
		}),
	}
}
