package stream

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"time"

	"github.com/gorilla/websocket"
)

// session is what a token stands for.
type session struct {
	verb     string
	creation time.Duration // in which the client has to open its streams

	wants Wants
	run   ExecFunc // exec and attach

	ports   []int32     // of WebSocket port-forwards
	forward ForwardFunc // port-forward
}

// client is who came with the token.
type client struct {
	w    http.ResponseWriter
	r    *http.Request
	conn *conn
	take func() // makes the connection the session's, after the upgrade
}

func (c client) refuse(code int, text string) error {
	http.Error(c.w, text, code)
	return errors.New(text)
}

// serve runs the session in the protocol that the client asks for. When it
// returns, all its goroutines have.
func (s *session) serve(ctx context.Context, c client) error {
	ws := websocket.IsWebSocketUpgrade(c.r)
	switch {
	case s.forward != nil && ws:
		return s.forwardWebSocket(ctx, c)
	case s.forward != nil:
		return s.forwardSPDY(ctx, c)
	case ws:
		return s.execWebSocket(ctx, c)
	}
	return s.execSPDY(ctx, c)
}

// maxResize bounds one terminal size message, in bytes.
const maxResize = 1 << 10

// sizes passes terminal sizes on to a command. Only the newest counts, so a
// command that does not take them holds up nobody.
type sizes chan Size

func newSizes() sizes { return make(sizes, 1) }

// decode reads sizes as JSON until in ends. After something that is not a size
// it only takes what comes, so that the other streams go on.
func (z sizes) decode(in io.Reader) {
	defer io.Copy(io.Discard, in)
	defer close(z)
	limited := &io.LimitedReader{R: in}
	d := json.NewDecoder(limited)
	for {
		// What the decoder has buffered counts twice at most.
		limited.N = maxResize
		var size Size
		if d.Decode(&size) != nil {
			return
		}
		z.put(size)
	}
}

// put replaces a size that nobody took. There is one writer, so the second
// attempt finds room.
func (z sizes) put(size Size) {
	select {
	case z <- size:
		return
	default:
	}
	select {
	case <-z:
	default:
	}
	z <- size
}
