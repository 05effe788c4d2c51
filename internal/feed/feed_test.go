package feed

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"noded.dev/noded/internal/kind"
)

func publish(f *Feed[string], values ...string) {
	for _, v := range values {
		f.Publish(func() string { return v })
	}
}

func read(t *testing.T, r *Reader[string], n int) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	var got []string
	for range n {
		v, err := r.Next(ctx, nil)
		if err != nil {
			t.Fatalf("after %q: %v", got, err)
		}
		got = append(got, v)
	}
	return got
}

func next(r *Reader[string]) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_, err := r.Next(ctx, nil)
	return err
}

func TestOrder(t *testing.T) {
	f := New(Limits{10, 1000}, func(s string) int { return len(s) })
	publish(f, "before")
	a, b := f.Subscribe(), f.Subscribe()
	defer a.Close()
	defer b.Close()
	publish(f, "1", "2", "3")
	want := []string{"1", "2", "3"}
	if got := read(t, a, 3); !slices.Equal(got, want) {
		t.Errorf("first reader: %q", got)
	}
	publish(f, "4")
	if got := read(t, b, 4); !slices.Equal(got, append(want, "4")) {
		t.Errorf("second reader: %q", got)
	}
}

// What several publish at once reaches every reader in one order, that of
// their making.
func TestOneOrder(t *testing.T) {
	f := New(Limits{10000, 1 << 20}, func(int) int { return 1 })
	readers := []*Reader[int]{f.Subscribe(), f.Subscribe()}
	made := 0
	var wait sync.WaitGroup
	for range 8 {
		wait.Go(func() {
			for range 100 {
				f.Publish(func() int { made++; return made })
			}
		})
	}
	for i, r := range readers {
		for want := 1; want <= 800; want++ {
			if got, err := r.Next(context.Background(), nil); got != want || err != nil {
				t.Fatalf("reader %d: got %d, %v; want %d", i, got, err, want)
			}
		}
	}
	wait.Wait()
}

func TestSlowReaderIsDropped(t *testing.T) {
	for name, c := range map[string]struct {
		limits Limits
		names  string // what the error names
	}{
		"values": {Limits{3, 1000}, "at most 3"},
		"bytes":  {Limits{1000, 6}, "and 6 bytes"},
	} {
		f := New(c.limits, func(s string) int { return len(s) })
		slow, fast := f.Subscribe(), f.Subscribe()
		for _, v := range []string{"aa", "bb", "cc"} {
			publish(f, v)
			read(t, fast, 1)
		}
		select {
		case <-slow.Done():
			t.Fatalf("%s: dropped within its limits", name)
		default:
		}
		publish(f, "dd")
		<-slow.Done()
		if slow.queue != nil {
			t.Errorf("%s: a dropped reader holds %d values", name, len(slow.queue))
		}
		if err := next(slow); !kind.Is(err, kind.Exhausted) || !strings.Contains(err.Error(), c.names) {
			t.Errorf("%s: %v, want kind Exhausted that names the limit", name, err)
		}
		if got := read(t, fast, 1); got[0] != "dd" {
			t.Errorf("%s: the other reader got %q", name, got)
		}
		slow.Close()
	}
}

// A value larger than all that may wait is still delivered.
func TestOneValueFits(t *testing.T) {
	f := New(Limits{3, 1}, func(s string) int { return len(s) })
	r := f.Subscribe()
	defer r.Close()
	publish(f, "large")
	read(t, r, 1)
	publish(f, "large")
	read(t, r, 1)
}

func TestEnds(t *testing.T) {
	f := New(Limits{3, 100}, func(s string) int { return len(s) })
	r := f.Subscribe()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := r.Next(ctx, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("with its context: %v", err)
	}
	stop := make(chan struct{})
	close(stop)
	if _, err := r.Next(context.Background(), stop); !kind.Is(err, kind.Unavailable) {
		t.Errorf("when stopped: %v", err)
	}
	r.Close()
	r.Close()
	publish(f, "late")
	if err := next(r); !kind.Is(err, kind.Unavailable) {
		t.Errorf("when closed: %v", err)
	}
	last := f.Subscribe()
	f.Close()
	for _, r := range []*Reader[string]{last, f.Subscribe()} {
		if err := next(r); !kind.Is(err, kind.Unavailable) {
			t.Errorf("when the feed is closed: %v", err)
		}
	}
}
