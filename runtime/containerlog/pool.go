package containerlog

import (
	"sync"
	"sync/atomic"
)

const (
	// chunk is the most output that one read takes, the capacity of a FIFO.
	chunk = 64 << 10

	maxBuffers  = 64 // streams that can be written at one time, so that one stuck disk does not stop the others
	keptBuffers = 4  // kept when idle
)

// Pool lends buffers to streams while they have output: memory does not grow
// with the number of containers. It can also hold all streams between two
// chunks, for the shim to re-execute itself.
type Pool struct {
	slots chan struct{}
	mu    sync.Mutex
	free  []*buffer

	running atomic.Int64
	paused  atomic.Bool
	resume  chan struct{} // closed by Resume
}

type buffer struct {
	in     []byte
	render renderer
}

// NewPool returns an empty pool.
func NewPool() *Pool {
	return &Pool{slots: make(chan struct{}, maxBuffers), resume: make(chan struct{})}
}

func (p *Pool) get() *buffer {
	p.slots <- struct{}{}
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := len(p.free); n > 0 {
		b := p.free[n-1]
		p.free = p.free[:n-1]
		return b
	}
	return &buffer{in: make([]byte, chunk), render: renderer{out: make([]byte, 0, flushAt+maxRecord+64)}}
}

func (p *Pool) put(b *buffer) {
	p.mu.Lock()
	if len(p.free) < keptBuffers {
		p.free = append(p.free, b)
	}
	p.mu.Unlock()
	<-p.slots
}

// enter begins a chunk; false while the pool is paused.
func (p *Pool) enter() bool {
	p.running.Add(1)
	if p.paused.Load() {
		p.running.Add(-1)
		return false
	}
	return true
}

func (p *Pool) leave() { p.running.Add(-1) }

// Pause stops streams from beginning another chunk. Idle says whether all have
// finished theirs.
func (p *Pool) Pause() { p.paused.Store(true) }

// Idle reports whether no chunk is under way.
func (p *Pool) Idle() bool { return p.running.Load() == 0 }

// Resume undoes a Pause.
func (p *Pool) Resume() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.paused.Store(false)
	close(p.resume)
	p.resume = make(chan struct{})
}

func (p *Pool) resumed() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.paused.Load() {
		c := make(chan struct{})
		close(c)
		return c
	}
	return p.resume
}
