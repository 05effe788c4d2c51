package runtime

import (
	"context"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"noded.dev/noded/internal/kind"
	"noded.dev/noded/runtime/containerlog"
	"noded.dev/noded/runtime/wire"
)

var outputs = [2]string{"stdout", "stderr"}

// stdio is the container's side of its streams, until the runtime has it.
type stdio struct {
	child   []*os.File
	console *net.UnixListener

	// consolePath leads to console through folder: a socket's own path may have
	// 107 bytes only (unix(7)), and a container's folder has a long name.
	consolePath string
	folder      *os.File
}

func (s *stdio) close() {
	wire.CloseAll(s.child)
	if s.console != nil {
		s.console.Close()
	}
	if s.folder != nil {
		s.folder.Close()
	}
}

// makeStdio makes the streams and opens both sides.
//
// Outputs are named FIFOs that the container has open for reading, too: it
// never gets SIGPIPE, and its data stays when both noded processes die. So is
// the standard input, unless it must be able to end (StdinOnce): then noded's
// two processes hold the only write ends.
func (c *container) makeStdio() (_ *stdio, err error) {
	req := c.record.Request
	io := &stdio{}
	defer func() {
		if err != nil {
			io.close()
		}
	}()
	if req.Terminal {
		return io, c.makeConsole(io)
	}
	stdin, err := c.makeStdin(req)
	if err != nil {
		return nil, err
	}
	io.child = append(io.child, stdin)
	for _, name := range outputs {
		f, err := c.makeFIFO(name, unix.O_RDWR)
		if err != nil {
			return nil, err
		}
		io.child = append(io.child, f)
		// After the first writer is there, or the read end would see an end.
		r, err := openFile(c.path(name), unix.O_RDONLY|unix.O_NONBLOCK)
		if err != nil {
			return nil, err
		}
		c.setFile(name, r)
	}
	return io, nil
}

func (c *container) makeStdin(req CreateRequest) (*os.File, error) {
	switch {
	case !req.Stdin:
		return openFile(os.DevNull, unix.O_RDONLY)
	case !req.StdinOnce:
		return c.makeFIFO("stdin", unix.O_RDWR)
	}
	w, err := c.makeFIFO("stdin", unix.O_RDWR|unix.O_NONBLOCK) // an opener that needs no peer
	if err != nil {
		return nil, err
	}
	defer w.Close()
	r, err := openInherited(c.path("stdin"), unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	keep, err := openFile(c.path("stdin"), unix.O_WRONLY|unix.O_NONBLOCK)
	if err != nil {
		r.Close()
		return nil, err
	}
	c.setFile(fileStdin, keep)
	return r, nil
}

func (c *container) makeFIFO(name string, flags int) (*os.File, error) {
	if err := unix.Mkfifo(c.path(name), 0o600); err != nil {
		return nil, fmt.Errorf("make %s: %w", name, err)
	}
	// In a user namespace the runtime cannot give it to the process's user.
	if uid := c.record.Request.StdioUID; uid != 0 {
		if err := os.Lchown(c.path(name), int(uid), -1); err != nil {
			return nil, fmt.Errorf("set owner of %s: %w", name, err)
		}
	}
	return openInherited(c.path(name), flags)
}

// openInherited opens what the container inherits. O_NOFOLLOW would stay with
// it, and CRIU opens it with the same flags again, by a link of /proc.
func openInherited(path string, flags int) (*os.File, error) {
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// openFile opens without os.OpenFile's habit of making FIFOs non-blocking,
// which the container would inherit.
func openFile(path string, flags int) (*os.File, error) {
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

func (c *container) setFile(name string, f *os.File) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.files[name] = f
}

// makeConsole prepares for the runtime to send the master of the terminal that
// it makes inside the container.
func (c *container) makeConsole(io *stdio) error {
	null, err := openFile(os.DevNull, unix.O_RDWR)
	if err != nil {
		return err
	}
	// The runtime's own words are in its log.
	io.child = []*os.File{null, null, null}
	if io.folder, err = os.Open(c.dir); err != nil {
		return fmt.Errorf("open container folder: %w", err)
	}
	io.consolePath = fmt.Sprintf("/proc/%d/fd/%d/tty.sock", os.Getpid(), io.folder.Fd())
	io.console, err = wire.Listen(io.consolePath)
	if err != nil {
		return err
	}
	r, w, err := pipe()
	if err != nil {
		return err
	}
	c.setFile(filePtyPipe+"-r", r)
	c.setFile(filePtyPipe+"-w", w)
	return nil
}

func pipe() (r, w *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, fmt.Errorf("make pipe: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "pipe"), os.NewFile(uintptr(fds[1]), "pipe"), nil
}

// consoleWait bounds the wait for a runtime that succeeded without sending a terminal.
const consoleWait = 5 * time.Second

// receiveConsole reads the one message of the runtimes' console protocol: a
// terminal's name with its master as descriptor.
func receiveConsole(ctx context.Context, l *net.UnixListener) (*os.File, error) {
	deadline := time.Now().Add(consoleWait)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	l.SetDeadline(deadline)
	conn, err := l.AcceptUnix()
	if err != nil {
		return nil, kind.Errorf(kind.Aborted, "the runtime sent no terminal: %w", err)
	}
	defer conn.Close()
	conn.SetDeadline(deadline)
	files, err := wire.ReceiveFiles(conn)
	if err != nil || len(files) != 1 {
		wire.CloseAll(files)
		return nil, kind.Errorf(kind.Aborted, "the runtime sent %d terminals: %w", len(files), err)
	}
	return nonblocking(files[0])
}

// nonblocking makes f's open file non-blocking and returns it for the poller.
// f is used up.
func nonblocking(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	f.Close()
	if err != nil {
		return nil, fmt.Errorf("duplicate descriptor: %w", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

func (c *container) openLog() error {
	path := c.record.Request.LogPath
	if path == "" {
		return nil
	}
	l, err := containerlog.OpenLog(path)
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.log = l
	c.mu.Unlock()
	return nil
}

// openStreams connects the outputs with the log. Entries in the table are
// taken anew unless the record names them already.
func (c *container) openStreams() error {
	names := outputs[:]
	if c.record.Request.Terminal {
		names = outputs[:1]
	}
	fresh := len(c.record.Entries) == 0
	for i, name := range names {
		if fresh {
			e, err := c.s.table.Alloc()
			if err != nil {
				return err
			}
			c.mu.Lock()
			c.record.Entries = append(c.record.Entries, e)
			c.mu.Unlock()
		}
		st, err := containerlog.Open(c.streamConfig(name, c.record.Entries[i]))
		if err != nil {
			return err
		}
		c.mu.Lock()
		c.streams = append(c.streams, st)
		c.mu.Unlock()
	}
	return nil
}

func (c *container) streamConfig(name string, entry int) containerlog.Config {
	c.mu.Lock()
	defer c.mu.Unlock()
	cfg := containerlog.Config{
		Name: name, Src: c.files[name], Spool: c.path(name + ".spool"), Table: c.s.table, Entry: entry,
		Log: c.log, Pool: c.s.pool, Warn: c.warnDropped(name),
	}
	if c.record.Request.Terminal {
		cfg.Terminal, cfg.Src = true, c.files[filePty]
		cfg.ViaR, cfg.ViaW = c.files[filePtyPipe+"-r"], c.files[filePtyPipe+"-w"]
	}
	return cfg
}

// warnDropped reports lost output, at most once a minute.
func (c *container) warnDropped(stream string) func(error) {
	var last time.Time
	return func(err error) {
		if now := time.Now(); now.Sub(last) > time.Minute {
			last = now
			c.s.log.WithError(err).WithField("container", c.id).WithField("stream", stream).
				WithField("dropped_bytes", c.log.Dropped()).Warn("output could not be logged and was dropped")
		}
	}
}

const stdinFlags = unix.O_RDWR | unix.O_NONBLOCK // never waits for the container
