package imagestore

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"noded.dev/noded/internal/kind"
	"noded.dev/noded/test/testimage"
)

const layerSize = 3 << 20

// TestTransfers pulls a layer over bad lines and from bad servers. Each case's
// behave answers the n-th request (from 1) for the layer, or returns false to
// have it served well.
func TestTransfers(t *testing.T) {
	needRoot(t)
	layer := bigLayer(t, layerSize)
	blob := layer.Blob
	img := image(t, layer)
	part := func(w http.ResponseWriter, r *http.Request, n int) {
		from := 0
		if h := r.Header.Get("Range"); h != "" {
			from, _ = strconv.Atoi(strings.TrimSuffix(strings.TrimPrefix(h, "bytes="), "-"))
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(blob)-1, len(blob)))
			w.WriteHeader(http.StatusPartialContent)
		}
		w.Write(blob[from:min(from+n, len(blob))])
		w.(http.Flusher).Flush()
	}
	flipped := bytes.Clone(blob)
	flipped[len(flipped)/2] ^= 4
	cases := []struct {
		name   string
		behave func(w http.ResponseWriter, r *http.Request, n int) bool
		kind   kind.Kind // of the error; -1: none
		text   string
	}{
		{"cut 10 times", func(w http.ResponseWriter, r *http.Request, n int) bool {
			if n <= 10 {
				part(w, r, 300<<10)
				hangUp()
			}
			return false
		}, -1, ""},
		{"cut before the first byte", func(w http.ResponseWriter, r *http.Request, n int) bool {
			if n <= 2 {
				hangUp()
			}
			return false
		}, -1, ""},
		{"cut always", func(w http.ResponseWriter, r *http.Request, n int) bool { part(w, r, 100); hangUp(); return true }, kind.Unavailable, "unexpected EOF"},
		{"ends early", func(w http.ResponseWriter, r *http.Request, n int) bool {
			if n == 1 {
				w.Write(blob[:1<<20])
				return true
			}
			return false
		}, -1, ""},
		{"ignores range", func(w http.ResponseWriter, r *http.Request, n int) bool {
			if n == 1 {
				part(w, r, 1<<20)
				hangUp()
			}
			r.Header.Del("Range")
			return false
		}, -1, ""},
		{"wrong range", func(w http.ResponseWriter, r *http.Request, n int) bool {
			if n == 1 {
				part(w, r, 1<<20)
				hangUp()
			}
			w.Header().Set("Content-Range", fmt.Sprintf("bytes 5-%d/%d", len(blob)-1, len(blob)))
			w.WriteHeader(http.StatusPartialContent)
			w.Write(blob[5:])
			return true
		}, kind.DataLoss, "another range"},
		{"longer than said", func(w http.ResponseWriter, r *http.Request, n int) bool {
			w.Write(blob)
			w.Write([]byte("more"))
			return true
		}, kind.DataLoss, "more than the"},
		{"length differs", func(w http.ResponseWriter, r *http.Request, n int) bool {
			w.Header().Set("Content-Length", strconv.Itoa(len(blob)+1))
			w.Write(blob)
			return true
		}, kind.DataLoss, "the descriptor says"},
		{"encoded", func(w http.ResponseWriter, r *http.Request, n int) bool {
			w.Header().Set("Content-Encoding", "br")
			w.Write(blob)
			return true
		}, kind.DataLoss, "content encoding"},
		{"busy at first", func(w http.ResponseWriter, r *http.Request, n int) bool {
			if n > 2 {
				return false
			}
			w.WriteHeader([]int{0, http.StatusTooManyRequests, http.StatusServiceUnavailable}[n])
			return true
		}, -1, ""},
		{"gone", func(w http.ResponseWriter, r *http.Request, n int) bool { w.WriteHeader(404); return true }, kind.NotFound, "404"},
		{"forbidden", func(w http.ResponseWriter, r *http.Request, n int) bool { w.WriteHeader(403); return true }, kind.PermissionDenied, "403"},
		{"flipped once", func(w http.ResponseWriter, r *http.Request, n int) bool {
			if n == 1 {
				w.Write(flipped)
			}
			return n == 1
		}, -1, ""},
		{"flipped always", func(w http.ResponseWriter, r *http.Request, n int) bool { w.Write(flipped); return true }, kind.DataLoss, "digest does not match"},
		{"silent", func(w http.ResponseWriter, r *http.Request, n int) bool { <-r.Context().Done(); return true }, kind.Unavailable, ""},
		{"stalls after a half", func(w http.ResponseWriter, r *http.Request, n int) bool {
			part(w, r, len(blob)/2)
			<-r.Context().Done()
			return true
		}, kind.Unavailable, "stalled"},
		{"drips", func(w http.ResponseWriter, r *http.Request, n int) bool {
			w.Header().Set("Content-Length", strconv.Itoa(len(blob)))
			for i := 0; r.Context().Err() == nil && i < len(blob); i++ {
				w.Write(blob[i : i+1])
				w.(http.Flusher).Flush()
				select {
				case <-r.Context().Done():
				case <-time.After(20 * time.Millisecond):
				}
			}
			return true
		}, kind.Unavailable, "stalled"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f := newFake(t)
			f.add("v1", img)
			var n atomic.Int32
			f.before = func(w http.ResponseWriter, r *http.Request) bool {
				if !strings.HasSuffix(r.URL.Path, digest.FromBytes(blob).Encoded()) {
					return false
				}
				return c.behave(w, r, int(n.Add(1)))
			}
			s := openWith(t, nil)
			got, err := s.Pull(context.Background(), f.host()+"/a:v1", PullOptions{})
			if c.kind == -1 {
				if err != nil || got.ID != img.ID() {
					t.Errorf("pull: %v", err)
				}
				return
			}
			if !kind.Is(err, c.kind) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("error of kind %v: %v", kind.Of(err), err)
			}
			clean(t, s)
		})
	}
}

// TestMirrors checks order, moving on in the middle of a layer, and what an
// error says of each host.
func TestMirrors(t *testing.T) {
	needRoot(t)
	layer := bigLayer(t, layerSize)
	img := image(t, layer)
	d := digest.FromBytes(layer.Blob)
	first, second := newFake(t), newFake(t)
	second.add("v1", img)
	first.add("v1", img)
	first.before = func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, d.Encoded()) {
			return false
		}
		w.Header().Set("Content-Length", strconv.Itoa(len(layer.Blob)))
		w.Write(layer.Blob[:len(layer.Blob)/2])
		w.(http.Flusher).Flush()
		<-r.Context().Done()
		return true
	}
	dirs := hostsDir(t, "reg.example", `server = "`+second.URL+`"`+"\n"+hostsOf(first))
	s := openWith(t, func(o *Options) { o.RegistryDirs = []string{dirs} })
	if _, err := s.Pull(context.Background(), "reg.example/a:v1", PullOptions{}); err != nil {
		t.Fatal(err)
	}
	resumed := second.asked("/blobs/" + d.String())
	if len(resumed) != 1 || !strings.HasPrefix(resumed[0].Header.Get("Range"), "bytes=") {
		t.Errorf("second host was asked %d times for the layer", len(resumed))
	}
	if got := resumed[0].URL.Query().Get("ns"); got != "reg.example" {
		t.Errorf("ns is %q", got)
	}
	if len(second.asked("/manifests/")) != 0 {
		t.Error("the second host was asked for a manifest that the first has")
	}
	first.manifests, second.manifests = map[string]served{}, map[string]served{}
	_, err := s.Pull(context.Background(), "reg.example/none:v1", PullOptions{})
	for _, part := range []string{first.URL + ": 404 Not Found (MANIFEST_UNKNOWN)", second.URL + ": 404"} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("error %v does not say %q", err, part)
		}
	}
	if !kind.Is(err, kind.NotFound) {
		t.Errorf("kind %v", kind.Of(err))
	}
}

// TestLyingMirror: wrong bytes come from a mirror only.
func TestLyingMirror(t *testing.T) {
	layer := bigLayer(t, layerSize)
	img := image(t, layer)
	d := digest.FromBytes(layer.Blob)
	liar, honest := newFake(t), newFake(t)
	liar.add("v1", img)
	honest.add("v1", img)
	liar.blobs[d] = bytes.Repeat([]byte("lies"), len(layer.Blob)/4+1)[:len(layer.Blob)]
	dirs := hostsDir(t, "reg.example", `server = "`+honest.URL+`"`+"\n"+hostsOf(liar))
	s := openWith(t, func(o *Options) { o.RegistryDirs = []string{dirs} })
	if _, err := s.Pull(context.Background(), "reg.example/a:v1", PullOptions{}); err != nil {
		t.Fatal(err)
	}
}

// TestShared: many callers of one image make one transfer, some leave early,
// and when all have left nothing goes on.
func TestShared(t *testing.T) {
	layer := bigLayer(t, layerSize)
	img := image(t, layer)
	d := digest.FromBytes(layer.Blob)
	f := newFake(t)
	f.add("v1", img)
	f.add("v2", image(t, layer, must[testimage.Layer](t)(testimage.NewLayer(testimage.Gzip, testimage.Entry{Name: "x"}))))
	go1 := make(chan struct{})
	f.before = func(w http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, d.Encoded()) {
			select {
			case <-go1:
			case <-r.Context().Done():
			}
		}
		return false
	}
	s := openWith(t, func(o *Options) { o.StallWindow = 10 * time.Second })
	results := make(chan error, 64)
	quit, cancel := context.WithCancel(context.Background())
	for i := range 64 {
		ctx := context.Background()
		if i%2 == 0 {
			ctx = quit
		}
		go func() {
			_, err := s.Pull(ctx, fmt.Sprintf("%s/a:v%d", f.host(), 1+i/2%2), PullOptions{Progress: func(Progress) {}})
			results <- err
		}()
	}
	waitFor(t, "both pulls to wait for the layer", func() bool { return len(s.Pulls()) == 2 && len(f.asked(d.Encoded())) == 1 })
	cancel()
	for range 32 {
		if err := <-results; !kind.Is(err, kind.Canceled) {
			t.Errorf("cancelled caller got %v", err)
		}
	}
	close(go1)
	for range 32 {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	if n := len(f.asked(d.Encoded())); n != 1 {
		t.Errorf("layer was asked for %d times", n)
	}
	if len(s.Pulls()) != 0 {
		t.Error("pulls are still listed")
	}
}

func TestAllLeave(t *testing.T) {
	layer := bigLayer(t, layerSize)
	f := newFake(t)
	f.add("v1", image(t, layer))
	gone := make(chan struct{})
	f.before = func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, digest.FromBytes(layer.Blob).Encoded()) {
			return false
		}
		w.Write(layer.Blob[:1000])
		w.(http.Flusher).Flush()
		<-r.Context().Done()
		close(gone)
		return true
	}
	s := openWith(t, func(o *Options) { o.StallWindow = 10 * time.Second })
	ctx, cancel := context.WithCancel(context.Background())
	result := make(chan error, 1)
	go func() { _, err := s.Pull(ctx, f.host()+"/a:v1", PullOptions{}); result <- err }()
	waitFor(t, "progress", func() bool {
		p := s.Pulls()
		return len(p) == 1 && p[0].Done == 1000 && p[0].Total == int64(len(layer.Blob)) && p[0].Layers == 1 && p[0].Status == "pulling"
	})
	start := time.Now()
	cancel()
	if err := <-result; !kind.Is(err, kind.Canceled) || time.Since(start) > 200*time.Millisecond {
		t.Errorf("after %v: %v", time.Since(start), err)
	}
	select {
	case <-gone:
	case <-time.After(5 * time.Second):
		t.Error("the transfer goes on")
	}
	clean(t, s)
}

func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("no end of waiting for %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// TestRetryKeepsLayers: the second try of a pull fetches only what the first
// did not get.
func TestRetryKeepsLayers(t *testing.T) {
	good, bad := bigLayer(t, layerSize), must[testimage.Layer](t)(testimage.NewLayer(testimage.Gzip, testimage.Entry{Name: "x"}))
	f := newFake(t)
	f.add("v1", image(t, good, bad))
	var fail atomic.Bool
	fail.Store(true)
	d := digest.FromBytes(good.Blob).Encoded()
	var s *Store
	f.before = func(w http.ResponseWriter, r *http.Request) bool {
		if fail.Load() && strings.HasSuffix(r.URL.Path, digest.FromBytes(bad.Blob).Encoded()) {
			waitFor(t, "the good layer", func() bool { p := s.Pulls(); return len(p) == 1 && p[0].Ready == 1 })
			w.WriteHeader(404)
			return true
		}
		return false
	}
	s = openWith(t, func(o *Options) { o.StallWindow = 20 * time.Second })
	s.keepFor = 300 * time.Millisecond
	ref := f.host() + "/a:v1"
	for range 2 {
		if _, err := s.Pull(context.Background(), ref, PullOptions{}); !kind.Is(err, kind.NotFound) {
			t.Fatalf("first tries: %v", err)
		}
	}
	clean(t, s)
	if _, err := s.Pull(context.Background(), ref, PullOptions{}); !kind.Is(err, kind.NotFound) {
		t.Fatalf("third try: %v", err)
	}
	fail.Store(false)
	must[Image](t)(s.Pull(context.Background(), ref, PullOptions{}))
	if n := len(f.asked(d)); n != 2 { // once before the layer was dropped and once after
		t.Errorf("the good layer was fetched %d times", n)
	}
}
