package stream

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gorilla/websocket"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
)

// maxMessage bounds one WebSocket message of a client, in bytes. Clients copy
// in pieces of 32 KiB.
const maxMessage = 1 << 20

// The sub-protocols: every message begins with the number of its channel, as a
// byte or, in the base64 forms for browsers, as a digit before base64 text.
const (
	protocolV5       = remotecommand.StreamProtocolV5Name
	protocolV4       = remotecommand.StreamProtocolV4Name
	protocolV4Base64 = "v4.base64.channel.k8s.io"
	protocolV1       = remotecommand.StreamProtocolV1Name
	protocolV1Base64 = "base64.channel.k8s.io"
)

// upgradeWebSocket switches the connection to a WebSocket with one of the
// protocols; a client that asks for none gets the oldest.
func upgradeWebSocket(c client, protocols []string) (*websocket.Conn, error) {
	asked := websocket.Subprotocols(c.r)
	known := func(p string) bool { return slices.Contains(protocols, p) }
	if len(asked) > 0 && !slices.ContainsFunc(asked, known) {
		return nil, c.refuse(http.StatusForbidden, fmt.Sprintf("none of the sub-protocols is known; these are: %s", strings.Join(protocols, ", ")))
	}
	up := websocket.Upgrader{
		HandshakeTimeout: headerTimeout,
		Subprotocols:     protocols,
		// The token in the path is what is trusted, wherever its page is from.
		CheckOrigin: func(*http.Request) bool { return true },
	}
	ws, err := up.Upgrade(c.w, c.r, nil)
	if err != nil {
		return nil, fmt.Errorf("upgrade to WebSocket: %w", err)
	}
	c.take()
	ws.SetReadLimit(maxMessage)
	return ws, nil
}

// channels are the numbered channels of one WebSocket.
type channels struct {
	ws     *websocket.Conn
	base64 bool
	closes bool                    // v5: clients say when a channel has ended
	in     map[byte]*io.PipeWriter // where what comes in on a channel goes
	pipes  []*io.PipeReader
	read   chan struct{} // closed when receive has returned

	mu sync.Mutex // one writer at a time
}

func newChannels(ws *websocket.Conn) *channels {
	p := ws.Subprotocol()
	return &channels{
		ws: ws, base64: strings.Contains(p, "base64."), closes: p == protocolV5,
		in: map[byte]*io.PipeWriter{}, read: make(chan struct{}),
	}
}

// reader returns a channel from the client. All must be asked for before receive.
func (c *channels) reader(number byte) *io.PipeReader {
	r, w := io.Pipe()
	c.in[number] = w
	c.pipes = append(c.pipes, r)
	return r
}

// receive passes on what the client sends, until the connection ends or the
// client breaks the protocol.
func (c *channels) receive() error {
	defer close(c.read)
	defer func() {
		for _, w := range c.in {
			w.Close()
		}
	}()
	for {
		_, data, err := c.ws.ReadMessage()
		if err != nil {
			return err
		}
		if len(data) == 0 {
			continue
		}
		if c.closes && data[0] == remotecommand.StreamClose {
			if len(data) != 2 {
				return fmt.Errorf("close message of %d bytes", len(data))
			}
			if w := c.in[data[1]]; w != nil {
				w.Close()
			}
			continue
		}
		number, data := data[0], data[1:]
		if c.base64 {
			number -= '0'
			if data, err = base64.StdEncoding.DecodeString(string(data)); err != nil {
				return fmt.Errorf("channel %d: %w", number, err)
			}
		}
		if w := c.in[number]; w != nil && len(data) > 0 {
			// Blocks until the data is taken, which is how a command slows its
			// client down. An error is that nobody will take it any more.
			w.Write(data)
		}
	}
}

// send writes one message.
func (c *channels) send(number byte, data []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.base64 {
		text := append([]byte{'0' + number}, base64.StdEncoding.EncodeToString(data)...)
		return c.ws.WriteMessage(websocket.TextMessage, text)
	}
	message := make([]byte, 1+len(data))
	message[0] = number
	copy(message[1:], data)
	return c.ws.WriteMessage(websocket.BinaryMessage, message)
}

// writer returns a channel to the client.
func (c *channels) writer(number byte) io.Writer { return channelWriter{c, number} }

type channelWriter struct {
	c      *channels
	number byte
}

func (w channelWriter) Write(p []byte) (int, error) {
	if err := w.c.send(w.number, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// closePipes ends what is read from the client: receive must not wait for a
// reader, nor a reader for receive, once the session is over.
func (c *channels) closePipes() {
	for _, r := range c.pipes {
		r.Close()
	}
}

// finish says goodbye and waits for the client to close, so that it loses
// nothing of what was written, and for receive.
func (c *channels) finish(ctx context.Context, conn *conn) {
	c.closePipes()
	goodbye := websocket.FormatCloseMessage(websocket.CloseNormalClosure, "")
	c.ws.WriteControl(websocket.CloseMessage, goodbye, time.Now().Add(lingerTimeout))
	linger := time.NewTimer(lingerTimeout)
	defer linger.Stop()
	select {
	case <-c.read:
	case <-linger.C:
	case <-ctx.Done():
	}
	conn.Close()
	<-c.read
}

// execWebSocket serves exec and attach over a WebSocket.
func (s *session) execWebSocket(ctx context.Context, c client) error {
	ws, err := upgradeWebSocket(c, []string{protocolV5, protocolV4, protocolV4Base64, protocolV1, protocolV1Base64})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ch := newChannels(ws)
	st, first := Streams{Terminal: s.wants.Terminal}, byte(remotecommand.StreamErr)
	var helpers sync.WaitGroup
	defer helpers.Wait()
	if s.wants.Stderr {
		st.Stderr, first = ch.writer(remotecommand.StreamStdErr), remotecommand.StreamStdErr
	}
	if s.wants.Stdout {
		st.Stdout, first = ch.writer(remotecommand.StreamStdOut), remotecommand.StreamStdOut
	}
	if s.wants.Stdin {
		st.Stdin = ch.reader(remotecommand.StreamStdIn)
	}
	if s.wants.Terminal {
		z, in := newSizes(), ch.reader(remotecommand.StreamResize)
		st.Resize = z
		helpers.Go(func() { z.decode(in) })
	}
	helpers.Go(func() {
		defer cancel()
		ch.receive()
	})
	defer ch.finish(ctx, c.conn)
	defer context.AfterFunc(ctx, ch.closePipes)()
	// Browsers wait for a first message before they send.
	if err := ch.send(first, nil); err != nil {
		return fmt.Errorf("greet: %w", err)
	}
	code, runErr := s.run(ctx, st)
	v4 := strings.HasPrefix(ws.Subprotocol(), "v")
	return errors.Join(runErr, statusOf(code, runErr).write(ch.writer(remotecommand.StreamErr), v4))
}
