package runtime

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"noded.dev/noded/internal/kind"
	"noded.dev/noded/runtime/wire"
)

const (
	// maxTries is how often a call is sent while shims die under it. All calls
	// that are retried are repeatable.
	maxTries = 4
	// linkLimit bounds a call's wait for a new shim.
	linkLimit = 10 * time.Second
)

// call sends a request on a connection of its own and returns the reply. It
// returns when ctx ends, though the shim may still be at work then.
func (r *Runtime) call(ctx context.Context, req request, files ...*os.File) (reply, error) {
	var err error
	for range maxTries {
		_, changed := r.linkState()
		var rep reply
		rep, err = r.try(ctx, req, files)
		switch {
		case ctx.Err() != nil:
			return rep, fmt.Errorf("%s: %w", req.Op, ctx.Err())
		case err != nil:
			err = kind.Errorf(kind.Unavailable, "%s: shim: %w", req.Op, err)
		case rep.Error == nil || !rep.Error.Retry:
			return rep, fromWire(rep.Error)
		default:
			err = fromWire(rep.Error)
		}
		// The supervisor notices the same end of the shim, and starts another.
		wait, cancel := context.WithTimeout(ctx, linkLimit)
		select {
		case <-changed:
			r.awaitUp(wait) // the next try tells
		case <-wait.Done():
		}
		cancel()
	}
	return reply{}, err
}

func (r *Runtime) try(ctx context.Context, req request, files []*os.File) (reply, error) {
	c, err := r.send(ctx, req, files)
	if err != nil {
		return reply{}, err
	}
	defer c.Close()
	rep, got, err := receive(ctx, c)
	wire.CloseAll(got)
	return rep, err
}

// send opens a connection with a request.
func (r *Runtime) send(ctx context.Context, req request, files []*os.File) (*net.UnixConn, error) {
	req.V = protocolVersion
	if d, ok := ctx.Deadline(); ok {
		req.TimeoutMS = max(1, time.Until(d).Milliseconds())
	}
	c, err := r.dial(ctx)
	if err != nil {
		return nil, err
	}
	if err := wire.Write(c, req, files...); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// receive reads a reply, until ctx ends.
func receive(ctx context.Context, c *net.UnixConn) (reply, []*os.File, error) {
	stop := context.AfterFunc(ctx, func() { c.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	var rep reply
	files, err := wire.Read(c, &rep)
	if err != nil && ctx.Err() != nil {
		err = ctx.Err()
	}
	return rep, files, err
}

func (r *Runtime) linkState() (up bool, changed <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.link.up, r.link.changed
}

func (r *Runtime) setLink(up bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.link.up != up {
		r.link.up = up
		close(r.link.changed)
		r.link.changed = make(chan struct{})
	}
}

func (r *Runtime) awaitUp(ctx context.Context) error {
	for {
		up, changed := r.linkState()
		if up {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return kind.Errorf(kind.Unavailable, "wait for the shim: %w", ctx.Err())
		}
	}
}

// Exits delivers every container's exit at least once, also those of before
// this process started, until Delete. It has one reader and is closed by Close.
func (r *Runtime) Exits() <-chan Exit { return r.exits }

func (r *Runtime) addExit(e Exit) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.exitSeen[e.ID] {
		return
	}
	r.exitSeen[e.ID] = true
	r.exitQueue = append(r.exitQueue, e)
	select {
	case r.exitMore <- struct{}{}:
	default:
	}
}

func (r *Runtime) feedExits(ctx context.Context) {
	defer close(r.exits)
	for {
		r.mu.Lock()
		queue := r.exitQueue
		r.exitQueue = nil
		r.mu.Unlock()
		for _, e := range queue {
			select {
			case r.exits <- e:
			case <-ctx.Done():
				return
			}
		}
		select {
		case <-r.exitMore:
		case <-ctx.Done():
			return
		}
	}
}

var errShimGone = errors.New("the shim has ended")
