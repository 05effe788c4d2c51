package containerlog

import (
	"errors"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// ErrSlow ends a Tap whose reader did not keep up.
var ErrSlow = errors.New("client reads too slowly")

// Tap copies a stream's output to an attached client as well. The queue
// between them is a pipe: bounded by the kernel and no memory of ours.
type Tap struct {
	w    *os.File
	fd   int
	once sync.Once
	done chan struct{}
	err  error
}

// NewTap takes over w, the write end of a pipe, and makes it non-blocking.
func NewTap(w *os.File) (*Tap, error) {
	fd := int(w.Fd())
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, err
	}
	// More room for a burst; the default is enough if the kernel refuses.
	unix.FcntlInt(uintptr(fd), unix.F_SETPIPE_SZ, 1<<20)
	return &Tap{w: w, fd: fd, done: make(chan struct{})}, nil
}

// Done is closed when the tap has ended; Err then says why (nil: closed, or
// the client went away).
func (t *Tap) Done() <-chan struct{} { return t.done }

// Err is valid after Done.
func (t *Tap) Err() error { return t.err }

func (t *Tap) end(err error) {
	t.once.Do(func() {
		t.err = err
		t.w.Close()
		close(t.done)
	})
}

// Attach adds a tap to the stream.
func (s *Stream) Attach(t *Tap) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.taps = append(s.taps, t)
}

// Detach removes and ends a tap.
func (s *Stream) Detach(t *Tap) {
	s.mu.Lock()
	for i, x := range s.taps {
		if x == t {
			s.taps = append(s.taps[:i], s.taps[i+1:]...)
			break
		}
	}
	s.mu.Unlock()
	t.end(nil)
}

func (s *Stream) feed(data []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.taps) == 0 {
		return
	}
	kept := s.taps[:0]
	for _, t := range s.taps {
		switch n, err := unix.Write(t.fd, data); {
		case err == unix.EAGAIN || err == nil && n < len(data):
			t.end(ErrSlow)
		case err != nil:
			t.end(nil)
		default:
			kept = append(kept, t)
		}
	}
	clear(s.taps[len(kept):])
	s.taps = kept
}
