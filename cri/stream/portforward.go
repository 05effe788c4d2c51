package stream

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/gorilla/websocket"
	"github.com/moby/spdystream"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/streaming/pkg/httpstream"
)

// maxForwards is how many connections one port-forward session may have.
const maxForwards = 512

// pair is one forwarded connection: its bytes, and a stream for an error.
type pair struct {
	port         int32
	data, errors *spdystream.Stream
	timer        *time.Timer // until both are there
}

// pairs are the forwarded connections of one SPDY session.
type pairs struct {
	run      func(port int32, conn io.ReadWriteCloser) error
	creation time.Duration

	mu      sync.Mutex
	open    map[string]*pair // by request id
	closed  bool
	running sync.WaitGroup
}

// accept takes one stream; two with one request id make a connection. A client
// that breaks the rules has its stream reset.
func (p *pairs) accept(st *spdystream.Stream) {
	port, err := strconv.ParseUint(st.Headers().Get(portforward.PortHeader), 10, 16)
	kind := st.Headers().Get(portforward.StreamType)
	if err != nil || port == 0 || (kind != portforward.StreamTypeData && kind != portforward.StreamTypeError) {
		st.Reset()
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	id := requestID(st, kind)
	one := p.open[id]
	if one == nil {
		if p.closed || len(p.open) >= maxForwards {
			st.Reset()
			return
		}
		one = &pair{port: int32(port)}
		one.timer = time.AfterFunc(p.creation, func() { p.expire(id, one) })
		p.open[id] = one
	}
	place := &one.data
	if kind == portforward.StreamTypeError {
		place = &one.errors
	}
	if p.closed || *place != nil {
		st.Reset()
		return
	}
	if st.SendReply(http.Header{}, false) != nil {
		return
	}
	*place = st
	if one.data != nil && one.errors != nil {
		one.timer.Stop()
		p.running.Go(func() { p.forward(id, one) })
	}
}

// requestID is what belongs together. Clients before Kubernetes 1.1 have no
// ids; they open the error stream first and the data stream right after it.
func requestID(st *spdystream.Stream, kind string) string {
	if id := st.Headers().Get(portforward.PortForwardRequestIDHeader); id != "" {
		return id
	}
	number := int(st.Identifier())
	if kind == portforward.StreamTypeData {
		number -= 2
	}
	return "stream " + strconv.Itoa(number)
}

// expire gives up a pair of which one stream did not come.
func (p *pairs) expire(id string, one *pair) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.open[id] != one || (one.data != nil && one.errors != nil) {
		return
	}
	delete(p.open, id)
	one.reset()
}

func (one *pair) reset() {
	one.timer.Stop()
	for _, st := range []*spdystream.Stream{one.data, one.errors} {
		if st != nil {
			st.Reset()
		}
	}
}

// forward runs one connection. Its error goes to the error stream and nowhere
// else; the session goes on.
func (p *pairs) forward(id string, one *pair) {
	conn := &forwarded{Stream: one.data}
	if err := p.run(one.port, conn); err != nil {
		fmt.Fprintf(one.errors, "forward port %d: %v", one.port, err)
	}
	conn.Close() // the client reads what was written, then the end
	one.errors.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.open, id)
	one.reset() // for the library, which is still waiting for the client's end
}

// forwarded is the data stream of a forwarded connection.
type forwarded struct {
	*spdystream.Stream
	closed sync.Once
}

// Write fails once the client has reset the stream; the library would send on.
func (f *forwarded) Write(p []byte) (int, error) {
	if f.IsFinished() {
		return 0, io.ErrClosedPipe
	}
	return f.Stream.Write(p)
}

// Close ends both directions: the client reads the end, and so does who reads
// from the client.
func (f *forwarded) Close() error {
	f.closed.Do(func() {
		f.Stream.Close()
		f.Stream.Reset() // sends nothing after Close
	})
	return nil
}

// closeAll resets everything; connections end as their streams do.
func (p *pairs) closeAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for _, one := range p.open {
		one.reset()
	}
}

// forwardSPDY serves port-forward over SPDY.
func (s *session) forwardSPDY(ctx context.Context, c client) error {
	if _, err := httpstream.Handshake(c.r, c.w, portforward.SupportedProtocols); err != nil {
		return fmt.Errorf("negotiate protocol: %w", err)
	}
	nc, err := upgradeSPDY(c)
	if err != nil {
		return err
	}
	return s.forwardOver(ctx, c.conn, nc)
}

// forwardOver serves SPDY port-forward on nc, which is on conn, until the
// client goes away.
func (s *session) forwardOver(ctx context.Context, conn *conn, nc net.Conn) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	run := func(port int32, conn io.ReadWriteCloser) error { return s.forward(ctx, port, conn) }
	p := &pairs{run: run, creation: s.creation, open: map[string]*pair{}}
	defer p.running.Wait()
	link, err := serveSPDY(nc, p, cancel)
	if err != nil {
		return err
	}
	defer link.finish(ctx, conn, p)
	defer context.AfterFunc(ctx, p.closeAll)()
	<-ctx.Done()
	return nil
}

// forwardWebSocket serves port-forward over a WebSocket: either SPDY inside
// one, as kubectl does it, or a pair of channels for every port of the request.
func (s *session) forwardWebSocket(ctx context.Context, c client) error {
	ws, err := upgradeWebSocket(c, []string{portforward.WebsocketsSPDYTunnelingPortForwardV1, protocolV4, protocolV4Base64})
	if err != nil {
		return err
	}
	if strings.HasPrefix(ws.Subprotocol(), portforward.WebsocketsSPDYTunnelingPrefix) {
		return s.forwardOver(ctx, c.conn, &tunnel{Conn: ws.NetConn(), ws: ws})
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ch := newChannels(ws)
	inputs := make([]*io.PipeReader, len(s.ports))
	for i := range s.ports {
		inputs[i] = ch.reader(byte(2 * i))
	}
	var receiving, running sync.WaitGroup
	defer receiving.Wait()
	receiving.Go(func() {
		defer cancel()
		ch.receive()
	})
	defer ch.finish(ctx, c.conn)
	defer context.AfterFunc(ctx, ch.closePipes)()
	for i, port := range s.ports {
		running.Go(func() { s.forwardChannel(ctx, ch, byte(2*i), port, inputs[i]) })
	}
	running.Wait()
	return nil
}

// forwardChannel runs the connection of one port on channel and channel+1,
// each of which begins with the port's number.
func (s *session) forwardChannel(ctx context.Context, ch *channels, channel byte, port int32, in *io.PipeReader) {
	number := binary.LittleEndian.AppendUint16(nil, uint16(port))
	if ch.send(channel, number) != nil || ch.send(channel+1, number) != nil {
		return
	}
	conn := struct {
		io.Reader
		io.Writer
		io.Closer
	}{in, ch.writer(channel), in} // the protocol cannot say that the other direction has ended
	if err := s.forward(ctx, port, conn); err != nil {
		ch.send(channel+1, fmt.Appendf(nil, "forward port %d: %v", port, err))
	}
	in.Close() // what still comes is not waited for
}

// tunnel is a connection inside a WebSocket's binary messages.
type tunnel struct {
	net.Conn // addresses, deadlines, Close
	ws       *websocket.Conn

	message io.Reader // the rest of the one being read
	writing sync.Mutex
}

func (t *tunnel) Read(p []byte) (int, error) {
	for {
		if t.message == nil {
			_, r, err := t.ws.NextReader()
			if err != nil {
				return 0, err
			}
			t.message = r
		}
		n, err := t.message.Read(p)
		if err == io.EOF {
			t.message, err = nil, nil
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
}

func (t *tunnel) Write(p []byte) (int, error) {
	t.writing.Lock()
	defer t.writing.Unlock()
	if err := t.ws.WriteMessage(websocket.BinaryMessage, p); err != nil {
		return 0, err
	}
	return len(p), nil
}
