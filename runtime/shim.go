package runtime

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	goruntime "runtime"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"noded.dev/noded/internal/cgroup"
	"noded.dev/noded/internal/kind"
	"noded.dev/noded/runtime/containerlog"
	"noded.dev/noded/runtime/nsexec"
	"noded.dev/noded/runtime/wire"
)

// shim is the node's one parent of containers.
type shim struct {
	dir     stateDir
	log     *logrus.Entry
	lock    *os.File
	socket  *net.UnixListener
	table   *containerlog.Table
	pool    *containerlog.Pool
	reaper  *reaper
	cgroups *cgroup.Host // nil: execs go through the OCI runtime
	version string
	build   string

	mu         sync.Mutex
	containers map[string]*container
	watchers   map[*watcher]struct{}
	sessions   map[*session]struct{}
	draining   bool // re-executing: no new calls
	parked     bool // nothing is accepted
	calls      int  // connections whose request is not answered yet
	callEnded  chan struct{}
	undrained  chan struct{} // closed when an upgrade failed
	work       sync.WaitGroup
}

// The shim's memory: a small heap that is collected often. The limit is soft;
// it only makes collection eager near it.
const (
	gcPercent   = 25
	memoryLimit = 24 << 20
	maxProcs    = 2
)

// RunShim is the main function of the `noded shim` command. args are what
// follows it: "--state DIR", and internal options that the daemon (or the
// shim's earlier self) appends. It returns when ctx ends.
func RunShim(ctx context.Context, args []string) error {
	// First of all: it executes this program again, which finds it done.
	unprotected := nsexec.Protect()
	opt, err := parseShimArgs(args)
	if err != nil {
		return err
	}
	debug.SetGCPercent(gcPercent)
	debug.SetMemoryLimit(memoryLimit)
	goruntime.GOMAXPROCS(maxProcs)
	s, inherited, err := newShim(opt)
	if err != nil {
		return err
	}
	defer s.lock.Close()
	if unprotected != nil {
		s.log.WithError(unprotected).Warn("execs need the OCI runtime, which takes far longer")
	}
	s.becomeParent()
	if err := s.recover(inherited); err != nil {
		return err
	}
	if s.socket == nil {
		if s.socket, err = wire.Listen(s.dir.socket()); err != nil {
			return err
		}
	}
	if opt.ready != nil {
		wire.Write(opt.ready, reply{V: protocolVersion, Pid: os.Getpid(), Version: s.version})
		opt.ready.Close()
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.work.Go(func() { s.signals(ctx, cancel) })
	s.serve(ctx)
	cancel()
	s.work.Wait()
	return nil
}

func newShim(opt shimOptions) (*shim, *inheritance, error) {
	s := &shim{
		dir: stateDir(opt.state), version: buildVersion(), callEnded: make(chan struct{}, 1), undrained: make(chan struct{}),
		containers: map[string]*container{}, watchers: map[*watcher]struct{}{}, sessions: map[*session]struct{}{},
		pool: containerlog.NewPool(), reaper: newReaper(),
	}
	logger := logrus.New()
	logger.SetOutput(os.Stderr)
	s.log = logger.WithField("pid", os.Getpid())
	for _, d := range []string{s.dir.shim(), s.dir.exits()} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, nil, fmt.Errorf("make state folder: %w", err)
		}
	}
	var err error
	if s.build, err = buildID("/proc/self/exe"); err != nil {
		s.log.WithError(err).Warn("the daemon will take this for another build")
	}
	if s.cgroups, err = cgroup.Detect(""); err != nil {
		s.log.WithError(err).Warn("execs need the OCI runtime, which takes far longer")
	}
	inherited, err := inherit(opt)
	if err != nil {
		return nil, nil, err
	}
	s.lock, s.socket = inherited.lock, inherited.socket
	if s.lock == nil {
		if s.lock, err = takeLock(s.dir.lock()); err != nil {
			return nil, nil, err
		}
	}
	s.table, err = containerlog.OpenTable(s.dir.table())
	return s, inherited, err
}

// errOtherShim is returned by a shim that finds another one alive.
var errOtherShim = errors.New("another shim serves this state folder")

const lockLimit = 5 * time.Second

func takeLock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open shim lock: %w", err)
	}
	// A shim that was killed holds it until its last thread is out of the
	// kernel. There is no waiting for a lock with a limit.
	for until := time.Now().Add(lockLimit); ; time.Sleep(5 * time.Millisecond) {
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
			return f, nil
		}
		if time.Now().After(until) {
			f.Close()
			return nil, errOtherShim
		}
	}
}

// becomeParent makes orphans ours and this process hard to kill.
func (s *shim) becomeParent() {
	unix.Umask(0o022) // containers inherit it
	if err := os.Chdir("/"); err != nil {
		s.log.WithError(err).Warn("cannot leave the working directory")
	}
	if _, err := unix.Setsid(); err != nil && err != unix.EPERM { // EPERM: is a session leader already
		s.log.WithError(err).Warn("cannot make a session")
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		s.log.WithError(err).Warn("cannot become subreaper; exit codes depend on pidfds")
	}
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte("-999"), 0); err != nil {
		s.log.WithError(err).Warn("cannot lower oom_score_adj; the kernel may kill the shim when memory runs out")
	}
}

// signals handles what must not end the shim. SIGPIPE is caught, not ignored:
// what is ignored stays ignored in the containers.
func (s *shim) signals(ctx context.Context, stop func()) {
	c := make(chan os.Signal, 16)
	signal.Notify(c, unix.SIGHUP, unix.SIGINT, unix.SIGTERM, unix.SIGPIPE, unix.SIGCHLD)
	defer signal.Stop(c)
	for {
		select {
		case <-ctx.Done():
			return
		case sig := <-c:
			switch sig {
			case unix.SIGCHLD:
				s.reaper.orphans()
			case unix.SIGTERM, unix.SIGINT:
				if s.empty() {
					stop()
					return
				}
				s.log.Warn("not ending on SIGTERM: there are containers")
			}
		}
	}
}

func (s *shim) empty() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.containers) == 0 && len(s.sessions) == 0
}

func (s *shim) serve(ctx context.Context) {
	stop := context.AfterFunc(ctx, func() { s.socket.Close() })
	defer stop()
	for {
		c, err := s.socket.AcceptUnix()
		if ctx.Err() != nil {
			return
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			s.park() // what comes meanwhile waits in the socket's queue
			continue
		}
		if err != nil {
			// Out of descriptors, for example. There is no event for their return.
			s.log.WithError(err).Warn("accept")
			time.Sleep(100 * time.Millisecond)
			continue
		}
		s.mu.Lock()
		s.calls++
		s.mu.Unlock()
		go s.connection(ctx, c)
	}
}

// park stops accepting until an upgrade has failed.
func (s *shim) park() {
	s.mu.Lock()
	s.parked = true
	undrained := s.undrained
	s.mu.Unlock()
	s.wake()
	<-undrained
}

func (s *shim) connection(ctx context.Context, c *net.UnixConn) {
	defer c.Close()
	req, files, err := s.receive(c)
	if err != nil {
		s.end()
		return // a peer that went away or has no business here
	}
	s.dispatch(ctx, c, req, files)
}

func (s *shim) receive(c *net.UnixConn) (request, []*os.File, error) {
	var req request
	uid, err := wire.PeerUID(c)
	if err == nil && uid != uint32(os.Geteuid()) {
		err = kind.Errorf(kind.PermissionDenied, "refused a connection of user %d", uid)
	}
	if err != nil {
		s.log.WithError(err).Warn("connection")
		return req, nil, err
	}
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	files, err := wire.Read(c, &req)
	c.SetReadDeadline(time.Time{})
	return req, files, err
}

var errUpgrading = kind.Errorf(kind.Unavailable, "the shim is re-executing itself")

func (s *shim) begin() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.draining {
		return false
	}
	s.calls++
	return true
}

// beginWait is begin for work that cannot be refused: it waits until the shim
// goes on, in this image or, without returning, in the next.
func (s *shim) beginWait() {
	for !s.begin() {
		s.mu.Lock()
		undrained := s.undrained
		s.mu.Unlock()
		<-undrained
	}
}

// end says that a call is over, or has become a session that can be handed on.
func (s *shim) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls--
	s.wake()
}

// wake lets quiet look again.
func (s *shim) wake() {
	select {
	case s.callEnded <- struct{}{}:
	default:
	}
}

func (s *shim) dispatch(ctx context.Context, c *net.UnixConn, req request, files []*os.File) {
	switch req.Op { // these end their call themselves
	case "watch":
		s.end()
		wire.CloseAll(files)
		s.watch(ctx, c)
		return
	case "exec":
		s.execCall(ctx, c, req, files)
		return
	case "freeze":
		wire.CloseAll(files)
		s.freezeCall(ctx, c, req)
		return
	case "attach":
		s.attachCall(ctx, c, req, files)
		return
	case "upgrade":
		s.end() // or it would wait for itself
		err := s.upgrade(ctx, c, req, files)
		wire.CloseAll(files)
		wire.Write(c, reply{V: protocolVersion, Error: toWire(err)})
		return
	}
	defer s.end()
	wire.CloseAll(files)
	r, err := s.call(ctx, c, req)
	r.V, r.Error = protocolVersion, toWire(err)
	if err := wire.Write(c, r); err != nil && !errors.Is(err, syscall.EPIPE) {
		s.log.WithError(err).WithField("op", req.Op).Warn("answer")
	}
}

// defaultTimeout limits OCI runtime commands of requests that have no deadline.
const defaultTimeout = 2 * time.Minute

func (s *shim) call(ctx context.Context, c *net.UnixConn, req request) (reply, error) {
	timeout := defaultTimeout
	if req.TimeoutMS > 0 {
		timeout = time.Duration(req.TimeoutMS) * time.Millisecond
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	switch req.Op {
	case "hello":
		return reply{Version: s.version, Build: s.build, Routines: goruntime.NumGoroutine(), Pid: os.Getpid()}, nil
	case "list":
		return reply{States: s.states()}, nil
	case "create":
		// A caller that is gone will not start it.
		stop := cancelOnClose(c, cancel)
		defer stop()
		p, err := s.create(ctx, req.Create)
		return reply{Process: &p}, err
	case "start":
		return reply{}, s.withContainer(ctx, req.ID, func(c *container) error { return c.start(ctx) })
	case "signal":
		return reply{}, s.signal(req.ID, req.Signal)
	case "delete":
		return reply{}, s.delete(ctx, req.Create)
	case "update":
		// A caller that is gone undoes it, and must not meet it at work then.
		stop := cancelOnClose(c, cancel)
		defer stop()
		return reply{}, s.withContainer(ctx, req.ID, func(c *container) error { return c.update(ctx, req.Resources) })
	case "checkpoint":
		// A caller that is gone will not use it.
		stop := cancelOnClose(c, cancel)
		defer stop()
		return reply{}, s.withContainer(ctx, req.ID, func(c *container) error { return c.checkpoint(ctx, req.Restore) })
	case "reopen":
		return reply{}, s.reopen(req.ID)
	}
	return reply{}, kind.Errorf(kind.Unimplemented, "this shim does not know %q", req.Op)
}

// cancelOnClose calls cancel when the peer closes the connection.
func cancelOnClose(c *net.UnixConn, cancel func()) (stop func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		var b [1]byte
		if _, err := c.Read(b[:]); err == nil || !errors.Is(err, os.ErrDeadlineExceeded) {
			cancel()
		}
	}()
	return func() {
		c.SetReadDeadline(time.Unix(1, 0))
		<-done
		c.SetReadDeadline(time.Time{})
	}
}

func buildVersion() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		return info.Main.Version
	}
	return ""
}

// removeAll deletes a folder's known content without following links.
func removeAll(dir string) error {
	if err := os.RemoveAll(filepath.Clean(dir)); err != nil {
		return fmt.Errorf("remove %s: %w", filepath.Base(dir), err)
	}
	return nil
}
