package layer

import (
	"errors"
	"io"
	"sync"
)

// pipe hands large buffers from one goroutine to another, a few ahead, so that
// download, inflation and unpacking run side by side. The buffers are made
// once and go round.
type pipe struct {
	full chan []byte
	free chan []byte
	quit chan struct{} // closed by the reader when it wants no more
	once sync.Once
	rest []byte
	buf  []byte // what rest is part of
	err  error  // set before full is closed
}

const (
	pipeBuffers = 4
	pipeBytes   = 256 << 10
)

// errUpstream marks an error that came down a pipe, so that no stage takes it
// for its own.
var errUpstream = errors.New("stage before failed")

type upstreamError struct{ err error }

func (e upstreamError) Error() string        { return e.err.Error() }
func (e upstreamError) Unwrap() error        { return e.err }
func (e upstreamError) Is(target error) bool { return target == errUpstream }

func newPipe() *pipe {
	p := &pipe{full: make(chan []byte, pipeBuffers), free: make(chan []byte, pipeBuffers), quit: make(chan struct{})}
	for range pipeBuffers {
		p.free <- make([]byte, pipeBytes)
	}
	return p
}

// pump fills the pipe from r until its end, showing each buffer to see. It
// returns when r has ended or the reader is gone; the reader gets r's error.
func (p *pipe) pump(r io.Reader, see func([]byte) error) (err error) {
	defer func() {
		p.err = io.EOF
		if err != nil {
			p.err = upstreamError{err}
		}
		close(p.full)
	}()
	for {
		var buf []byte
		select {
		case buf = <-p.free:
		case <-p.quit:
			return nil
		}
		n, err := fillBuffer(r, buf)
		if n > 0 {
			if err := see(buf[:n]); err != nil {
				return err
			}
			p.full <- buf[:n] // never blocks: there is a place for every buffer
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func fillBuffer(r io.Reader, buf []byte) (n int, err error) {
	for n < len(buf) && err == nil {
		var m int
		m, err = r.Read(buf[n:])
		n += m
	}
	return n, err
}

// Read is the reader's end.
func (p *pipe) Read(b []byte) (int, error) {
	if len(p.rest) == 0 {
		if p.buf != nil {
			p.free <- p.buf[:cap(p.buf)]
			p.buf = nil
		}
		buf, ok := <-p.full
		if !ok {
			return 0, p.err
		}
		p.rest, p.buf = buf, buf
	}
	n := copy(b, p.rest)
	p.rest = p.rest[n:]
	return n, nil
}

// stop tells the pump that nobody reads any more.
func (p *pipe) stop() { p.once.Do(func() { close(p.quit) }) }
