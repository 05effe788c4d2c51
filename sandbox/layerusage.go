package sandbox

import (
	"context"
	"sync"
	"time"

	"noded.dev/noded/imagestore"
)

// layerUsage is what a container's writable layer takes up. Measuring it means
// to look at every file in it, which can take a millisecond or a minute.
type layerUsage struct {
	mu      sync.Mutex
	usage   imagestore.Usage
	at      time.Time     // of usage; zero if it was never measured
	took    time.Duration // by the last measurement
	err     error         // of the last measurement
	running chan struct{} // closed when the measurement under way ends; nil if none is
}

const (
	// layerShare bounds the cost of measuring one layer again and again to that
	// part of the time: a figure is at most twenty times as old as it takes to
	// make, so a small layer's is always new.
	layerShare = 20
	// layerPatience is how long one who asks waits for a measurement. It goes
	// on then, and the one before is the answer.
	layerPatience = 200 * time.Millisecond
	// layersAtOnce bounds how many layers of the node are measured at a time.
	layersAtOnce = 2
)

// measuredUsage is a usage with the time it was measured at; zero if none is
// known (yet).
type measuredUsage struct {
	imagestore.Usage
	at   time.Time
	live bool // measured for this very request
}

// layer returns what the container's writable layer takes up, measured now or
// not long ago (see layerShare). The first measurement of a large layer can be
// still under way: then nothing is known.
func (c *Container) layer(ctx context.Context) (measuredUsage, error) {
	u := &c.layerUsage
	asked := time.Now()
	if running := c.measureLayer(asked); running != nil {
		timer := time.NewTimer(layerPatience)
		defer timer.Stop()
		select {
		case <-running:
		case <-timer.C:
		case <-ctx.Done():
			return measuredUsage{}, ctx.Err()
		}
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.running == nil && u.err != nil {
		return measuredUsage{}, u.err
	}
	return measuredUsage{Usage: u.usage, at: u.at, live: !u.at.Before(asked)}, nil
}

// measureLayer begins a measurement unless the last is new enough or one is
// under way, and returns its end; nil for the former.
func (c *Container) measureLayer(now time.Time) <-chan struct{} {
	u := &c.layerUsage
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.running != nil {
		return u.running
	}
	if !u.at.IsZero() && u.err == nil && now.Sub(u.at) < layerShare*u.took {
		return nil
	}
	running := make(chan struct{})
	u.running = running
	c.m.flights.begin("measure the layer of "+c.id, func(ctx context.Context) {
		defer close(running)
		u.done(c.m.walkLayer(ctx, c.id))
	})
	return running
}

// walk is one measurement.
type walk struct {
	usage imagestore.Usage
	begin time.Time
	took  time.Duration
	err   error
}

func (m *Manager) walkLayer(ctx context.Context, id string) (w walk) {
	if w.err = acquire(ctx, m.measuring); w.err != nil {
		return w
	}
	defer func() { <-m.measuring }()
	w.begin = time.Now()
	w.usage, w.err = m.images.WritableUsage(ctx, id)
	w.took = time.Since(w.begin)
	return w
}

func (u *layerUsage) done(w walk) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.running, u.err = nil, w.err
	if w.err == nil {
		u.usage, u.at, u.took = w.usage, w.begin, w.took
	}
}
