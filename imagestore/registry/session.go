package registry

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"noded.dev/noded/internal/kind"
)

// Session is one pull's view of a registry: its hosts in order, credentials
// and the tokens obtained. It is safe for concurrent use. Close ends it.
type Session struct{ session }

type session struct {
	client  *Client
	ref     Reference
	hosts   []*hostState
	current atomic.Pointer[string]
	mu      sync.Mutex
	tokens  *http.Transport // to token servers that are not the registry
}

// hostState is a host with what this session learnt of it.
type hostState struct {
	*host
	transport *http.Transport
	auth      Auth
	problem   error // with stored credentials that may have been meant for it
	mu        sync.Mutex
	token     string // Authorization header that worked, or was just obtained
}

// Session reads the registry's configuration and makes a session. auth is
// what the caller brings for the reference's registry; nil falls back to the
// credentials of the pod's namespace ("" none), and then to the node's.
func (c *Client) Session(ref Reference, auth *Auth, namespace string) (*Session, error) {
	hosts, err := findHosts(c.opts.Dirs, ref.Domain)
	if err != nil {
		return nil, err
	}
	if auth != nil {
		if err := auth.check(); err != nil {
			return nil, err
		}
	}
	stored := c.stored(namespace)
	s := &Session{session{client: c, ref: ref}}
	for _, h := range hosts {
		chosen, problem := chooseAuth(ref, h, auth, stored)
		s.hosts = append(s.hosts, &hostState{
			host:      h,
			transport: newTransport(h, c.opts.StallWindow),
			auth:      chosen,
			problem:   problem,
		})
	}
	return s, nil
}

// Close closes the session's connections.
func (s *session) Close() {
	for _, h := range s.hosts {
		h.transport.CloseIdleConnections()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tokens != nil {
		s.tokens.CloseIdleConnections()
	}
}

// Host is the host that answered last; "" before the first answer.
func (s *session) Host() string {
	if p := s.current.Load(); p != nil {
		return *p
	}
	return ""
}

func (s *session) tokenTransport(h *hostState) *http.Transport {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tokens == nil {
		plain := upstreamHost("https", h.url.Host, nil)
		s.tokens = newTransport(plain, s.client.opts.StallWindow)
	}
	return s.tokens
}

// open does a request at one host, with authorization where it is asked for.
// The response's status is 200 or 206.
func (s *session) open(ctx context.Context, h *hostState, r request) (*http.Response, error) {
	resp, err := s.authorized(ctx, h, r)
	if err != nil {
		return nil, h.refused(err)
	}
	return resp, nil
}

func (s *session) authorized(ctx context.Context, h *hostState, r request) (*http.Response, error) {
	h.mu.Lock()
	r.token = h.token
	h.mu.Unlock()
	for tries := 0; ; tries++ {
		resp, err := s.send(ctx, h, r)
		if err != nil {
			return nil, err
		}
		if resp.StatusCode == http.StatusOK || resp.StatusCode == http.StatusPartialContent {
			name := h.name()
			s.current.Store(&name)
			return resp, nil
		}
		// A token may have run out, so that one fresh try is worth it even
		// where one was sent.
		if resp.StatusCode != http.StatusUnauthorized || tries > 0 {
			return nil, replyError(resp)
		}
		if resp.Request == nil || !sameOrigin(resp.Request.URL, h.url) {
			return nil, replyError(resp) // a redirect's target gets no credentials
		}
		r.token, err = s.authorize(ctx, h, resp)
		e := replyError(resp)
		if errors.Is(err, errNoCredentials) {
			return nil, e
		}
		if err != nil {
			return nil, err
		}
		h.mu.Lock()
		h.token = r.token
		h.mu.Unlock()
	}
}

// attempts collects what each host said, for the error of a pull.
type attempts struct {
	list []string
	last error
}

func (a *attempts) add(h *hostState, err error) {
	a.list = append(a.list, h.name()+": "+err.Error())
	a.last = err
}

// error is nil's opposite: call it when no host is left.
func (a *attempts) error(what string) error {
	if a.last == nil {
		return kind.Errorf(kind.Precondition, "%s: no host of the registry is configured for this", what)
	}
	const most = 8
	list := a.list
	if len(list) > most {
		list = append(list[:most:most], fmt.Sprintf("and %d more", len(a.list)-most))
	}
	return &hostsError{text: what + ": " + strings.Join(list, "; "), kind: kindOf(a.last), last: a.last}
}

// hostsError lists the attempts and counts as the last of them.
type hostsError struct {
	text string
	kind kind.Kind
	last error
}

func (e *hostsError) Error() string { return e.text }
func (e *hostsError) Unwrap() error { return kind.Wrap(e.kind, e.last) }

// kindOf classifies one host's failure: what is neither an answer nor the
// caller's own doing is an unreachable registry.
func kindOf(err error) kind.Kind {
	var status *statusError
	if k := kind.Of(err); k != kind.Internal && k != kind.Deadline {
		return k
	}
	if errors.As(err, &status) {
		return status.kind()
	}
	return kind.Unavailable
}

// worthRetry reports whether the same host may do better in a moment.
func worthRetry(err error) bool {
	var status *statusError
	if errors.As(err, &status) {
		return status.transient()
	}
	// HTTP/2 errors have no type outside the standard library.
	return errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) || isReset(err) || strings.HasPrefix(err.Error(), "http2: ")
}

// pause waits before try n (from 1) of something, longer each time and never
// in step with the node's other pulls, or as long as the registry asked.
func pause(ctx context.Context, n int, err error) error {
	d := time.Duration(1<<min(n-1, 5)) * 200 * time.Millisecond
	d = d/2 + rand.N(d)
	var status *statusError
	if errors.As(err, &status) && status.after > 0 {
		d = min(status.after, 30*time.Second)
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}

// wrongScheme reports whether a failure means that the host speaks TLS where
// plain HTTP was tried, or the other way round.
func wrongScheme(err error) bool {
	var record tls.RecordHeaderError
	var status *statusError
	return errors.As(err, &record) || errors.As(err, &status) && status.status == http.StatusBadRequest ||
		err != nil && strings.Contains(err.Error(), "malformed HTTP response")
}

// speaks leaves out the scheme that a host turned out not to use.
func (s *session) speaks(h *hostState) bool {
	answered := s.Host()
	return answered == h.name() || !h.other && !s.otherAnswered()
}

// otherAnswered reports whether the registry was reached by its other scheme.
func (s *session) otherAnswered() bool {
	answered := s.Host()
	for _, h := range s.hosts {
		if h.other && h.name() == answered {
			return true
		}
	}
	return false
}

// each does f against the hosts in order until one succeeds, each with a few
// tries if its failure looks passing.
func (s *session) each(ctx context.Context, what string, fit func(*host) bool, f func(*hostState) error) error {
	var a attempts
	const tries = 3
	for _, h := range s.hosts {
		if !fit(h.host) || h.other && !wrongScheme(a.last) && s.Host() != h.name() {
			continue
		}
		for n := 1; ; n++ {
			err := f(h)
			if err == nil {
				return nil
			}
			if ctx.Err() != nil {
				return fmt.Errorf("%s: %w", what, context.Cause(ctx))
			}
			if n < tries && worthRetry(err) {
				if err := pause(ctx, n, err); err != nil {
					return fmt.Errorf("%s: %w", what, err)
				}
				continue
			}
			a.add(h, err)
			break
		}
	}
	return a.error(what)
}

var plainCode = regexp.MustCompile(`^[A-Z][A-Z_]{1,40}$`)

// errorCode finds the code in a registry's error body (distribution-spec,
// "Error Codes").
func errorCode(body []byte) string {
	var reply struct {
		Errors []struct {
			Code string `json:"code"`
		} `json:"errors"`
	}
	if json.Unmarshal(body, &reply) != nil || len(reply.Errors) == 0 || !plainCode.MatchString(reply.Errors[0].Code) {
		return ""
	}
	return reply.Errors[0].Code
}
