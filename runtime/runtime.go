package runtime

import (
	"context"
	"fmt"
	"net"
	"os"
	"sort"
	"sync"
	"time"

	rspec "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"noded.dev/noded/internal/kind"
)

// Options configure a Runtime.
type Options struct {
	StateDir string // folder for the shim's socket, FIFOs and exit records; on a tmpfs

	// ShimCommand starts the shim: a program whose main calls RunShim with the
	// arguments after its own, among them "--state", StateDir.
	ShimCommand []string

	Handlers []Handler
	Default  string // name of the handler for ""
	Criu     string // absolute path of criu, for checkpoints; "" makes none
	Log      *logrus.Entry
}

// Runtime is the daemon's side: it talks to the shim, restarts it when it
// dies, and keeps copies of all its descriptors for that.
type Runtime struct {
	dir         stateDir
	shimCommand []string
	log         *logrus.Entry
	handlers    map[string]HandlerInfo
	defaultName string
	criu        string
	exits       chan Exit
	stop        context.CancelFunc
	work        sync.WaitGroup
	exitMore    chan struct{}

	mu        sync.Mutex
	link      link
	files     map[string]*os.File // descriptor store: "<container>/<name>"
	exitQueue []Exit
	exitSeen  map[string]bool // until the container is deleted
	reaping   map[string]bool
	shims     shims
	criuWorks bool // it was asked
	renewing  bool // by UpgradeShim: the next end of the connection is no news
}

// link is the state of the connection to the shim.
//
//	down --connected, all descriptors received--> up --end of file--> down
type link struct {
	up      bool
	changed chan struct{} // closed at each change
}

// openLimit bounds Open's wait for the shim. A shim that hangs must not keep
// the daemon from starting: its calls fail then, one by one.
const openLimit = 2 * time.Second

// Open finds the shim or starts it, and takes over what it holds. A shim of
// another build than ShimCommand's is upgraded in place. An error means that
// there can be no shim; missing OCI runtimes are reported by Handlers.
func Open(ctx context.Context, o Options) (*Runtime, error) {
	r := &Runtime{
		dir: stateDir(o.StateDir), shimCommand: o.ShimCommand, log: o.Log, defaultName: o.Default, criu: o.Criu,
		handlers: map[string]HandlerInfo{}, exits: make(chan Exit), exitMore: make(chan struct{}, 1),
		link: link{changed: make(chan struct{})}, files: map[string]*os.File{}, exitSeen: map[string]bool{}, reaping: map[string]bool{},
		shims: shims{pids: map[int]bool{}, ended: make(chan struct{}, 1), orphans: map[Process]bool{}},
	}
	if r.log == nil {
		r.log = logrus.NewEntry(logrus.StandardLogger())
	}
	if len(o.ShimCommand) == 0 {
		return nil, kind.Errorf(kind.Invalid, "no shim command")
	}
	for _, d := range []string{o.StateDir, r.dir.exits()} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("make state folder: %w", err)
		}
	}
	// Containers whose shim has died become ours, and so do their statuses.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("become subreaper: %w", err)
	}
	for _, info := range probeAll(ctx, o.Handlers) {
		r.handlers[info.Name] = info
	}
	conn, err := r.connect(ctx)
	if err != nil {
		return nil, err
	}
	own, stop := context.WithCancel(context.WithoutCancel(ctx))
	r.stop = stop
	r.work.Go(func() { r.supervise(own, conn) })
	r.work.Go(func() { r.feedExits(own) })
	r.work.Go(func() { r.collectOrphans(own) })
	wait, cancel := context.WithTimeout(ctx, openLimit)
	defer cancel()
	if err := r.awaitUp(wait); err != nil {
		r.log.WithError(err).Warn("the shim does not answer yet")
		return r, nil
	}
	r.renewShim(ctx)
	return r, nil
}

// Close disconnects. Shim and containers go on.
func (r *Runtime) Close() error {
	r.stop()
	r.work.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	for name, f := range r.files {
		f.Close()
		delete(r.files, name)
	}
	return nil
}

// Handler finds a configured runtime handler; "" is the default one.
func (r *Runtime) Handler(name string) (HandlerInfo, error) {
	if name == "" {
		name = r.defaultName
	}
	info, ok := r.handlers[name]
	if !ok {
		return info, kind.Errorf(kind.NotFound, "runtime handler %.80q is not configured", name)
	}
	return info, nil
}

// Handlers lists the configured handlers by name.
func (r *Runtime) Handlers() []HandlerInfo {
	list := make([]HandlerInfo, 0, len(r.handlers))
	for _, info := range r.handlers {
		list = append(list, info)
	}
	sort.Slice(list, func(i, j int) bool { return list[i].Name < list[j].Name })
	return list
}

// Create makes a container whose process waits for Start. Repeating it with
// the same request returns the same process. The error wraps a *StartError
// where the OCI runtime says that the command cannot be executed.
func (r *Runtime) Create(ctx context.Context, req CreateRequest) (Process, error) {
	rep, err := r.call(ctx, request{Op: "create", Create: &req})
	if err != nil || rep.Process == nil {
		return Process{}, err
	}
	return *rep.Process, nil
}

// Start lets a created container's process execute its command.
func (r *Runtime) Start(ctx context.Context, id string) error {
	_, err := r.call(ctx, request{Op: "start", ID: id})
	return err
}

// Signal sends to the container's init process; kind NotFound if it has ended.
// It needs no shim: the daemon has the pidfd.
func (r *Runtime) Signal(ctx context.Context, id string, signal int) error {
	if f := r.file(id + "/" + filePidfd); f != nil {
		defer f.Close()
		return signalProcess(f, id, signal)
	}
	_, err := r.call(ctx, request{Op: "signal", ID: id, Signal: signal})
	return err
}

// Delete removes what the runtime and the shim hold of a container, killing it
// first if it lives; nil if there is nothing (any more).
func (r *Runtime) Delete(ctx context.Context, req CreateRequest) error {
	_, err := r.call(ctx, request{Op: "delete", Create: &req})
	return err
}

// Update changes a container's resource limits, all or nothing.
func (r *Runtime) Update(ctx context.Context, req CreateRequest, resources *rspec.LinuxResources) error {
	_, err := r.call(ctx, request{Op: "update", ID: req.ID, Resources: resources})
	return err
}

// ReopenLog creates the log file anew at its path and writes there from then on.
func (r *Runtime) ReopenLog(ctx context.Context, id string) error {
	_, err := r.call(ctx, request{Op: "reopen", ID: id})
	return err
}

// Containers lists what the shim holds.
func (r *Runtime) Containers(ctx context.Context) ([]State, error) {
	rep, err := r.call(ctx, request{Op: "list"})
	return rep.States, err
}

// ShimPid is the shim's process, for diagnosis.
func (r *Runtime) ShimPid(ctx context.Context) (int, error) {
	rep, err := r.call(ctx, request{Op: "hello"})
	return rep.Pid, err
}

// UpgradeShim makes the shim re-execute itself as Options.ShimCommand, keeping
// its pid, children and descriptors. Containers, their output, execs and
// attached clients do not notice. On failure the old shim goes on.
func (r *Runtime) UpgradeShim(ctx context.Context) error {
	// By descriptor: the path may lead to another file by the time of the exec.
	fd, err := unix.Open(r.shimCommand[0], unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open shim binary: %w", err)
	}
	binary := os.NewFile(uintptr(fd), "binary")
	defer binary.Close()
	r.setRenewing(true)
	if _, err = r.call(ctx, request{Op: "upgrade", Args: r.shimCommand}, binary); err != nil {
		r.setRenewing(false)
	}
	return err
}

// setRenewing returns what was set before.
func (r *Runtime) setRenewing(yes bool) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	before := r.renewing
	r.renewing = yes
	return before
}

// file returns a copy of a kept descriptor, nil if there is none.
func (r *Runtime) file(name string) *os.File {
	r.mu.Lock()
	defer r.mu.Unlock()
	if f := r.files[name]; f != nil {
		if d, err := dup(f); err == nil {
			return d
		}
	}
	return nil
}

func (r *Runtime) dial(ctx context.Context) (*net.UnixConn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", r.dir.socket())
	if err != nil {
		return nil, err
	}
	return c.(*net.UnixConn), nil
}
