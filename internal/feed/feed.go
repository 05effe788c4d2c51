// Package feed hands every value to every reader, in order, and never waits
// for one: a reader that falls too far behind is dropped.
package feed

import (
	"context"
	"sync"

	"noded.dev/noded/internal/kind"
)

// Limits bound what waits for one reader.
type Limits struct {
	Values int
	Bytes  int
}

// Feed is one sequence of values; use New.
type Feed[T any] struct {
	limits Limits
	size   func(T) int

	mu      sync.Mutex
	readers map[*Reader[T]]bool
	closed  bool
}

// New returns a feed whose values take up size bytes each.
func New[T any](limits Limits, size func(T) int) *Feed[T] {
	return &Feed[T]{limits: limits, size: size, readers: make(map[*Reader[T]]bool)}
}

// Publish hands a value to all readers. It is made only if there are any, and
// while no other can be published: the order of making is that of reading.
func (f *Feed[T]) Publish(value func() T) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.readers) == 0 {
		return
	}
	v := value()
	n := f.size(v)
	for r := range f.readers {
		if !r.put(queued[T]{v, n}, f.limits) {
			delete(f.readers, r)
		}
	}
}

// Subscribe returns a reader of what is published from now on. The caller must
// close it.
func (f *Feed[T]) Subscribe() *Reader[T] {
	r := &Reader[T]{feed: f, ready: make(chan struct{}, 1), done: make(chan struct{})}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		r.end(errClosed)
	} else {
		f.readers[r] = true
	}
	return r
}

// Close ends all readers, now and later.
func (f *Feed[T]) Close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	for r := range f.readers {
		r.end(errClosed)
		delete(f.readers, r)
	}
}

var errClosed = kind.Errorf(kind.Unavailable, "noded is stopping")

// Reader is one reader of a feed. Next is for one goroutine, the rest for any.
type Reader[T any] struct {
	feed  *Feed[T]
	ready chan struct{} // holds one token when there may be a value
	done  chan struct{} // closed with err

	mu    sync.Mutex
	queue []queued[T]
	bytes int
	err   error // why there is nothing more
}

type queued[T any] struct {
	value T
	bytes int
}

// put queues a value; false when the reader is dropped instead. What waited
// for it is let go at once, whether or not it ever reads again.
func (r *Reader[T]) put(q queued[T], limits Limits) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	// One value fits, however large.
	if len(r.queue) >= limits.Values || len(r.queue) > 0 && r.bytes+q.bytes > limits.Bytes {
		r.endLocked(kind.Errorf(kind.Exhausted,
			"read too slowly, and was dropped with %d unread values of %d bytes (at most %d, and %d bytes, wait): what happened meanwhile is lost, list again",
			len(r.queue), r.bytes, limits.Values, limits.Bytes))
		return false
	}
	r.queue = append(r.queue, q)
	r.bytes += q.bytes
	select {
	case r.ready <- struct{}{}:
	default:
	}
	return true
}

// Next waits for the next value. It returns an error of kind Exhausted when
// the reader was dropped, Unavailable when the feed is closed or stop is, and
// that of ctx.
func (r *Reader[T]) Next(ctx context.Context, stop <-chan struct{}) (value T, err error) {
	for {
		v, ok, err := r.take()
		if ok || err != nil {
			return v, err
		}
		select {
		case <-r.ready:
		case <-r.done:
		case <-stop:
			return value, errClosed
		case <-ctx.Done():
			return value, ctx.Err()
		}
	}
}

func (r *Reader[T]) take() (value T, ok bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil || len(r.queue) == 0 {
		return value, false, r.err
	}
	q := r.queue[0]
	r.queue[0] = queued[T]{}
	r.queue = r.queue[1:]
	r.bytes -= q.bytes
	return q.value, true, nil
}

// Done is closed when there is nothing more to read; Next says why.
func (r *Reader[T]) Done() <-chan struct{} { return r.done }

// Close ends the reader.
func (r *Reader[T]) Close() {
	r.feed.mu.Lock()
	defer r.feed.mu.Unlock()
	delete(r.feed.readers, r)
	r.end(errClosed)
}

func (r *Reader[T]) end(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.endLocked(err)
}

func (r *Reader[T]) endLocked(err error) {
	if r.err != nil {
		return
	}
	r.err, r.queue, r.bytes = err, nil, 0
	close(r.done)
}
