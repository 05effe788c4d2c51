package sandbox

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"

	rspec "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/sirupsen/logrus"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/cni"
	"noded.dev/noded/imagestore"
	"noded.dev/noded/internal/cgroup"
	"noded.dev/noded/internal/hostpath"
	"noded.dev/noded/internal/kind"
	"noded.dev/noded/runtime"
	"noded.dev/noded/spec"
)

// fakeRuntime stands for the shim and what it starts: containers that live
// until they are told to end. A function field, where set, comes before the
// ordinary behaviour and may fail it.
type fakeRuntime struct {
	create func(ctx context.Context, id string) error
	start  func(ctx context.Context, id string) error
	signal func(id string, signal int) (taken bool) // taken: the process does not end

	noCheckpoints error // why it makes none

	mu      sync.Mutex
	held    map[string]*runtime.State
	created int
	deleted map[string]int
	exits   chan runtime.Exit
}

func newFakeRuntime() *fakeRuntime {
	return &fakeRuntime{held: map[string]*runtime.State{}, deleted: map[string]int{}, exits: make(chan runtime.Exit, 16)}
}

func (f *fakeRuntime) Handler(name string) (runtime.HandlerInfo, error) {
	if name != "" && name != "runc" {
		return runtime.HandlerInfo{}, kind.Errorf(kind.NotFound, "no handler %q", name)
	}
	return runtime.HandlerInfo{Handler: runtime.Handler{Name: "runc", Path: "/bin/runc"}, Usable: true}, nil
}

func (f *fakeRuntime) Handlers() []runtime.HandlerInfo {
	h, _ := f.Handler("")
	return []runtime.HandlerInfo{h}
}

func (f *fakeRuntime) Create(ctx context.Context, req runtime.CreateRequest) (runtime.Process, error) {
	if f.create != nil {
		if err := f.create(ctx, req.ID); err != nil {
			return runtime.Process{}, err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.created++
	p := runtime.Process{Pid: 1000 + f.created, StartTime: 1}
	f.held[req.ID] = &runtime.State{ID: req.ID, Process: p}
	return p, nil
}

func (f *fakeRuntime) Start(ctx context.Context, id string) error {
	if f.start != nil {
		return f.start(ctx, id)
	}
	return nil
}

// end makes a container's process end.
func (f *fakeRuntime) end(id string, code int) {
	f.mu.Lock()
	s := f.held[id]
	if s == nil || s.Exit != nil {
		f.mu.Unlock()
		return
	}
	s.Exit = &runtime.Exit{ID: id, Code: code, At: timeNow()}
	exit := *s.Exit
	f.mu.Unlock()
	f.exits <- exit
}

func (f *fakeRuntime) Signal(_ context.Context, id string, signal int) error {
	if f.signal == nil || !f.signal(id, signal) {
		f.end(id, 128+signal)
	}
	return nil
}

// lives says whether the container's process is there.
func (f *fakeRuntime) lives(id string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.held[id] != nil && f.held[id].Exit == nil
}

func (f *fakeRuntime) Delete(_ context.Context, req runtime.CreateRequest) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.deleted[req.ID]++
	delete(f.held, req.ID)
	return nil
}

func (f *fakeRuntime) Update(context.Context, runtime.CreateRequest, *rspec.LinuxResources) error {
	return nil
}
func (f *fakeRuntime) CanCheckpoint(context.Context, runtime.HandlerInfo) error {
	return f.noCheckpoints
}
func (f *fakeRuntime) Criu() string { return "" }
func (f *fakeRuntime) Freeze(context.Context, []string) (func() error, error) {
	return func() error { return nil }, nil
}
func (f *fakeRuntime) Checkpoint(context.Context, runtime.CheckpointRequest) error { return nil }
func (f *fakeRuntime) ReopenLog(context.Context, string) error                     { return nil }
func (f *fakeRuntime) Exec(context.Context, runtime.ExecRequest) (int, error)      { return 0, nil }
func (f *fakeRuntime) Attach(context.Context, string, runtime.IO) error            { return nil }
func (f *fakeRuntime) Exits() <-chan runtime.Exit                                  { return f.exits }
func (f *fakeRuntime) Containers(context.Context) (list []runtime.State, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range f.held {
		list = append(list, *s)
	}
	return list, nil
}

// fakeImages has one image, "img", whose root filesystem is an empty folder.
type fakeImages struct {
	dir            string
	mount, unmount func(id string) error
	usage          func(ctx context.Context, id string) (imagestore.Usage, error)

	mu      sync.Mutex
	mounted map[string]bool
}

func (f *fakeImages) Lookup(ref string) (imagestore.Image, error) {
	if ref != "img" {
		return imagestore.Image{}, kind.Errorf(kind.NotFound, "no image %q", ref)
	}
	img := imagestore.Image{ID: "sha256:1"}
	img.Config.Config.Cmd = []string{"/run"}
	return img, nil
}

func (f *fakeImages) Mount(_ context.Context, req imagestore.MountRequest) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mounted[req.ID] = true
	if f.mount != nil {
		if err := f.mount(req.ID); err != nil {
			return "", err
		}
	}
	dir := filepath.Join(f.dir, req.ID)
	return dir, os.MkdirAll(dir, 0o755)
}

func (f *fakeImages) MountVolume(_ context.Context, req imagestore.VolumeRequest) (string, error) {
	return filepath.Join(f.dir, "volume"), nil
}

func (f *fakeImages) Unmount(_ context.Context, id string) error {
	if f.unmount != nil {
		if err := f.unmount(id); err != nil {
			return err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.mounted, id)
	return os.RemoveAll(filepath.Join(f.dir, id))
}

func (f *fakeImages) Mounts() (ids []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for id := range f.mounted {
		ids = append(ids, id)
	}
	return ids
}

func (f *fakeImages) Mapped() error { return nil }

func (f *fakeImages) Diff(context.Context, string, io.Writer) error { return nil }

func (f *fakeImages) WritableUsage(ctx context.Context, id string) (imagestore.Usage, error) {
	if f.usage != nil {
		return f.usage(ctx, id)
	}
	return imagestore.Usage{Path: f.dir, Bytes: 1, Inodes: 1}, nil
}

// fakeNetwork counts who is connected.
type fakeNetwork struct {
	add, del error

	mu        sync.Mutex
	connected map[string]bool
	kept      []string
}

func (f *fakeNetwork) Ready() error { return nil }
func (f *fakeNetwork) Add(_ context.Context, pod cni.Pod) (cni.Result, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.connected[pod.ID] = true
	return cni.Result{IPs: []netip.Addr{netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("fd00::2")}}, f.add
}
func (f *fakeNetwork) Del(_ context.Context, pod cni.Pod) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.del != nil {
		return f.del
	}
	delete(f.connected, pod.ID)
	return nil
}
func (f *fakeNetwork) GC(_ context.Context, keep []string) error {
	f.kept = keep
	return nil
}
func (f *fakeNetwork) SetPodCIDR([]string) error { return nil }

// node is a manager on fakes, whose pods are in the host's namespaces so that
// no test here needs root.
type node struct {
	*Manager
	runtime *fakeRuntime
	images  *fakeImages
	network *fakeNetwork
	opts    Options
}

func newNode(t *testing.T) *node {
	t.Helper()
	log := logrus.New()
	log.SetOutput(io.Discard)
	n := &node{
		runtime: newFakeRuntime(), images: &fakeImages{dir: t.TempDir(), mounted: map[string]bool{}},
		network: &fakeNetwork{connected: map[string]bool{}},
		opts: Options{
			Root: t.TempDir(), State: t.TempDir(), BootID: "boot-1", CgroupParent: "/noded-unit-test", ShmSize: 1 << 20, InitBinary: "/bin/noded", HostPaths: hostpath.New([]string{"/bin/false"}, false),
			Log: logrus.NewEntry(log), Facts: spec.Facts{Hostname: "node", Capabilities: []string{"CAP_CHOWN"}},
		},
	}
	n.open(t)
	return n
}

// open starts the manager (again), as a new daemon process would.
func (n *node) open(t *testing.T) {
	t.Helper()
	host, err := cgroup.Detect("")
	if err != nil {
		t.Fatal(err)
	}
	m, err := Open(t.Context(), n.opts, Deps{Images: n.images, Network: n.network, Runtime: n.runtime, Cgroups: host})
	if err != nil {
		t.Fatal(err)
	}
	n.Manager = m
	t.Cleanup(n.close)
}

func (n *node) close() {
	if n.Manager != nil {
		n.Manager.Close()
		n.Manager = nil
	}
}

// settled waits until no operation is under way, of noded's own either.
func (n *node) settled() {
	for {
		n.flights.mu.Lock()
		var one *flight
		for _, f := range n.flights.running {
			one = f
		}
		n.flights.mu.Unlock()
		if one == nil {
			return
		}
		<-one.done
	}
}

func podConfig(name string) *cri.PodSandboxConfig {
	return &cri.PodSandboxConfig{
		Metadata: &cri.PodSandboxMetadata{Name: name, Namespace: "ns", Uid: name},
		Linux: &cri.LinuxPodSandboxConfig{
			CgroupParent: "/noded-unit-test",
			SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: &cri.NamespaceOption{
				Network: cri.NamespaceMode_NODE, Ipc: cri.NamespaceMode_NODE, Pid: cri.NamespaceMode_CONTAINER,
			}},
		},
	}
}

func containerConfig(name string) *cri.ContainerConfig {
	return &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: name}, Image: &cri.ImageSpec{Image: "img"},
		Linux: &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{
			NamespaceOptions: &cri.NamespaceOption{Network: cri.NamespaceMode_NODE, Ipc: cri.NamespaceMode_NODE, Pid: cri.NamespaceMode_CONTAINER},
		}},
	}
}

func (n *node) mustRun(t *testing.T, name string) string {
	t.Helper()
	id, err := n.RunPod(t.Context(), podConfig(name), "")
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func (n *node) mustCreate(t *testing.T, pod, name string) string {
	t.Helper()
	id, err := n.CreateContainer(t.Context(), pod, containerConfig(name))
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func (n *node) mustStart(t *testing.T, id string) {
	t.Helper()
	if err := n.StartContainer(t.Context(), id); err != nil {
		t.Fatal(err)
	}
}

func (n *node) state(t *testing.T, id string) cri.ContainerState {
	t.Helper()
	s, err := n.ContainerStatus(id, false)
	if err != nil {
		t.Fatal(err)
	}
	return s.Status.State
}

// nothingLeft fails if anything of a pod or container is there.
func (n *node) nothingLeft(t *testing.T) {
	t.Helper()
	for _, dir := range []string{
		filepath.Join(n.opts.Root, "pods"), filepath.Join(n.opts.Root, "containers"), filepath.Join(n.opts.State, "pods"), n.images.dir,
	} {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Error(err)
		}
		for _, e := range entries {
			t.Errorf("%s is left", filepath.Join(dir, e.Name()))
		}
	}
	if len(n.runtime.held)+len(n.images.mounted)+len(n.network.connected) > 0 {
		t.Errorf("left: containers %v, mounts %v, networks %v", n.runtime.held, n.images.mounted, n.network.connected)
	}
}
