package stream

import (
	"container/list"
	"context"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

type connKey struct{}

// listener bounds the connections that have not become a session: the oldest
// one is closed for a new one. A client that means it needs milliseconds.
type listener struct {
	net.Listener

	mu       sync.Mutex
	halfOpen *list.List // *conn, oldest first
}

func listen(addr string) (*listener, error) {
	lc := net.ListenConfig{KeepAliveConfig: net.KeepAliveConfig{
		Enable: true, Idle: 30 * time.Second, Interval: 10 * time.Second, Count: 3,
	}}
	l, err := lc.Listen(context.Background(), "tcp", addr)
	if err != nil {
		return nil, err
	}
	return &listener{Listener: l, halfOpen: list.New()}, nil
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &conn{Conn: nc, listener: l}
	l.mu.Lock()
	var drop *conn
	if l.halfOpen.Len() >= maxHalfOpen {
		drop = l.halfOpen.Remove(l.halfOpen.Front()).(*conn)
	}
	c.place = l.halfOpen.PushBack(c)
	l.mu.Unlock()
	if drop != nil {
		drop.Close()
	}
	return c, nil
}

// leave takes a connection out of the half-open ones.
func (l *listener) leave(c *conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.halfOpen.Remove(c.place) // does nothing if it has been taken out
}

// conn is one client's connection. It notices when nothing moves, and can be
// closed any number of times.
type conn struct {
	net.Conn
	listener *listener
	place    *list.Element
	used     atomic.Int64 // when bytes last moved, nanoseconds since 1970

	mu      sync.Mutex
	closed  bool
	onClose []func()
	failed  error // of the first Close
}

// begin makes the connection a session's. cancel is called when nothing has
// moved for idleTimeout.
func (c *conn) begin(cancel context.CancelFunc) {
	c.listener.leave(c)
	c.used.Store(time.Now().UnixNano())
	var timer *time.Timer
	var mu sync.Mutex // the first firing must see timer
	mu.Lock()
	defer mu.Unlock()
	timer = time.AfterFunc(idleTimeout, func() {
		mu.Lock()
		defer mu.Unlock()
		left := idleTimeout - time.Since(time.Unix(0, c.used.Load()))
		if left <= 0 {
			cancel()
			return
		}
		timer.Reset(left)
	})
	c.atClose(func() { timer.Stop() })
}

// atClose calls f when the connection is closed, at once if it is already.
func (c *conn) atClose(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		f()
		return
	}
	c.onClose = append(c.onClose, f)
}

// Read implements net.Conn.
func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.used.Store(time.Now().UnixNano())
	return n, err
}

// Write implements net.Conn.
func (c *conn) Write(p []byte) (int, error) {
	c.used.Store(time.Now().UnixNano())
	return c.Conn.Write(p)
}

// Close implements net.Conn; it may be repeated.
func (c *conn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return c.failed
	}
	c.closed = true
	c.listener.leave(c)
	for _, f := range c.onClose {
		f()
	}
	c.failed = c.Conn.Close()
	return c.failed
}

// closeWrite tells the client that nothing more comes.
func (c *conn) closeWrite() {
	if t, ok := c.Conn.(*net.TCPConn); ok {
		t.CloseWrite()
	}
}

// frameGuard follows SPDY frames (draft 3, section 2.2: 8 bytes of header, the
// last three of which are the length) and refuses large ones. Clients copy in
// pieces of 32 KiB.
type frameGuard struct {
	header [8]byte
	have   int // bytes of header
	body   int // bytes of the frame still to come
}

const (
	maxDataFrame    = 256 << 10 // bytes; about twenty wait in memory where a command does not read
	maxControlFrame = 64 << 10
)

func (g *frameGuard) check(p []byte) error {
	for len(p) > 0 {
		if g.body > 0 {
			n := min(g.body, len(p))
			g.body -= n
			p = p[n:]
			continue
		}
		n := copy(g.header[g.have:], p)
		g.have += n
		p = p[n:]
		if g.have < len(g.header) {
			return nil
		}
		g.have = 0
		limit := maxDataFrame
		if g.header[0]&0x80 != 0 {
			limit = maxControlFrame
		}
		g.body = int(g.header[5])<<16 | int(g.header[6])<<8 | int(g.header[7])
		if g.body > limit {
			return fmt.Errorf("SPDY frame of %d bytes, more than %d", g.body, limit)
		}
	}
	return nil
}
