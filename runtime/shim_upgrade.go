package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"noded.dev/noded/internal/kind"
	"noded.dev/noded/runtime/wire"
)

type rawConn = syscall.RawConn

type shimOptions struct {
	state    string
	handover *net.UnixConn // from the daemon that started us: descriptors it kept
	ready    *net.UnixConn // the same, for our answer
	memory   *os.File      // from our earlier self
}

func parseShimArgs(args []string) (shimOptions, error) {
	var o shimOptions
	flags := flag.NewFlagSet("shim", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVar(&o.state, "state", "", "state folder")
	handover := flags.Int("handover-fd", -1, "")
	resume := flags.Int("resume-fd", -1, "")
	if err := flags.Parse(args); err != nil {
		return o, kind.Errorf(kind.Invalid, "shim arguments: %w", err)
	}
	if o.state == "" {
		return o, kind.Errorf(kind.Invalid, "shim arguments: --state is missing")
	}
	if *resume >= 0 {
		o.memory = os.NewFile(uintptr(*resume), "memory")
		unix.CloseOnExec(*resume)
	}
	if *handover >= 0 {
		unix.CloseOnExec(*handover)
		c, err := unixConn(os.NewFile(uintptr(*handover), "handover"))
		if err != nil {
			return o, err
		}
		o.handover, o.ready = c, c
	}
	return o, nil
}

// unixConn makes a connection of a descriptor, which it uses up.
func unixConn(f *os.File) (*net.UnixConn, error) {
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("inherited connection: %w", err)
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, errors.New("inherited connection is not a unix socket")
	}
	return u, nil
}

// handover is a frame from the daemon to a shim that it starts.
type handover struct {
	Names []string
	End   bool // the last
}

// memory is what a shim leaves to itself across a re-execution. Its containers
// are in their records; this is what a file cannot hold.
type memory struct {
	Version      int
	Lock, Socket int
	Files        map[string]int
	Sessions     []sessionRecord
}

const memoryVersion = 1

func inherit(o shimOptions) (*inheritance, error) {
	in := &inheritance{files: map[string]*os.File{}}
	if o.memory != nil {
		return in, in.fromMemory(o.memory)
	}
	for o.handover != nil {
		var h handover
		o.handover.SetReadDeadline(time.Now().Add(10 * time.Second))
		files, err := wire.Read(o.handover, &h)
		if err != nil {
			return nil, fmt.Errorf("take descriptors over: %w", err)
		}
		for i, f := range files {
			if i < len(h.Names) {
				in.files[h.Names[i]] = f
			}
		}
		if h.End {
			break
		}
	}
	return in, nil
}

func (in *inheritance) fromMemory(f *os.File) error {
	defer f.Close()
	var m memory
	if err := json.NewDecoder(f).Decode(&m); err != nil {
		return fmt.Errorf("decode memory: %w", err)
	}
	open := func(fd int, name string) *os.File {
		unix.CloseOnExec(fd)
		return os.NewFile(uintptr(fd), name)
	}
	in.resumed = true
	in.lock = open(m.Lock, "lock")
	socket := open(m.Socket, "socket")
	defer socket.Close()
	l, err := net.FileListener(socket)
	if err != nil {
		return fmt.Errorf("inherited socket: %w", err)
	}
	in.socket = l.(*net.UnixListener)
	in.socket.SetUnlinkOnClose(false)
	for name, fd := range m.Files {
		in.files[name] = open(fd, name)
	}
	in.sessions = m.Sessions
	return nil
}

const (
	// quietLimit bounds the wait for calls under way before a re-execution.
	quietLimit = 30 * time.Second
	// pauseLimit bounds the wait for output being logged. It may be passed over:
	// a cut-off chunk is finished by the next image.
	pauseLimit = 2 * time.Second
)

// upgrade replaces this process's image by the binary, keeping pid, children
// and descriptors. The new image answers the call. It returns on failure only,
// and then the shim goes on as it was.
func (s *shim) upgrade(ctx context.Context, conn *net.UnixConn, req request, files []*os.File) error {
	binary := "/proc/self/exe"
	if len(files) > 0 {
		binary = "/proc/self/fd/" + strconv.Itoa(int(files[0].Fd()))
	}
	if len(req.Args) == 0 {
		return kind.Errorf(kind.Invalid, "upgrade without a command")
	}
	s.mu.Lock()
	if s.draining {
		s.mu.Unlock()
		return errUpgrading
	}
	s.draining = true
	s.mu.Unlock()
	defer s.undrain()
	s.socket.SetDeadline(time.Unix(1, 0))
	ctx, cancel := context.WithTimeout(ctx, quietLimit)
	defer cancel()
	if err := s.quiet(ctx); err != nil {
		return err
	}
	s.pool.Pause()
	defer s.pool.Resume()
	for until := time.Now().Add(pauseLimit); !s.pool.Idle() && time.Now().Before(until); {
		time.Sleep(time.Millisecond) // the end of a chunk is not worth an event
	}
	x := &session{sessionRecord: sessionRecord{Kind: "upgrade"}, conn: conn}
	s.addSession(x)
	defer s.endSession(x)
	return s.reexec(binary, req.Args)
}

func (s *shim) quiet(ctx context.Context) error {
	for {
		s.mu.Lock()
		calls, parked := s.calls, s.parked
		s.mu.Unlock()
		if calls == 0 && parked {
			return nil
		}
		select {
		case <-s.callEnded:
		case <-ctx.Done():
			return kind.Errorf(kind.Unavailable, "%d calls are under way: %w", calls, ctx.Err())
		}
	}
}

func (s *shim) undrain() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.socket.SetDeadline(time.Time{})
	s.draining, s.parked = false, false
	close(s.undrained)
	s.undrained = make(chan struct{})
}

func (s *shim) reexec(binary string, args []string) (err error) {
	m := memory{Version: memoryVersion, Files: map[string]int{}}
	var kept []int
	keep := func(fd int) int { kept = append(kept, fd); return fd }
	defer func() {
		for _, fd := range kept {
			unix.CloseOnExec(fd)
		}
	}()
	s.mu.Lock()
	defer s.mu.Unlock()
	m.Lock, m.Socket = keep(fdOf(s.lock)), keep(fdOf(s.socket))
	for _, c := range s.containers {
		c.mu.Lock()
		defer c.mu.Unlock() // until the end of this image
		for name, f := range c.files {
			if fd := fdOf(f); fd >= 0 {
				m.Files[c.id+"/"+name] = keep(fd)
			}
		}
	}
	for x := range s.sessions {
		m.Sessions = append(m.Sessions, x.hand(len(m.Sessions), m.Files, keep))
	}
	fd, err := memfd(m)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for _, k := range kept {
		if _, err := unix.FcntlInt(uintptr(k), unix.F_SETFD, 0); err != nil {
			return fmt.Errorf("keep descriptor: %w", err)
		}
	}
	argv := append(append([]string(nil), args...), "--resume-fd", strconv.Itoa(fd))
	err = unix.Exec(binary, argv, os.Environ())
	return kind.Errorf(kind.Aborted, "execute the new shim: %w", err)
}

// sessionPrefix begins the names of sessions' descriptors; no container id does.
const sessionPrefix = "session:"

func (x *session) hand(n int, files map[string]int, keep func(int) int) sessionRecord {
	r := x.sessionRecord
	name := sessionPrefix + strconv.Itoa(n) + "/"
	r.Conn = name + "conn"
	files[r.Conn] = keep(fdOf(x.conn))
	r.Files = map[string]string{}
	for k, f := range x.files {
		if fd := fdOf(f); fd >= 0 {
			r.Files[k] = name + k
			files[name+k] = keep(fd)
		}
	}
	return r
}

// memfd writes m to a memory file that outlives the image.
func memfd(m memory) (int, error) {
	data, err := json.Marshal(m)
	if err != nil {
		return -1, fmt.Errorf("encode memory: %w", err)
	}
	fd, err := unix.MemfdCreate("noded-shim", 0)
	if err != nil {
		return -1, fmt.Errorf("make memory file: %w", err)
	}
	if _, err = unix.Write(fd, data); err == nil {
		_, err = unix.Seek(fd, 0, io.SeekStart)
	}
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("write memory file: %w", err)
	}
	return fd, nil
}

// resumeSessions goes on with the sessions of the earlier image.
func (s *shim) resumeSessions(in *inheritance) {
	for _, r := range in.sessions {
		f := in.files[r.Conn]
		delete(in.files, r.Conn)
		conn, err := unixConn(f)
		if err != nil {
			s.log.WithError(err).Error("session is lost")
			continue
		}
		x := &session{sessionRecord: r, conn: conn, files: map[string]*os.File{}}
		for name, key := range r.Files {
			x.files[name] = in.files[key]
			delete(in.files, key)
		}
		switch r.Kind {
		case "exec":
			s.reaper.keep(r.Pid)
			s.addSession(x)
			go func() { defer conn.Close(); s.execWait(x) }()
		case "attach":
			s.resumeAttach(x)
		case "upgrade":
			wire.Write(conn, reply{V: protocolVersion, Pid: os.Getpid(), Version: s.version})
			conn.Close()
		}
	}
}

func (s *shim) resumeAttach(x *session) {
	a, err := s.attachStart(x, request{ID: x.ID}) // the client has its inputs already
	if err != nil {
		s.finish(x, err)
		x.conn.Close()
		return
	}
	wire.CloseAll(a.sent)
	s.addSession(x)
	go s.attachWait(x, a)
}

// fdOf reads a descriptor's number, -1 if it is closed. (*os.File).Fd would
// make it blocking.
func fdOf(f interface {
	SyscallConn() (rawConn, error)
}) int {
	n := -1
	if rc, err := f.SyscallConn(); err == nil {
		rc.Control(func(fd uintptr) { n = int(fd) })
	}
	return n
}
