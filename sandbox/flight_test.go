package sandbox

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"noded.dev/noded/internal/kind"
)

func TestFlightIsJoined(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var fs flights
		runs := 0
		release := make(chan struct{})
		var wg sync.WaitGroup
		for range 64 {
			wg.Go(func() {
				id, err := fs.do(t.Context(), "k", time.Minute, func(context.Context, func(string)) (string, error) {
					runs++
					<-release
					return "id", nil
				})
				if id != "id" || err != nil {
					t.Errorf("got %q, %v", id, err)
				}
			})
		}
		synctest.Wait() // all 64 have joined
		close(release)
		wg.Wait()
		if runs != 1 {
			t.Errorf("the work ran %d times", runs)
		}
	})
}

// A caller whose deadline passes gets told where the work is; the work goes on
// and the retry gets its result.
func TestFlightOutlivesItsCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var fs flights
		release := make(chan struct{})
		work := func(ctx context.Context, at func(string)) (string, error) {
			at("connect network")
			<-release
			return "id", ctx.Err()
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := fs.do(ctx, "k", time.Minute, work)
		if want := `still in step "connect network", a retry will join it: context deadline exceeded`; err == nil || err.Error() != want || !kind.Is(err, kind.Deadline) {
			t.Errorf("got %v, want %q", err, want)
		}
		go func() {
			time.Sleep(time.Second) // the bubble's: when the retry waits
			close(release)
		}()
		if id, err := fs.do(t.Context(), "k", time.Minute, work); id != "id" || err != nil {
			t.Errorf("retry got %q, %v", id, err)
		}
	})
}

func TestFlightLimit(t *testing.T) {
	var fs flights
	_, err := fs.do(t.Context(), "k", time.Millisecond, func(ctx context.Context, _ func(string)) (string, error) {
		<-ctx.Done()
		return "", ctx.Err()
	})
	if !kind.Is(err, kind.Deadline) {
		t.Errorf("got %v", err)
	}
}

func TestFlightsClose(t *testing.T) {
	var fs flights
	ended := make(chan struct{})
	begun := make(chan struct{})
	fs.begin("k", func(ctx context.Context) {
		close(begun)
		<-ctx.Done()
		close(ended)
	})
	<-begun
	fs.close()
	select {
	case <-ended:
	default:
		t.Error("close returned before the work did")
	}
	if _, err := fs.do(t.Context(), "k", time.Minute, nil); !kind.Is(err, kind.Unavailable) {
		t.Errorf("after close: %v", err)
	}
}

// A panic is an error of the request that brought it about, once for all who
// joined it.
func TestFlightPanics(t *testing.T) {
	var stack string
	fs := flights{panicked: func(s string) { stack = s }}
	_, err := fs.do(t.Context(), "k", time.Minute, func(context.Context, func(string)) (string, error) { panic("boom") })
	if !kind.Is(err, kind.Internal) || err.Error() != "panic: boom" || stack == "" {
		t.Errorf("got %v with a stack of %d bytes", err, len(stack))
	}
	fs.close()
}
