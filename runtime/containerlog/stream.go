// Package containerlog moves container output into log files of the CRI's
// format so that the death of this process at any instruction loses, doubles,
// splits or reorders nothing.
package containerlog

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Stream copies one output of a container.
//
//	container -> FIFO --splice--> spool file --read--> buffer --write--> log
//
// The kernel consumes from the FIFO exactly what it appends to the spool, so
// the spool's size always says what was taken. Its entry in the table says
// what became of it:
//
//	          splice          store offset, time        write ends
//	IDLE(0) ---------> IDLE(n) ---------------> WRITING -----------> DONE --truncate--> IDLE(0)
//
//	a new shim finds   does
//	IDLE(0)            nothing
//	IDLE(n)            the whole chunk, as if just read
//	WRITING            compares the log's size with offset, writes what is missing
//	DONE               truncates
//
// A terminal's output cannot be spliced into a file; it passes through a pipe
// that both noded processes hold.
type Stream struct {
	name  string // "stdout" or "stderr"
	src   *os.File
	via   *pipe
	spool int
	entry *entry
	log   *Log // nil: discard
	pool  *Pool
	warn  func(error)

	busy  atomic.Bool // output was taken that is not yet logged
	mu    sync.Mutex
	taps  []*Tap
	idle  chan struct{} // closed when a chunk is finished, if someone waits
	ended chan struct{} // closed when Run returns
}

type pipe struct{ r, w int }

// Config describes a Stream.
type Config struct {
	Name  string   // "stdout" or "stderr"
	Src   *os.File // read end of a FIFO, or a pty master; non-blocking
	Spool string   // path of the spool file, on a tmpfs
	Table *Table
	Entry int
	Log   *Log // nil discards the output
	Pool  *Pool
	// Terminal: Src is a pty master, ViaR and ViaW a pipe. They stay the caller's.
	Terminal   bool
	ViaR, ViaW *os.File
	Warn       func(error) // told of output that could not be logged
}

// Open completes the record that an earlier process was writing and returns
// the stream, which takes over Src. Run must be called; not before all streams
// of the same log are open, since that record must be completed before another
// is appended.
func Open(c Config) (*Stream, error) {
	spool, err := unix.Open(c.Spool, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open spool: %w", err)
	}
	s := &Stream{
		name: c.Name, src: c.Src, spool: spool, entry: c.Table.at(c.Entry), log: c.Log, pool: c.Pool, warn: c.Warn,
		ended: make(chan struct{}),
	}
	s.busy.Store(true) // until Run has found nothing to do
	if c.Terminal {
		s.via = &pipe{int(c.ViaR.Fd()), int(c.ViaW.Fd())}
	}
	if err := s.recover(); err != nil {
		unix.Close(spool)
		return nil, err
	}
	return s, nil
}

func (s *Stream) recover() error {
	n, err := s.spooled()
	if err != nil {
		return err
	}
	switch s.entry.phase.Load() {
	case phaseIdle:
		return nil // Run begins with what is there
	case phaseWriting:
		b := s.pool.get()
		defer s.pool.put(b)
		data, err := s.load(b, n)
		if err != nil {
			return err
		}
		if s.log != nil {
			if err := s.log.resume(s.entry, &b.render, s.name, data); err != nil {
				s.warn(err)
			}
		}
	}
	return s.clear()
}

func (s *Stream) spooled() (int, error) {
	var st unix.Stat_t
	if err := unix.Fstat(s.spool, &st); err != nil {
		return 0, fmt.Errorf("stat spool: %w", err)
	}
	return int(st.Size), nil
}

// takeOver logs what an earlier process had taken and not begun to write.
func (s *Stream) takeOver() error {
	n, err := s.spooled()
	if err != nil || n == 0 {
		return err
	}
	b := s.pool.get()
	defer s.pool.put(b)
	return s.chunk(b, n)
}

// Run copies until the end of the output or Close. Errors of the log are told
// to Warn and do not end it.
func (s *Stream) Run() error {
	defer close(s.ended)
	rc, err := s.src.SyscallConn()
	if err != nil {
		return fmt.Errorf("poll %s: %w", s.name, err)
	}
	if err := s.takeOver(); err != nil {
		return err
	}
	for {
		n, err := s.take(rc)
		if err == errPaused {
			<-s.pool.resumed()
			continue
		}
		if err != errNoSpool && (err != nil || n == 0) {
			s.settle()
			return err
		}
		b := s.pool.get()
		if err == errNoSpool {
			err = s.unsafe(b, rc)
		} else {
			err = s.chunk(b, n)
		}
		s.pool.put(b)
		s.pool.leave()
		if err != nil {
			return err
		}
	}
}

var (
	errPaused  = errors.New("paused")
	errNoSpool = errors.New("no room in the spool")
)

type rawConn interface {
	Read(func(fd uintptr) bool) error
	Control(func(fd uintptr)) error
}

// take waits for output without holding a buffer and moves it to the spool.
// It returns with the pool entered if n > 0 or the error is errNoSpool.
func (s *Stream) take(rc rawConn) (n int, err error) {
	waitErr := rc.Read(func(fd uintptr) bool {
		if !s.pool.enter() {
			err = errPaused
			return true
		}
		s.busy.Store(true)
		n, err = s.pull(int(fd))
		if err == nil && n > 0 {
			return true
		}
		if err == unix.ENOSPC || err == unix.EDQUOT || err == unix.EIO && s.via == nil {
			err = errNoSpool
			return true
		}
		s.pool.leave()
		if err == unix.EAGAIN {
			s.settle()
			return false
		}
		return true
	})
	switch {
	case err == errPaused || err == errNoSpool:
		return 0, err
	case waitErr != nil:
		return 0, nil // closed
	case err == unix.EIO && s.via != nil:
		return 0, nil // all have closed the terminal
	case err != nil:
		return 0, fmt.Errorf("read %s: %w", s.name, err)
	}
	return n, nil
}

// pull moves up to one chunk into the empty spool.
func (s *Stream) pull(fd int) (int, error) {
	if s.via == nil {
		return splice(fd, s.spool, true)
	}
	// What is in the pipe already is first: an earlier shim may have left it.
	n, err := splice(s.via.r, s.spool, true)
	if err != unix.EAGAIN {
		return n, err
	}
	if n, err = splice(fd, s.via.w, false); err != nil || n == 0 {
		return n, err
	}
	return splice(s.via.r, s.spool, true)
}

func splice(from, to int, file bool) (int, error) {
	for {
		var off *int64
		if file {
			off = new(int64)
		}
		n, err := unix.Splice(from, nil, to, off, chunk, unix.SPLICE_F_NONBLOCK|unix.SPLICE_F_MOVE)
		if err != unix.EINTR {
			return int(n), err
		}
	}
}

// chunk logs the n bytes in the spool and empties it.
func (s *Stream) chunk(b *buffer, n int) error {
	data, err := s.load(b, n)
	if err != nil {
		return err
	}
	if s.log != nil {
		if err := s.log.append(s.entry, &b.render, time.Now().UnixNano(), s.name, data); err != nil {
			s.warn(err)
		}
	} else {
		s.entry.phase.Store(phaseDone)
	}
	s.feed(data)
	return s.clear()
}

// unsafe logs one read without the spool, whose file system is full: a death
// of this process loses it, but the container runs on.
func (s *Stream) unsafe(b *buffer, rc rawConn) error {
	n, err := 0, error(nil)
	from := func(fd uintptr) { n, err = unix.Read(int(fd), b.in) }
	if s.via != nil {
		from = func(uintptr) { n, err = unix.Read(s.via.r, b.in) }
	}
	if ctlErr := rc.Control(from); ctlErr != nil || err != nil || n <= 0 {
		return nil // closed, or interrupted; the next take finds out
	}
	data := b.in[:n]
	if s.log != nil {
		if err := s.log.append(s.entry, &b.render, time.Now().UnixNano(), s.name, data); err != nil {
			s.warn(err)
		}
	}
	s.feed(data)
	return s.clear()
}

func (s *Stream) load(b *buffer, n int) ([]byte, error) {
	data := b.in
	if n > len(data) {
		data = make([]byte, n) // left by a version with larger chunks
	}
	data = data[:n]
	for got := 0; got < n; {
		k, err := unix.Pread(s.spool, data[got:], int64(got))
		if err == unix.EINTR {
			continue
		}
		if err != nil || k == 0 {
			return nil, fmt.Errorf("read spool at %d of %d: %w", got, n, err)
		}
		got += k
	}
	return data, nil
}

func (s *Stream) clear() error {
	if err := unix.Ftruncate(s.spool, 0); err != nil {
		return fmt.Errorf("empty spool: %w", err)
	}
	s.entry.phase.Store(phaseIdle)
	return nil
}

// settle tells a waiting Drain that all that was taken is logged.
func (s *Stream) settle() {
	s.busy.Store(false)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.idle != nil {
		close(s.idle)
		s.idle = nil
	}
}

// Drain returns when what the stream holds now is logged: at its end, or, if a
// process still has it open, when there is nothing to read for the moment.
func (s *Stream) Drain(ctx context.Context) error {
	for {
		s.mu.Lock()
		if s.idle == nil {
			s.idle = make(chan struct{})
		}
		idle := s.idle
		s.mu.Unlock()
		if s.empty() {
			return nil
		}
		select {
		case <-s.ended:
			return nil
		case <-idle:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s *Stream) empty() bool {
	if s.via != nil {
		return false // a terminal hands its output over in the background; wait for its end
	}
	rc, err := s.src.SyscallConn()
	if err != nil {
		return true
	}
	left := 0
	rc.Control(func(fd uintptr) { left, _ = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
	return left == 0 && !s.busy.Load()
}

// Close ends Run, waits for it and frees the stream's descriptors. What is in
// the FIFO stays there.
func (s *Stream) Close() error {
	err := s.src.Close()
	<-s.ended
	s.mu.Lock()
	taps := s.taps
	s.taps = nil
	s.mu.Unlock()
	for _, t := range taps {
		t.end(nil)
	}
	return errors.Join(err, unix.Close(s.spool))
}
