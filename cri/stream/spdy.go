package stream

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/moby/spdystream"
	"github.com/moby/spdystream/spdy"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream"
)

// spdyLink is a SPDY connection whose streams one acceptor takes.
type spdyLink struct {
	net    net.Conn
	spdy   *spdystream.Connection
	served chan struct{} // closed when the connection has ended
}

// acceptor takes the streams that a client opens. accept is called on several
// goroutines, and must not block. closeAll resets all streams accepted; those
// that come later are refused.
type acceptor interface {
	accept(*spdystream.Stream)
	closeAll()
}

// upgradeSPDY switches the connection to SPDY.
func upgradeSPDY(c client) (net.Conn, error) {
	if !strings.Contains(strings.ToLower(c.r.Header.Get("Connection")), "upgrade") ||
		!strings.Contains(strings.ToLower(c.r.Header.Get("Upgrade")), "spdy/3.1") {
		return nil, c.refuse(http.StatusBadRequest, "the connection must be upgraded to SPDY/3.1 or to a WebSocket")
	}
	hijacker, ok := c.w.(http.Hijacker)
	if !ok {
		return nil, c.refuse(http.StatusInternalServerError, "the connection cannot be upgraded")
	}
	c.w.Header().Set("Connection", "Upgrade")
	c.w.Header().Set("Upgrade", "SPDY/3.1")
	c.w.WriteHeader(http.StatusSwitchingProtocols)
	_, buffered, err := hijacker.Hijack()
	if err != nil {
		return nil, fmt.Errorf("hijack: %w", err)
	}
	c.take()
	return &bufferedConn{c.conn, buffered.Reader}, nil
}

// bufferedConn reads first what the HTTP server has read ahead.
type bufferedConn struct {
	net.Conn
	r *bufio.Reader
}

func (c *bufferedConn) Read(p []byte) (int, error) { return c.r.Read(p) }

// guardedConn ends a SPDY connection before large frames are read.
type guardedConn struct {
	net.Conn
	guard frameGuard
}

func (c *guardedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if bad := c.guard.check(p[:n]); bad != nil {
		return 0, bad
	}
	return n, err
}

// serveSPDY starts to serve a connection. cancel is called when it ends.
func serveSPDY(nc net.Conn, a acceptor, cancel context.CancelFunc) (*spdyLink, error) {
	nc = &guardedConn{Conn: nc}
	// A compressed frame could otherwise grow to a thousand headers of a
	// mebibyte each.
	conn, err := spdystream.NewConnectionWithOptions(nc, true,
		spdy.WithMaxControlFramePayloadSize(maxControlFrame),
		spdy.WithMaxHeaderFieldSize(4<<10), spdy.WithMaxHeaderCount(32))
	if err != nil {
		return nil, fmt.Errorf("serve SPDY: %w", err)
	}
	l := &spdyLink{net: nc, spdy: conn, served: make(chan struct{})}
	go func() {
		defer close(l.served)
		conn.Serve(a.accept)
	}()
	go func() {
		// Serve itself returns only after the streams' last frames were
		// taken, for which the command may have to end first.
		<-conn.CloseChan()
		cancel()
	}()
	return l, nil
}

// finish closes the connection after what was written: a close with unread
// bytes would reset it, and the client might lose the end of the output.
func (l *spdyLink) finish(ctx context.Context, c *conn, a acceptor) {
	linger := time.AfterFunc(lingerTimeout, func() { c.Close() }) // writes block too
	defer linger.Stop()
	a.closeAll()
	c.closeWrite()
	select {
	case <-l.spdy.CloseChan():
	case <-ctx.Done():
	}
	c.Close()
	<-l.served
}

// execStreams are the streams of an exec or attach session as they arrive.
type execStreams struct {
	wants map[string]bool // stream types; all must be there
	ready chan struct{}   // closed when they are

	mu     sync.Mutex
	have   map[string]*spdystream.Stream
	closed bool
}

func newExecStreams(w Wants, resize bool) *execStreams {
	x := &execStreams{wants: map[string]bool{}, ready: make(chan struct{}), have: map[string]*spdystream.Stream{}}
	x.wants[remotecommand.StreamTypeError] = true
	x.wants[remotecommand.StreamTypeStdin] = w.Stdin
	x.wants[remotecommand.StreamTypeStdout] = w.Stdout
	x.wants[remotecommand.StreamTypeStderr] = w.Stderr
	x.wants[remotecommand.StreamTypeResize] = w.Terminal && resize
	return x
}

func (x *execStreams) accept(st *spdystream.Stream) {
	x.mu.Lock()
	defer x.mu.Unlock()
	name := st.Headers().Get(remotecommand.StreamType)
	if _, known := x.wants[name]; !known || x.have[name] != nil || x.closed {
		st.Reset()
		return
	}
	// Data is taken, and may be written, only after the reply.
	if st.SendReply(http.Header{}, false) != nil {
		return
	}
	x.have[name] = st
	for name, wanted := range x.wants {
		if wanted && x.have[name] == nil {
			return
		}
	}
	select {
	case <-x.ready:
	default:
		close(x.ready)
	}
}

// get returns a wanted stream, or nil.
func (x *execStreams) get(name string) *spdystream.Stream {
	x.mu.Lock()
	defer x.mu.Unlock()
	if !x.wants[name] {
		return nil
	}
	return x.have[name]
}

// closeAll ends every stream: first towards the client, then, which sends
// nothing more, from it, so that no worker waits for a reader.
func (x *execStreams) closeAll() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.closed = true
	for _, st := range x.have {
		st.Close()
		st.Reset()
	}
}

// execSPDY serves exec and attach over SPDY.
func (s *session) execSPDY(ctx context.Context, c client) error {
	protocol, err := httpstream.Handshake(c.r, c.w, []string{
		remotecommand.StreamProtocolV4Name, remotecommand.StreamProtocolV3Name, remotecommand.StreamProtocolV2Name,
	})
	if err != nil {
		return fmt.Errorf("negotiate protocol: %w", err)
	}
	nc, err := upgradeSPDY(c)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	v4 := protocol == remotecommand.StreamProtocolV4Name
	x := newExecStreams(s.wants, v4 || protocol == remotecommand.StreamProtocolV3Name)
	link, err := serveSPDY(nc, x, cancel)
	if err != nil {
		return err
	}
	var helpers sync.WaitGroup
	defer helpers.Wait()
	defer link.finish(ctx, c.conn, x)
	defer context.AfterFunc(ctx, x.closeAll)()

	timeout := time.NewTimer(s.creation)
	defer timeout.Stop()
	select {
	case <-x.ready:
	case <-timeout.C:
		return errors.New("client did not open its streams in time")
	case <-ctx.Done():
		return ctx.Err()
	}
	code, runErr := s.run(ctx, x.streams(s.wants, &helpers))
	return errors.Join(runErr, statusOf(code, runErr).write(x.get(remotecommand.StreamTypeError), v4))
}

func (x *execStreams) streams(w Wants, helpers *sync.WaitGroup) Streams {
	st := Streams{Terminal: w.Terminal}
	if in := x.get(remotecommand.StreamTypeStdin); in != nil {
		st.Stdin = in
	}
	if out := x.get(remotecommand.StreamTypeStdout); out != nil {
		st.Stdout = io.Writer(out)
	}
	if out := x.get(remotecommand.StreamTypeStderr); out != nil {
		st.Stderr = io.Writer(out)
	}
	if in := x.get(remotecommand.StreamTypeResize); in != nil {
		z := newSizes()
		st.Resize = z
		helpers.Go(func() { z.decode(in) })
	}
	return st
}
