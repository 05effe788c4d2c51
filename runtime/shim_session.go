package runtime

import (
	"context"
	"errors"
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
	names, sent, err := s.attachStart(req)
	if err == nil {
		s.addSession(x)
	}
	wire.Write(c, reply{V: protocolVersion, Error: toWire(err), Names: names}, sent...)
	wire.CloseAll(sent)
	s.end()
	if err != nil {
		wire.CloseAll(files)
		return
	}
	s.attachWait(x)
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

// attachStart finds the descriptors through which the client itself writes and
// resizes.
func (s *shim) attachStart(req request) (names []string, sent []*os.File, err error) {
	c, err := s.lookup(req.ID)
	if err != nil {
		return nil, nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.exit != nil {
		return nil, nil, kind.Errorf(kind.Precondition, "container %s has ended", req.ID)
	}
	add := func(name string, f *os.File, err error) error {
		if err == nil {
			names, sent = append(names, name), append(sent, f)
		}
		return err
	}
	r := c.record.Request
	switch {
	case r.Terminal && c.files[filePty] != nil:
		f, err := dup(c.files[filePty])
		return names, sent, errors.Join(add(filePty, f, err))
	case req.Stdin && r.StdinOnce && c.files[fileStdin] != nil:
		f, err := dup(c.files[fileStdin])
		return names, sent, errors.Join(add(fileStdin, f, err))
	case req.Stdin && r.Stdin && !r.StdinOnce && !r.Terminal:
		f, err := openFile(c.path("stdin"), stdinFlags)
		return names, sent, errors.Join(add(fileStdin, f, err))
	}
	return nil, nil, nil
}

// attachWait lasts until the container's end, the client's, or a tap's that is
// too slow.
func (s *shim) attachWait(x *session) {
	c := s.find(x.ID, false)
	if c == nil {
		s.finish(x, nil)
		return
	}
	streams, taps, err := c.tap(x.files)
	if err != nil {
		s.finish(x, err)
		return
	}
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
				c.closeStdin()
			}
		}
	}()
	slow := make(chan struct{}, len(taps))
	for _, t := range taps {
		go func() {
			<-t.Done()
			if t.Err() != nil {
				slow <- struct{}{}
			}
		}()
	}
	err = nil
	select {
	case <-c.exited:
	case <-c.gone:
	case <-gone:
	case <-slow:
		err = kind.Errorf(kind.Exhausted, "attach to %s: %w", x.ID, containerlog.ErrSlow)
	}
	s.beginWait()
	defer s.end()
	for i, t := range taps {
		streams[i].Detach(t)
	}
	if x.Stdin {
		c.closeStdin()
	}
	s.finish(x, err)
	x.conn.Close()
	<-gone
}

func (s *shim) finish(x *session, err error) {
	s.endSession(x)
	wire.Write(x.conn, reply{V: protocolVersion, Error: toWire(err)}) // a client that is gone does not care
}

// tap connects write ends of pipes to the container's outputs.
func (c *container) tap(files map[string]*os.File) (streams []*containerlog.Stream, taps []*containerlog.Tap, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, st := range c.streams {
		f := files[outputs[i]]
		if f == nil {
			continue
		}
		t, err := containerlog.NewTap(f)
		if err != nil {
			return streams, taps, err
		}
		st.Attach(t)
		streams, taps = append(streams, st), append(taps, t)
	}
	if f := files["stderr"]; f != nil && len(c.streams) < 2 {
		f.Close() // a terminal has no such output
	}
	return streams, taps, nil
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
