// Package streaming proves cri/stream with the clients that kubectl and crictl
// are made of, in a module of its own so that noded's go.mod stays small.
package streaming

import (
	"bytes"
	"io"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"k8s.io/klog/v2"

	"noded.dev/noded/cri/stream"
)

// serve starts a server whose goroutines must all be gone at the test's end.
func serve(t *testing.T) *stream.Server {
	t.Helper()
	before := len(ours())
	log := logrus.New()
	log.SetOutput(io.Discard)
	s, err := stream.New(stream.Options{Addr: "127.0.0.1:0", Log: log.WithField("test", t.Name())})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		closed := make(chan struct{})
		go func() { s.Close(); close(closed) }()
		select {
		case <-closed:
		case <-time.After(10 * time.Second):
			t.Errorf("server did not close; goroutines:\n%s", stacks())
			return
		}
		waitGoroutines(t, before)
	})
	return s
}

// waitGoroutines waits until no more goroutines of the server run than before.
func waitGoroutines(t *testing.T, before int) {
	t.Helper()
	// Go reports no event when a goroutine ends.
	for end := time.Now().Add(8 * time.Second); len(ours()) > before; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Errorf("%d goroutines, %d before:\n%s", len(ours()), before, strings.Join(ours(), "\n\n"))
			return
		}
	}
}

// ours are the goroutines of the server and of the SPDY library. The client
// library has some of its own that outlive a canceled session.
func ours() []string {
	var list []string
	for _, g := range strings.Split(stacks(), "\n\n") {
		if strings.Contains(g, "noded/cri/stream.") || strings.Contains(g, "moby/spdystream.") {
			list = append(list, g)
		}
	}
	return list
}

func stacks() string {
	buf := make([]byte, 1<<20)
	return string(buf[:runtime.Stack(buf, true)])
}

// said is what the client library logs: failed connections, mostly.
var said lockedBuffer

func TestMain(m *testing.M) {
	klog.LogToStderr(false)
	klog.SetOutput(&said)
	os.Exit(m.Run())
}

type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

// take returns what was written since the last call.
func (b *lockedBuffer) take() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	defer b.buf.Reset()
	return b.buf.String()
}

func within(t *testing.T, what string, done <-chan struct{}) {
	t.Helper()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatalf("%s took more than 10 s; goroutines:\n%s", what, stacks())
	}
}
