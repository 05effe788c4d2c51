package sandbox

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"noded.dev/noded/internal/kind"
	"noded.dev/noded/internal/steps"
)

// flights runs operations so that a request and its retries are one: a caller
// whose key is under way joins it. The work belongs to noded, not to the
// caller: it goes on when the caller's deadline passes, within a limit of its
// own, and the retry finds it. There is no name to be reserved.
type flights struct {
	panicked func(stack string) // told of a panic in any of them

	mu      sync.Mutex
	closed  bool
	running map[string]*flight
	wg      sync.WaitGroup
}

type flight struct {
	done   chan struct{}
	cancel context.CancelFunc
	result string
	err    error

	mu   sync.Mutex
	step string // for "stuck in" messages
}

func (f *flight) at(step string) {
	f.mu.Lock()
	f.step = step
	f.mu.Unlock()
}

func (f *flight) where() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.step
}

// do runs work under key, or joins the run under way, and waits for its end or
// for ctx. limit bounds the work itself.
func (fs *flights) do(ctx context.Context, key string, limit time.Duration, work func(ctx context.Context, at func(step string)) (string, error)) (string, error) {
	f, err := fs.join(ctx, key, limit, work)
	if err != nil {
		return "", err
	}
	select {
	case <-f.done:
		return f.result, f.err
	case <-ctx.Done():
		return "", fmt.Errorf("still in step %q, a retry will join it: %w", f.where(), ctx.Err())
	}
}

func (fs *flights) join(ctx context.Context, key string, limit time.Duration, work func(context.Context, func(string)) (string, error)) (*flight, error) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if fs.closed {
		return nil, kind.Errorf(kind.Unavailable, "noded is stopping")
	}
	if f := fs.running[key]; f != nil {
		return f, nil
	}
	own, cancel := ownContext(ctx, limit)
	f := &flight{done: make(chan struct{}), cancel: cancel}
	if fs.running == nil {
		fs.running = make(map[string]*flight)
	}
	fs.running[key] = f
	fs.wg.Go(func() {
		defer cancel()
		f.err = steps.Guard(fs.panicked, func() (err error) {
			f.result, err = work(own, f.at)
			return err
		})
		fs.mu.Lock()
		delete(fs.running, key)
		fs.mu.Unlock()
		close(f.done)
	})
	return f, nil
}

// ownContext has ctx's values and its own end: after limit, or with 0 only
// when it is cancelled.
func ownContext(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	if limit > 0 {
		return steps.CleanUp(ctx, limit)
	}
	return context.WithCancel(context.WithoutCancel(ctx))
}

// bounded is do for work that its caller bounds: when ctx ends, the work is
// cancelled, and its end, with what it undoes, is waited for.
func (fs *flights) bounded(ctx context.Context, key string, limit time.Duration, work func(ctx context.Context, at func(step string)) error) error {
	if d, ok := ctx.Deadline(); ok {
		limit = min(limit, max(time.Until(d), 1)) // 0 is none
	}
	f, err := fs.join(ctx, key, limit, func(ctx context.Context, at func(string)) (string, error) {
		err := work(ctx, at)
		if err != nil && ctx.Err() != nil {
			err = kind.Wrap(kind.Of(ctx.Err()), err)
		}
		return "", err
	})
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, f.cancel)
	defer stop()
	<-f.done
	if f.err != nil && ctx.Err() != nil {
		return kind.Wrap(kind.Of(ctx.Err()), f.err)
	}
	return f.err
}

// begin runs work of noded's own, which nobody waits for, until it is done or
// noded stops. Once noded is stopping it does nothing: the next start will.
func (fs *flights) begin(key string, work func(context.Context)) {
	_, _ = fs.join(context.Background(), key, 0, func(ctx context.Context, _ func(string)) (string, error) {
		work(ctx)
		return "", nil
	})
}

// await waits for what is under way, at most as long as limit.
func (fs *flights) await(ctx context.Context, limit time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	fs.mu.Lock()
	all := slices.Collect(maps.Values(fs.running))
	fs.mu.Unlock()
	for _, f := range all {
		select {
		case <-f.done:
		case <-ctx.Done():
			return
		}
	}
}

// close cancels what is under way and waits for it: what is half-made is
// undone or finished at the next start.
func (fs *flights) close() {
	fs.mu.Lock()
	fs.closed = true
	for _, f := range fs.running {
		f.cancel()
	}
	fs.mu.Unlock()
	fs.wg.Wait()
}
