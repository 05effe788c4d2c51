package runtime

import (
	"context"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"noded.dev/noded/runtime/wire"
)

// watcher is a daemon's held connection, over which it gets copies of all
// descriptors and hears of exits.
type watcher struct {
	mu    sync.Mutex
	queue []func() (event, []*os.File) // evaluated when sent
	more  chan struct{}
}

func (w *watcher) add(ev func() (event, []*os.File)) {
	w.mu.Lock()
	w.queue = append(w.queue, ev)
	w.mu.Unlock()
	select {
	case w.more <- struct{}{}:
	default:
	}
}

func (w *watcher) take() []func() (event, []*os.File) {
	w.mu.Lock()
	defer w.mu.Unlock()
	q := w.queue
	w.queue = nil
	return q
}

// watch serves a watch connection until either side ends it.
func (s *shim) watch(ctx context.Context, c *net.UnixConn) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := cancelOnClose(c, cancel)
	defer stop()
	w := &watcher{more: make(chan struct{}, 1)}
	s.mu.Lock()
	s.watchers[w] = struct{}{}
	for _, held := range s.containers {
		w.add(held.putEvent)
		w.add(held.exitEvent)
	}
	s.mu.Unlock()
	w.add(func() (event, []*os.File) { return event{Synced: true}, nil })
	defer func() {
		s.mu.Lock()
		delete(s.watchers, w)
		s.mu.Unlock()
	}()
	for {
		for _, make := range w.take() {
			ev, files := make()
			if ev.Put == nil && ev.Drop == nil && ev.Exit == nil && !ev.Synced {
				continue
			}
			// A daemon that does not read for this long has to connect again.
			c.SetWriteDeadline(time.Now().Add(time.Minute))
			err := wire.Write(c, ev, files...)
			wire.CloseAll(files)
			if err != nil {
				return
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-w.more:
		}
	}
}

func (s *shim) tell(ev func() (event, []*os.File)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for w := range s.watchers {
		w.add(ev)
	}
}

func (s *shim) tellPut(c *container) { s.tell(c.putEvent) }

func (s *shim) tellExit(e Exit) {
	s.tell(func() (event, []*os.File) { return event{Exit: &e}, nil })
}

func (s *shim) tellDrop(names ...string) {
	s.tell(func() (event, []*os.File) { return event{Drop: names}, nil })
}

// putEvent copies the container's descriptors for sending.
func (c *container) putEvent() (event, []*os.File) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var ev event
	var files []*os.File
	if !c.record.Created || c.deleting {
		return ev, nil
	}
	for name, f := range c.files {
		if d, err := dup(f); err == nil {
			ev.Put = append(ev.Put, c.id+"/"+name)
			files = append(files, d)
		}
	}
	return ev, files
}

func (c *container) exitEvent() (event, []*os.File) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return event{Exit: c.exit}, nil
}

// dup duplicates a descriptor without touching the mode of its open file.
func dup(f *os.File) (*os.File, error) {
	rc, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	n, dupErr := -1, error(nil)
	if err := rc.Control(func(fd uintptr) { n, dupErr = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		return nil, err
	}
	if dupErr != nil {
		return nil, dupErr
	}
	return os.NewFile(uintptr(n), f.Name()), nil
}
