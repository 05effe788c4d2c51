// Package stream serves exec, attach and port-forward sessions over HTTP, with
// SPDY and with WebSockets. It is handed functions, not pods: whoever asks for
// a URL gives the function that runs when a client comes for it.
//
// The protocols are those of Kubernetes: remotecommand v2 to v4 (and v5 over
// WebSockets) and portforward v1.
package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"

	"noded.dev/noded/internal/kind"
)

// Wants says which streams a session has.
type Wants struct {
	Stdin, Stdout, Stderr bool
	Terminal              bool // sizes arrive; there is no stderr
}

// Size is a terminal's size in character cells.
type Size struct{ Width, Height uint16 }

// Streams are one session's streams; nil members are not connected.
type Streams struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Terminal       bool
	Resize         <-chan Size // closed when the client sends no more; nil without Terminal
}

// ExecFunc runs a command until it ends or ctx does (the client is gone, or the
// server closes), and returns its exit code.
type ExecFunc func(ctx context.Context, s Streams) (code int, err error)

// AttachFunc connects to a container until it ends or ctx does.
type AttachFunc func(ctx context.Context, s Streams) error

// ForwardFunc copies between conn and a port until either end is done or ctx is.
type ForwardFunc func(ctx context.Context, port int32, conn io.ReadWriteCloser) error

// Options are what a Server is made of.
type Options struct {
	Addr string        // "127.0.0.1:0"
	Log  *logrus.Entry // must be set
}

// Limits. A session costs its client a token, which only the CRI socket gives
// out; half-open connections cost nothing, so the oldest of them make room.
const (
	maxSessions      = 1024             // running at once
	maxHalfOpen      = 1024             // connections that are not a session (yet)
	headerTimeout    = 10 * time.Second // to send a request
	creationTimeout  = 30 * time.Second // to open a session's streams
	idleTimeout      = 4 * time.Hour    // without a byte in any direction
	lingerTimeout    = 2 * time.Second  // for a client to take what was written and close
	maxRequestHeader = 64 << 10         // bytes
)

// Server serves sessions until it is closed.
type Server struct {
	log      *logrus.Entry
	tokens   *tokens
	http     *http.Server
	listener *listener
	hangups  *hangups
	base     string // "http://127.0.0.1:41245"
	slots    chan struct{}
	creation time.Duration      // creationTimeout; shorter in tests
	closed   atomic.Bool        // no URL is given out any more
	cancel   context.CancelFunc // ends every request's context, and so every session
	done     sync.WaitGroup     // server goroutine and requests
}

// New listens and serves.
func New(o Options) (*Server, error) {
	l, err := listen(o.Addr)
	if err != nil {
		return nil, fmt.Errorf("listen for streams: %w", err)
	}
	hangups, err := newHangups()
	if err != nil {
		l.Close()
		return nil, fmt.Errorf("watch for hangups: %w", err)
	}
	s := &Server{
		log: o.Log, tokens: newTokens(time.Now), listener: l, hangups: hangups,
		base: "http://" + l.Addr().String(), slots: make(chan struct{}, maxSessions), creation: creationTimeout,
	}
	base, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	s.http = &http.Server{
		Handler:           http.HandlerFunc(s.serve),
		BaseContext:       func(net.Listener) context.Context { return base },
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       headerTimeout,
		MaxHeaderBytes:    maxRequestHeader,
		ErrorLog:          log.New(debugLog{o.Log}, "", 0),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, c)
		},
	}
	s.done.Add(1)
	go func() {
		defer s.done.Done()
		if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			o.Log.WithError(err).Error("streaming server ended")
		}
	}()
	return s, nil
}

// Addr is the address the server listens on.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// Close ends every session, and returns when all of them have.
func (s *Server) Close() error {
	s.closed.Store(true)
	s.cancel()
	err := s.http.Close()
	s.done.Wait()
	return errors.Join(err, s.hangups.close())
}

// ExecURL returns a URL that runs run once, within a minute.
func (s *Server) ExecURL(w Wants, run ExecFunc) (string, error) {
	return s.url("exec", &session{wants: w, run: run})
}

// AttachURL returns a URL that runs run once, within a minute.
func (s *Server) AttachURL(w Wants, run AttachFunc) (string, error) {
	return s.url("attach", &session{wants: w, run: func(ctx context.Context, st Streams) (int, error) {
		return 0, run(ctx, st)
	}})
}

// PortForwardURL returns a URL that runs run for every connection of one
// client, that comes within a minute. ports are those of a WebSocket client,
// which cannot name them itself; other clients name a port with each connection.
func (s *Server) PortForwardURL(ports []int32, run ForwardFunc) (string, error) {
	if len(ports) > maxForwards {
		return "", kind.Errorf(kind.Invalid, "%d ports, more than %d", len(ports), maxForwards)
	}
	for _, port := range ports {
		if port < 1 || port > 65535 {
			return "", kind.Errorf(kind.Invalid, "port %d is not within 1-65535", port)
		}
	}
	return s.url("portforward", &session{ports: ports, forward: run})
}

func (s *Server) url(verb string, ses *session) (string, error) {
	if s.closed.Load() {
		return "", kind.Errorf(kind.Unavailable, "streaming server is closed")
	}
	if len(s.slots) == maxSessions {
		return "", kind.Errorf(kind.Exhausted, "%d streaming sessions run already, the most at one time", maxSessions)
	}
	ses.verb, ses.creation = verb, s.creation
	token, err := s.tokens.add(ses)
	if err != nil {
		return "", err
	}
	return s.base + "/" + verb + "/" + token, nil
}

// serve answers one request: a token for one session, once.
func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	s.done.Add(1)
	defer s.done.Done()
	verb, token, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	ses := s.tokens.take(verb, token)
	if ses == nil {
		http.NotFound(w, r)
		return
	}
	if r.Method != http.MethodGet && r.Method != http.MethodPost {
		http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
		return
	}
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	default:
		http.Error(w, fmt.Sprintf("%d streaming sessions run already, the most at one time", maxSessions), http.StatusServiceUnavailable)
		return
	}
	s.runSession(w, r, ses)
}

// runSession gives a session its context, which ends with the client's
// connection, and makes sure that nothing of the connection outlives it.
func (s *Server) runSession(w http.ResponseWriter, r *http.Request, ses *session) {
	c, ok := r.Context().Value(connKey{}).(*conn)
	if !ok {
		http.Error(w, "not a streaming connection", http.StatusInternalServerError)
		return
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	taken := false
	take := func() {
		taken = true
		c.begin(cancel)
		// A session that is over must not wait for a client that neither reads
		// nor closes: its reads and writes end with the connection.
		stop := context.AfterFunc(ctx, func() { c.Close() })
		c.atClose(func() { stop() })
		if err := s.hangups.watch(c, cancel); err != nil {
			s.log.WithError(err).Warn("client's hangup cannot be watched")
		}
	}
	err := ses.serve(ctx, client{w, r, c, take})
	if taken {
		c.Close()
	}
	if err != nil {
		s.log.WithField("session", ses.verb).WithError(err).Debug("session ended")
	}
}

// debugLog takes net/http's remarks on broken clients.
type debugLog struct{ log *logrus.Entry }

func (d debugLog) Write(p []byte) (int, error) {
	d.log.Debug(strings.TrimSpace(string(p)))
	return len(p), nil
}
