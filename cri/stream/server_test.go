package stream

import (
	"bufio"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"noded.dev/noded/internal/kind"
)

// serve starts a server whose goroutines must all be gone at the test's end.
func serve(t *testing.T) *Server {
	t.Helper()
	before := runtime.NumGoroutine()
	log := logrus.New()
	log.SetOutput(io.Discard)
	s, err := New(Options{Addr: "127.0.0.1:0", Log: log.WithField("test", t.Name())})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		closed := make(chan struct{})
		go func() {
			defer close(closed)
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		}()
		select {
		case <-closed:
		case <-time.After(10 * time.Second):
			t.Fatalf("server did not close:\n%s", stacks())
		}
		flat(t, before)
	})
	return s
}

// flat waits until no more goroutines run than before. Go reports no event
// when a goroutine ends.
func flat(t *testing.T, before int) {
	t.Helper()
	http.DefaultClient.CloseIdleConnections()
	for end := time.Now().Add(8 * time.Second); runtime.NumGoroutine() > before; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Errorf("%d goroutines, %d before:\n%s", runtime.NumGoroutine(), before, stacks())
			return
		}
	}
}

func stacks() string {
	buf := make([]byte, 1<<20)
	return string(buf[:runtime.Stack(buf, true)])
}

func exits(code int) ExecFunc {
	return func(context.Context, Streams) (int, error) { return code, nil }
}

func waits(ctx context.Context, _ Streams) (int, error) {
	<-ctx.Done()
	return 0, ctx.Err()
}

func execURL(t *testing.T, s *Server, w Wants, run ExecFunc) string {
	t.Helper()
	address, err := s.ExecURL(w, run)
	if err != nil {
		t.Fatal(err)
	}
	return address
}

// upgrade sends a request as a SPDY client does, and returns the answer.
func upgrade(t *testing.T, address, protocol string) (net.Conn, *http.Response) {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", u.Host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: %s\r\n\r\n", u.Path, protocol)
	r := bufio.NewReader(c)
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	return c, resp
}

func statusOfGet(t *testing.T, address string) int {
	t.Helper()
	r, err := http.Get(address)
	if err != nil {
		t.Fatal(err)
	}
	r.Body.Close()
	return r.StatusCode
}

func TestTokens(t *testing.T) {
	s := serve(t)
	now := time.Now()
	s.tokens.now = func() time.Time { return now }
	w := Wants{Stdout: true}
	ran := func(context.Context, Streams) (int, error) {
		t.Error("a session ran")
		return 0, nil
	}

	first := execURL(t, s, w, ran)
	if token := first[strings.LastIndex(first, "/")+1:]; len(token)*5 < 128 { // base32
		t.Errorf("token %q has %d bits", token, len(token)*5)
	}
	other := strings.Replace(first, "/exec/", "/attach/", 1)
	for i, address := range []string{other, first, other} { // a wrong verb voids the token
		if got := statusOfGet(t, address); got != http.StatusNotFound {
			t.Errorf("request %d: status %d", i, got)
		}
	}

	used := execURL(t, s, w, ran)
	if got := statusOfGet(t, used); got != http.StatusBadRequest { // not an upgrade
		t.Errorf("status %d", got)
	}
	if got := statusOfGet(t, used); got != http.StatusNotFound {
		t.Errorf("replay: status %d", got)
	}

	late := execURL(t, s, w, ran)
	now = now.Add(tokenLife)
	if got := statusOfGet(t, late); got != http.StatusNotFound {
		t.Errorf("late: status %d", got)
	}
	for _, path := range []string{"/", "/exec", "/exec/", "/exec/" + rand.Text(), "/exec//", "/nothing/x", "/exec/../exec/x"} {
		if got := statusOfGet(t, s.base+path); got != http.StatusNotFound {
			t.Errorf("%s: status %d", path, got)
		}
	}
	execURL(t, s, w, ran)
	for range 1_000_000 {
		if s.tokens.take("exec", "GUESS") != nil {
			t.Fatal("guessed")
		}
	}
}

func TestPendingLimit(t *testing.T) {
	s := serve(t)
	now := time.Now()
	s.tokens.now = func() time.Time { return now }
	for range maxPending {
		execURL(t, s, Wants{Stdout: true}, exits(0))
	}
	if _, err := s.ExecURL(Wants{Stdout: true}, exits(0)); !kind.Is(err, kind.Exhausted) {
		t.Errorf("got %v", err)
	}
	now = now.Add(tokenLife)
	execURL(t, s, Wants{Stdout: true}, exits(0))
	if n := len(s.tokens.pending); n != 1 {
		t.Errorf("%d tokens are kept", n)
	}
}

func TestSessionLimit(t *testing.T) {
	s := serve(t)
	address := execURL(t, s, Wants{Stdout: true}, exits(0))
	for range maxSessions {
		s.slots <- struct{}{}
	}
	if _, err := s.ExecURL(Wants{Stdout: true}, exits(0)); !kind.Is(err, kind.Exhausted) {
		t.Errorf("got %v", err)
	}
	if got := statusOfGet(t, address); got != http.StatusServiceUnavailable {
		t.Errorf("status %d", got)
	}
}

func TestClosed(t *testing.T) {
	s := serve(t)
	s.closed.Store(true)
	if _, err := s.ExecURL(Wants{Stdout: true}, exits(0)); !kind.Is(err, kind.Unavailable) {
		t.Errorf("got %v", err)
	}
}

// TestHalfOpen opens more connections than may be half-open; a client that
// means it still gets in, and the oldest are gone.
func TestHalfOpen(t *testing.T) {
	s := serve(t)
	var conns []net.Conn
	for i := range maxHalfOpen + 200 {
		c, err := net.Dial("tcp", s.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if i%2 == 0 {
			io.WriteString(c, "POST /exec/x HTTP/1.1\r\nX-Slow: ")
		}
		conns = append(conns, c)
	}
	if got := statusOfGet(t, s.base+"/exec/x"); got != http.StatusNotFound {
		t.Errorf("status %d", got)
	}
	conns[0].SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := conns[0].Read(make([]byte, 1)); err == nil || strings.Contains(err.Error(), "timeout") {
		t.Errorf("the oldest connection: %v", err)
	}
	s.listener.mu.Lock()
	defer s.listener.mu.Unlock()
	if n := s.listener.halfOpen.Len(); n > maxHalfOpen {
		t.Errorf("%d connections are half-open", n)
	}
}

// TestCloseEndsSessions closes the server under a command that only its
// context can end.
func TestCloseEndsSessions(t *testing.T) {
	s := serve(t)
	started := make(chan struct{})
	address := execURL(t, s, Wants{}, func(ctx context.Context, st Streams) (int, error) {
		close(started)
		return waits(ctx, st)
	})
	c, resp := upgrade(t, address, "v4.channel.k8s.io")
	if resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatal(resp.Status)
	}
	conn := spdyClient(t, c)
	open(t, conn, "error")
	<-started
}

func TestSizes(t *testing.T) {
	z := newSizes()
	in, out := io.Pipe()
	done := make(chan struct{})
	go func() { z.decode(in); close(done) }()
	for i := range 1000 { // nobody takes them, and nobody waits
		fmt.Fprintf(out, `{"Width":%d,"Height":0}`, i)
	}
	out.Close()
	<-done
	var last Size
	for size := range z {
		last = size
	}
	if last.Width != 999 {
		t.Errorf("last is %v", last)
	}

	// A size that never ends is not collected.
	z, endless := newSizes(), &endlessReader{}
	z.decode(endless)
	if endless.most > 64<<10 {
		t.Errorf("%d bytes were asked for at once", endless.most)
	}
	z = newSizes()
	z.decode(strings.NewReader(`{"Width":70000}`)) // does not fit; ends
	if _, ok := <-z; ok {
		t.Error("a size that does not fit was passed on")
	}
}

// endlessReader gives 16 MiB of spaces, and sees how much is asked for at
// once: a growing buffer asks for more and more.
type endlessReader struct{ read, most int }

func (r *endlessReader) Read(p []byte) (int, error) {
	if r.read >= 16<<20 {
		return 0, io.EOF
	}
	for i := range p {
		p[i] = ' '
	}
	r.read += len(p)
	r.most = max(r.most, len(p))
	return len(p), nil
}
