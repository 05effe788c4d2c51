package stream

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/http"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/moby/spdystream"
)

func spdyClient(t *testing.T, c net.Conn) *spdystream.Connection {
	t.Helper()
	conn, err := spdystream.NewConnection(c, false)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() { defer close(served); conn.Serve(spdystream.NoOpStreamHandler) }()
	t.Cleanup(func() { c.Close(); <-served })
	return conn
}

func open(t *testing.T, conn *spdystream.Connection, kind string) *spdystream.Stream {
	t.Helper()
	st, err := conn.CreateStream(http.Header{"streamType": {kind}}, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := st.WaitTimeout(5 * time.Second); err != nil {
		t.Fatalf("stream %s: %v", kind, err)
	}
	return st
}

// ask opens a stream whose answer nobody waits for but the test's end.
func ask(t *testing.T, conn *spdystream.Connection, h http.Header) {
	t.Helper()
	st, err := conn.CreateStream(h, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		st.WaitTimeout(5 * time.Second) // else a reset would stop the client's reading
	}()
	t.Cleanup(func() { <-answered })
}

func control(kind uint16, length uint32, body []byte) []byte {
	frame := binary.BigEndian.AppendUint16(nil, 0x8003)
	frame = binary.BigEndian.AppendUint16(frame, kind)
	frame = binary.BigEndian.AppendUint32(frame, length)
	return append(frame, body...)
}

// TestHostileFrames sends what a SPDY client must not; the connection ends,
// and the command with it.
func TestHostileFrames(t *testing.T) {
	for name, frame := range map[string][]byte{
		"settings":      control(4, 12, []byte{0xff, 0xff, 0xff, 0xff, 0, 0, 0, 1, 0, 0, 0, 1}),
		"large control": control(1, maxControlFrame+1, nil),
		"large data":    {0, 0, 0, 1, 0, 0xff, 0xff, 0xff},
		"garbage":       bytes.Repeat([]byte{0xde, 0xad}, 1000),
		"not SPDY":      []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t)
			c, resp := upgrade(t, execURL(t, s, Wants{Stdin: true}, waits), "v4.channel.k8s.io")
			if resp.StatusCode != http.StatusSwitchingProtocols {
				t.Fatal(resp.Status)
			}
			c.Write(frame)
			if _, err := io.Copy(io.Discard, c); err != nil && strings.Contains(err.Error(), "timeout") {
				t.Error("the connection is still open")
			}
		})
	}
}

// TestUnreadStdin holds large frames back: what is kept of them is bounded.
func TestUnreadStdin(t *testing.T) {
	s := serve(t)
	c, _ := upgrade(t, execURL(t, s, Wants{Stdin: true}, waits), "v4.channel.k8s.io")
	conn := spdyClient(t, c)
	open(t, conn, "error")
	stdin := open(t, conn, "stdin")
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	c.SetWriteDeadline(time.Now().Add(time.Second))
	for {
		if err := stdin.WriteData(make([]byte, maxDataFrame), false); err != nil {
			break
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 40<<20 {
		t.Errorf("%d MiB are kept of unread stdin", grown>>20)
	}
}

// TestStreamFlood opens far more streams than a session has, and leaves.
func TestStreamFlood(t *testing.T) {
	s := serve(t)
	c, _ := upgrade(t, execURL(t, s, Wants{Stdin: true, Stdout: true}, waits), "v4.channel.k8s.io")
	conn := spdyClient(t, c)
	for i := range 5000 {
		kind := []string{"stdin", "stdout", "stderr", "resize", "nonsense", ""}[i%6]
		ask(t, conn, http.Header{"streamType": {kind}})
	}
	open(t, conn, "error")
}

// TestNoStreams lets a client upgrade and do nothing more.
func TestNoStreams(t *testing.T) {
	s := serve(t)
	s.creation = 50 * time.Millisecond
	for _, protocol := range []string{"v4.channel.k8s.io", "v2.channel.k8s.io"} {
		c, _ := upgrade(t, execURL(t, s, Wants{Stdin: true}, exits(0)), protocol)
		if _, err := io.Copy(io.Discard, c); err != nil && strings.Contains(err.Error(), "timeout") {
			t.Error("the connection is still open")
		}
		c.Close()
	}
	for end := time.Now().Add(5 * time.Second); len(s.slots) > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d sessions are left", len(s.slots))
		}
	}
}

func TestUnknownProtocol(t *testing.T) {
	s := serve(t)
	c, resp := upgrade(t, execURL(t, s, Wants{Stdin: true}, exits(0)), "v9.channel.k8s.io")
	if resp.StatusCode != http.StatusForbidden {
		t.Error(resp.Status)
	}
	c.Close()
	_, r, err := websocket.DefaultDialer.Dial(wsURL(t, s, Wants{Stdin: true}, exits(0)), http.Header{"Sec-Websocket-Protocol": {"v9.channel.k8s.io"}})
	if err == nil || r.StatusCode != http.StatusForbidden {
		t.Errorf("got %v, %v", r, err)
	}
}

func wsURL(t *testing.T, s *Server, w Wants, run ExecFunc) string {
	return strings.Replace(execURL(t, s, w, run), "http:", "ws:", 1)
}

// TestOldText checks what clients before protocol version 4 are told.
func TestOldText(t *testing.T) {
	s := serve(t)
	for code, want := range map[int]string{0: "", 3: "command terminated with non-zero exit code: exit status 3"} {
		c, _ := upgrade(t, execURL(t, s, Wants{Stdout: true}, exits(code)), "v2.channel.k8s.io")
		conn := spdyClient(t, c)
		errs := open(t, conn, "error")
		open(t, conn, "stdout")
		got, err := io.ReadAll(errs)
		if err != nil || string(got) != want {
			t.Errorf("code %d: %q, %v", code, got, err)
		}
		c.Close()
	}
}

// TestHostileMessages sends what a WebSocket client must not.
func TestHostileMessages(t *testing.T) {
	for name, message := range map[string][]byte{
		"large":              make([]byte, maxMessage+1),
		"close nothing":      {255},
		"close unknown":      {255, 200},
		"unknown channel":    {77, 1, 2, 3},
		"stdin to a channel": {1, 1, 2, 3}, // stdout
		"bad size":           append([]byte{4}, `{"Width":`+strings.Repeat(" ", 5000)+`1}`...),
		"empty":              {},
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t)
			d := websocket.Dialer{Subprotocols: []string{protocolV5}}
			ended := make(chan struct{})
			ws, _, err := d.Dial(wsURL(t, s, Wants{Stdin: true, Stdout: true, Terminal: true}, func(ctx context.Context, st Streams) (int, error) {
				defer close(ended)
				_, err := io.Copy(st.Stdout, st.Stdin)
				return 0, err
			}), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer ws.Close()
			ws.WriteMessage(websocket.BinaryMessage, message)
			ws.WriteMessage(websocket.BinaryMessage, []byte{255, 0}) // stdin ends
			select {
			case <-ended:
			case <-time.After(5 * time.Second):
				t.Fatal("the command does not end")
			}
		})
	}
}

// TestBase64 speaks the protocol of browsers.
func TestBase64(t *testing.T) {
	s := serve(t)
	d := websocket.Dialer{Subprotocols: []string{protocolV4Base64}}
	ws, _, err := d.Dial(wsURL(t, s, Wants{Stdin: true, Stdout: true}, func(_ context.Context, st Streams) (int, error) {
		_, err := io.CopyN(st.Stdout, st.Stdin, 2)
		return 0, err
	}), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer ws.Close()
	ws.WriteMessage(websocket.TextMessage, []byte("0aGk=")) // "hi" to stdin
	for _, want := range []string{"1", "1aGk=", "3eyJ"} {
		_, got, err := ws.ReadMessage()
		if err != nil || !strings.HasPrefix(string(got), want) {
			t.Errorf("got %q, %v; want %q", got, err, want)
		}
	}
}

// TestForwardChannels forwards two ports over the channels of a WebSocket.
func TestForwardChannels(t *testing.T) {
	s := serve(t)
	address, err := s.PortForwardURL([]int32{80, 65535}, func(_ context.Context, port int32, conn io.ReadWriteCloser) error {
		if port == 65535 {
			return io.ErrUnexpectedEOF
		}
		_, err := io.CopyN(conn, conn, 2)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	d := websocket.Dialer{Subprotocols: []string{protocolV4}}
	ws, _, err := d.Dial(strings.Replace(address, "http:", "ws:", 1), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer ws.Close()
	ws.WriteMessage(websocket.BinaryMessage, []byte("\x00hi"))
	got := map[byte]string{}
	for {
		_, m, err := ws.ReadMessage()
		if err != nil {
			break
		}
		got[m[0]] += string(m[1:])
	}
	want := map[byte]string{0: "\x50\x00hi", 1: "\x50\x00", 2: "\xff\xff", 3: "\xff\xffforward port 65535: unexpected EOF"}
	for channel, text := range want {
		if got[channel] != text {
			t.Errorf("channel %d: %q, want %q", channel, got[channel], text)
		}
	}
}

// TestForwardFlood opens streams that make no sense, half pairs, and more
// connections than a session may have, and leaves in the middle.
func TestForwardFlood(t *testing.T) {
	s := serve(t)
	var running atomic.Int64
	address, err := s.PortForwardURL(nil, func(ctx context.Context, _ int32, conn io.ReadWriteCloser) error {
		running.Add(1)
		<-ctx.Done()
		return ctx.Err()
	})
	if err != nil {
		t.Fatal(err)
	}
	c, resp := upgrade(t, address, "portforward.k8s.io")
	if resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatal(resp.Status)
	}
	conn := spdyClient(t, c)
	for i := range 3000 {
		kind, port, id := []string{"error", "data"}[i%2], "80", strconv.Itoa(i/2)
		if i > 1500 {
			port, id = []string{"80", "0", "65536", "x", ""}[i%5], strconv.Itoa(i)
		}
		if i > 2500 {
			kind = "nonsense"
		}
		h := http.Header{"port": {port}, "streamType": {kind}, "requestID": {id}}
		ask(t, conn, h)
	}
	for end := time.Now().Add(5 * time.Second); running.Load() < maxForwards && time.Now().Before(end); time.Sleep(time.Millisecond) {
	}
	if n := running.Load(); n != maxForwards {
		t.Errorf("%d connections ran at once, want %d", n, maxForwards)
	}
}

// TestForwardExpires resets a stream whose other half does not come.
func TestForwardExpires(t *testing.T) {
	s := serve(t)
	s.creation = 50 * time.Millisecond
	address, err := s.PortForwardURL(nil, func(context.Context, int32, io.ReadWriteCloser) error {
		t.Error("forwarded half a pair")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	c, _ := upgrade(t, address, "portforward.k8s.io")
	conn := spdyClient(t, c)
	st, err := conn.CreateStream(http.Header{"port": {"80"}, "streamType": {"data"}, "requestID": {"1"}}, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := st.WaitTimeout(5 * time.Second); err != nil {
		t.Fatal(err)
	}
	if _, err := st.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("got %v", err)
	}
}

func TestFrameGuard(t *testing.T) {
	frame := append([]byte{0, 0, 0, 1, 0, 0, 0, 5}, "hello"...)
	many := bytes.Repeat(frame, 100)
	for _, step := range []int{1, 3, 8, 13, 1000} {
		var g frameGuard
		for rest := many; len(rest) > 0; {
			n := min(step, len(rest))
			if err := g.check(rest[:n]); err != nil {
				t.Fatalf("step %d: %v", step, err)
			}
			rest = rest[n:]
		}
		if err := g.check(control(1, maxControlFrame+1, nil)); err == nil {
			t.Errorf("step %d: a large frame after many passes", step)
		}
	}
}
