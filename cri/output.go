package cri

import (
	"sync"
	"sync/atomic"

	"noded.dev/noded/internal/kind"
)

const (
	// maxOutput is what one ExecSync returns of stdout and stderr together, in
	// bytes: the reply has to fit into maxMessage with room for the rest.
	maxOutput = maxMessage - 64<<10

	// maxExecs is how many ExecSync calls may run at once.
	maxExecs = 1024

	// Every command may keep ownOutput bytes. What is kept beyond comes out of
	// sharedOutput for all commands under way: enough for one full reply, so
	// that many floods at once cost no more memory than one.
	ownOutput    = 64 << 10
	sharedOutput = maxOutput
)

// execLimits bounds the memory of all ExecSync calls together.
type execLimits struct {
	running atomic.Int64
	shared  atomic.Int64 // bytes taken of sharedOutput
}

func newExecLimits() *execLimits { return &execLimits{} }

// begin admits one more command; release its output when it is replied to.
func (l *execLimits) begin() (*output, error) {
	if l.running.Add(1) > maxExecs {
		l.running.Add(-1)
		return nil, kind.Errorf(kind.Exhausted, "%d commands run already, the most at one time", maxExecs)
	}
	o := &output{limits: l}
	o.stdout.output, o.stderr.output = o, o
	return o, nil
}

// output keeps the beginning of what a command writes.
type output struct {
	limits         *execLimits
	stdout, stderr capture

	mu       sync.Mutex
	size     int   // bytes kept
	shared   int64 // bytes taken of limits.shared
	released bool  // what is written now comes too late
}

// reserve says how many of n more bytes may be kept.
func (o *output) reserve(n int) int {
	if o.released {
		return 0
	}
	n = min(n, maxOutput-o.size)
	if own := ownOutput - o.size; n > own {
		want := int64(n - max(own, 0))
		total := o.limits.shared.Add(want)
		if over := min(total-sharedOutput, want); over > 0 {
			o.limits.shared.Add(-over)
			want -= over
			n -= int(over)
		}
		o.shared += want
	}
	o.size += n
	return n
}

// release gives the shared bytes and the place back.
func (o *output) release() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.limits.shared.Add(-o.shared)
	o.shared, o.released = 0, true
	o.limits.running.Add(-1)
}

// capture is one of the two streams. It takes everything that is written, so
// that the command never blocks or fails, and keeps what may be kept.
type capture struct {
	output *output
	data   []byte
}

// Write implements io.Writer; it never fails.
func (c *capture) Write(p []byte) (int, error) {
	c.output.mu.Lock()
	defer c.output.mu.Unlock()
	keep := c.output.reserve(len(p))
	c.data = append(c.data, p[:keep]...)
	return len(p), nil
}

func (c *capture) bytes() []byte {
	c.output.mu.Lock()
	defer c.output.mu.Unlock()
	return c.data
}
