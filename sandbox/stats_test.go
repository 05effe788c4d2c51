package sandbox

import (
	"context"
	"fmt"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"noded.dev/noded/imagestore"
	"noded.dev/noded/internal/cgroup"
	"noded.dev/noded/internal/kind"
)

// The rate is that between the last two reads, if they lie neither too close
// nor too far apart.
func TestRate(t *testing.T) {
	var s sampler
	begin := time.Unix(1000, 0)
	read := func(after time.Duration, usage uint64) rate {
		return s.sample(cgroup.Stats{Time: begin.Add(after), Has: cgroup.Has{CPU: true}, CPU: cgroup.CPUStats{Usage: usage}})
	}
	for _, c := range []struct {
		after time.Duration
		usage uint64
		want  rate
	}{
		{0, 5e9, rate{}}, // the first
		{10 * time.Second, 10e9, rate{5e8, true}},         // half a core
		{10*time.Second + 1e6, 11e9, rate{5e8, true}},     // too close: as before
		{20 * time.Second, 10e9 + 25e8, rate{25e7, true}}, // since the one before that
		{30 * time.Second, 10e9 + 25e8, rate{0, true}},    // idle is known, too
		{30*time.Second + 1e6, 10e9 + 25e8, rate{0, true}},
		{time.Hour, 20e9, rate{}}, // tells nothing of now
		{time.Hour + time.Second, 21e9, rate{1e9, true}},
		{time.Hour + 2*time.Second, 1, rate{}}, // another cgroup of the same name
	} {
		if got := read(c.after, c.usage); got != c.want {
			t.Errorf("after %v: %+v, want %+v", c.after, got, c.want)
		}
	}
}

// Pressure is in nanoseconds in the CRI and in microseconds in the kernel, and
// what is not known is not zero.
func TestCRIStats(t *testing.T) {
	s := cgroup.Stats{PSI: cgroup.PSIStats{CPU: &cgroup.Pressure{Some: cgroup.Stall{Total: 7, Avg10: 1.5}, Full: cgroup.Stall{Total: 3}}}}
	if criCPU(s, rate{1, true}) != nil || criMemory(s) != nil || criSwap(s) != nil || criIO(s) != nil || criProcess(s) != nil {
		t.Error("figures without a controller")
	}
	s.Has = cgroup.Has{CPU: true, Memory: true, Swap: true, Pids: true}
	s.Memory.Limit, s.Swap.Limit = cgroup.Unlimited, cgroup.Unlimited
	c := criCPU(s, rate{})
	if c.UsageNanoCores != nil || c.Psi.Some.Total != 7000 || c.Psi.Some.Avg10 != 1.5 || c.Psi.Full.Total != 3000 {
		t.Errorf("cpu: %v", c)
	}
	if m, sw := criMemory(s), criSwap(s); m.AvailableBytes != nil || sw.SwapAvailableBytes != nil {
		t.Errorf("something is available below no limit: %v, %v", m, sw)
	}
	s.Memory.Limit, s.Memory.Available = 100, 40
	if m := criMemory(s); m.AvailableBytes.GetValue() != 40 {
		t.Errorf("memory: %v", m)
	}
}

// layerNode has a container whose layer is measured by usage.
func layerNode(t *testing.T, usage func(ctx context.Context, id string) (imagestore.Usage, error)) *Container {
	n := newNode(t)
	n.images.usage = usage
	pod := n.mustRun(t, "p")
	return n.containers[n.mustCreate(t, pod, "c")]
}

// A layer that is measured quickly is measured for everybody who asks; one that
// takes long only now and then.
func TestLayerIsMeasuredAsOftenAsItCosts(t *testing.T) {
	var walks atomic.Uint64
	c := layerNode(t, func(context.Context, string) (imagestore.Usage, error) {
		return imagestore.Usage{Bytes: walks.Add(1)}, nil
	})
	for i := uint64(1); i <= 3; i++ {
		c.layerUsage.took = 0 // as if it were nothing
		u, err := c.layer(t.Context())
		if err != nil || u.Bytes != i || !u.live {
			t.Fatalf("measurement %d: %+v, %v", i, u, err)
		}
	}
	c.layerUsage.took = time.Minute
	for range 3 {
		if u, err := c.layer(t.Context()); err != nil || u.Bytes != 3 || u.live || u.at.IsZero() {
			t.Errorf("measured again before twenty minutes: %+v, %v", u, err)
		}
	}
	c.layerUsage.at = time.Now().Add(-layerShare*time.Minute - time.Second)
	if u, err := c.layer(t.Context()); err != nil || u.Bytes != 4 || !u.live {
		t.Errorf("after twenty minutes: %+v, %v", u, err)
	}
}

// A measurement that does not end holds nobody up, is under way once, and ends
// with noded.
func TestLayerThatTakesLong(t *testing.T) {
	var walks atomic.Uint64
	held := make(chan struct{})
	c := layerNode(t, func(ctx context.Context, _ string) (imagestore.Usage, error) {
		walks.Add(1)
		select {
		case <-held:
			return imagestore.Usage{Bytes: 7}, nil
		case <-ctx.Done():
			return imagestore.Usage{}, ctx.Err()
		}
	})
	begin := time.Now()
	for range 2 {
		u, err := c.layer(t.Context())
		if err != nil || !u.at.IsZero() {
			t.Errorf("while it is measured: %+v, %v", u, err)
		}
	}
	if took := time.Since(begin); took > 5*time.Second || walks.Load() != 1 {
		t.Errorf("%d measurements, and those who asked waited %v", walks.Load(), took)
	}
	running := c.layerUsage.running
	close(held)
	<-running
	if u, err := c.layer(t.Context()); err != nil || u.Bytes != 7 {
		t.Errorf("when it is measured: %+v, %v", u, err)
	}
}

// A layer that cannot be measured is an error, and tried again.
func TestLayerThatFails(t *testing.T) {
	fail := fmt.Errorf("disk: %w", os.ErrPermission)
	c := layerNode(t, func(context.Context, string) (imagestore.Usage, error) { return imagestore.Usage{Bytes: 1}, fail })
	if _, err := c.layer(t.Context()); err == nil {
		t.Error("no error")
	}
	fail = nil
	if u, err := c.layer(t.Context()); err != nil || u.Bytes != 1 {
		t.Errorf("tried again: %+v, %v", u, err)
	}
}

// A list is measured side by side, keeps its order, leaves out what fails and
// ends with its caller.
func TestMeasureAll(t *testing.T) {
	n := newNode(t)
	list := []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}
	got, err := measureAll(t.Context(), n.Manager, list, func(i int) (int, error) {
		if i%3 == 0 {
			return 0, kind.Errorf(kind.NotFound, "gone")
		}
		return i * i, nil
	})
	if err != nil || fmt.Sprint(got) != "[1 4 16 25 49 64]" {
		t.Errorf("%v, %v", got, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	if got, err := measureAll(ctx, n.Manager, list, func(i int) (int, error) { cancel(); return i, nil }); err == nil {
		t.Errorf("after the end of its caller: %v", got)
	}
}
