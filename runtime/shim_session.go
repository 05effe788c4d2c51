package runtime

import (
	"context"
	"fmt"
	"net"
	"os"

	"noded.dev/noded/internal/kind"
	"noded.dev/noded/runtime/containerlog"
	"noded.dev/noded/runtime/pidfd"
	"noded.dev/noded/runtime/wire"
)

// session is an exec or attach that a client is connected to. It consists of
// descriptors, so that a re-executed shim goes on with it.
type session struct {
	sessionRecord
	conn  *net.UnixConn
	files map[string]*os.File // exec: "pidfd"; attach: "stdout", "stderr"
}

type sessionRecord struct {
	Kind  string // "exec", "attach" or "upgrade"
	ID    string // container
	Pid   int    `json:",omitempty"` // exec
	Stdin bool   `json:",omitempty"` // attach: it has the standard input
	Conn  string // names of descriptors
	Files map[string]string
}

func (s *shim) addSession(x *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sessions[x] = struct{}{}
}

func (s *shim) endSession(x *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.sessions, x)
}

// execCall starts a process and stays with it.
func (s *shim) execCall(ctx context.Context, c *net.UnixConn, req request, files []*os.File) {
	x, console, err := s.execStart(ctx, c, req, files)
	wire.CloseAll(files)
	if err != nil {
		wire.Write(c, reply{V: protocolVersion, Error: toWire(err)})
		s.end()
		return
	}
	sent := []*os.File{x.files[filePidfd]}
	names := []string{filePidfd}
	if console != nil {
		sent, names = append(sent, console), append(names, filePty)
	}
	start, _ := pidfd.StartTime(x.Pid) // informative here: the pidfd names the process
	wire.Write(c, reply{V: protocolVersion, Process: &Process{Pid: x.Pid, StartTime: start}, Names: names}, sent...)
	wire.CloseAll([]*os.File{console})
	s.addSession(x)
	s.end()
	s.execWait(x)
}

func (s *shim) execStart(ctx context.Context, conn *net.UnixConn, req request, files []*os.File) (*session, *os.File, error) {
	c, err := s.lookup(req.ID)
	if err != nil {
		return nil, nil, err
	}
	c.mu.Lock()
	ended := c.files[filePidfd] == nil || c.exit != nil
	c.mu.Unlock()
	if ended {
		return nil, nil, kind.Errorf(kind.Precondition, "container %s is not running", req.ID)
	}
	timeout := execStartLimit
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	stop := cancelOnClose(conn, cancel)
	defer stop()
	var p execProcess
	err = s.reaper.spawn(func() (err error) {
		if p, err = s.startProcess(ctx, c, req, files); err == nil {
			s.reaper.keep(p.pid)
		}
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	x := &session{
		sessionRecord: sessionRecord{Kind: "exec", ID: req.ID, Pid: p.pid}, conn: conn,
		files: map[string]*os.File{filePidfd: p.pidfd},
	}
	return x, p.console, nil
}

// execWait answers with the process's exit code. A client that closes first
// wants it and what it started killed.
func (s *shim) execWait(x *session) {
	f := x.files[filePidfd]
	stop := cancelOnClose(x.conn, func() { pidfd.KillTree(f, x.Pid) })
	pidfd.Wait(f)
	s.beginWait()
	defer s.end()
	stop()
	s.endSession(x)
	code, err := pidfd.Code(f)
	pidfd.Reap(f)
	s.reaper.forget(x.Pid)
	f.Close()
	if err != nil {
		err = kind.Errorf(kind.Unavailable, "exec in %s: %w", x.ID, err)
	}
	wire.Write(x.conn, reply{V: protocolVersion, Code: code, Error: toWire(err)}) // nobody else wants to know
}

// attachCall connects a client to a container's streams and stays with it.
func (s *shim) attachCall(ctx context.Context, c *net.UnixConn, req request, files []*os.File) {
	x := &session{sessionRecord: sessionRecord{Kind: "attach", ID: req.ID, Stdin: req.Stdin}, conn: c, files: map[string]*os.File{}}
	for i, name := range requested(req) {
		if i < len(files) {
			x.files[name] = files[i]
		}
	}
	a, err := s.attachStart(x, req)
	if err != nil {
		wire.Write(c, reply{V: protocolVersion, Error: toWire(err)})
		s.end()
		wire.CloseAll(files)
		return
	}
	s.addSession(x)
	wire.Write(c, reply{V: protocolVersion, Names: a.names}, a.sent...) // a client that is gone is noticed below
	wire.CloseAll(a.sent)
	s.end()
	s.attachWait(x, a)
}

func requested(req request) []string {
	var names []string
	if req.Stdout {
		names = append(names, "stdout")
	}
	if req.Stderr {
		names = append(names, "stderr")
	}
	return names
}

// attachment is a client's connection to a container.
type attachment struct {
	c       *container
	streams []*containerlog.Stream
	taps    []*containerlog.Tap // of streams
	names   []string            // of sent: what the client itself writes to and resizes
	sent    []*os.File
}

// attachStart connects a client's outputs before it can cause any output.
func (s *shim) attachStart(x *session, req request) (*attachment, error) {
	c, err := s.lookup(req.ID)
	if err != nil {
		return nil, err
	}
	a := &attachment{c: c}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.exit != nil {
		return nil, kind.Errorf(kind.Precondition, "container %s has ended", req.ID)
	}
	if err := a.inputs(req); err != nil {
		return nil, err
	}
	if err := a.tap(x.files); err != nil {
		wire.CloseAll(a.sent)
		return nil, err
	}
	return a, nil
}

// inputs finds the descriptors for the client; c.mu is held.
func (a *attachment) inputs(req request) error {
	var name string
	var f *os.File
	var err error
	switch r := a.c.record.Request; {
	case r.Terminal && a.c.files[filePty] != nil:
		name = filePty
		f, err = dup(a.c.files[filePty])
	case !req.Stdin || r.Terminal:
		return nil
	case r.StdinOnce && a.c.files[fileStdin] != nil:
		name = fileStdin
		f, err = dup(a.c.files[fileStdin])
	case r.Stdin && !r.StdinOnce:
		name = fileStdin
		f, err = openFile(a.c.path("stdin"), stdinFlags)
	default:
		return nil
	}
	if err != nil {
		return fmt.Errorf("open input: %w", err)
	}
	a.names, a.sent = append(a.names, name), append(a.sent, f)
	return nil
}

// tap connects write ends of pipes to the container's outputs; c.mu is held.
func (a *attachment) tap(files map[string]*os.File) error {
	for i, st := range a.c.streams {
		f := files[outputs[i]]
		if f == nil {
			continue
		}
		t, err := containerlog.NewTap(f)
		if err != nil {
			return fmt.Errorf("connect %s: %w", outputs[i], err)
		}
		st.Attach(t)
		a.streams, a.taps = append(a.streams, st), append(a.taps, t)
	}
	if f := files["stderr"]; f != nil && len(a.c.streams) < 2 {
		f.Close() // a terminal has no such output
	}
	return nil
}

// attachWait lasts until the container's end, the client's, or a tap's that is
// too slow.
func (s *shim) attachWait(x *session, a *attachment) {
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		for {
			var req request
			files, err := wire.Read(x.conn, &req)
			if err != nil {
				return
			}
			wire.CloseAll(files)
			if req.Op == "stdin-closed" && x.Stdin {
				a.c.closeStdin()
			}
		}
	}()
	slow := make(chan struct{}, len(a.taps))
	for _, t := range a.taps {
		go func() {
			<-t.Done()
			if t.Err() != nil {
				slow <- struct{}{}
			}
		}()
	}
	var err error
	select {
	case <-a.c.exited:
	case <-a.c.gone:
	case <-gone:
	case <-slow:
		err = kind.Errorf(kind.Exhausted, "attach to %s: %w", x.ID, containerlog.ErrSlow)
	}
	s.beginWait()
	defer s.end()
	for i, t := range a.taps {
		a.streams[i].Detach(t)
	}
	if x.Stdin {
		a.c.closeStdin()
	}
	s.finish(x, err)
	x.conn.Close()
	<-gone
}

func (s *shim) finish(x *session, err error) {
	s.endSession(x)
	wire.Write(x.conn, reply{V: protocolVersion, Error: toWire(err)}) // a client that is gone does not care
}

// closeStdin lets a StdinOnce container see the end of its input. Both noded
// processes hold the write end.
func (c *container) closeStdin() {
	c.mu.Lock()
	f := c.files[fileStdin]
	if f == nil || !c.record.Request.StdinOnce {
		c.mu.Unlock()
		return
	}
	f.Close()
	delete(c.files, fileStdin)
	c.record.StdinClosed = true
	err := c.save()
	c.mu.Unlock()
	if err != nil {
		c.s.log.WithError(err).WithField("container", c.id).Warn("closed stdin is not recorded")
	}
	c.s.tellDrop(c.id + "/" + fileStdin)
}
