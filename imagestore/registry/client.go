// Package registry reads images from OCI registries: which hosts serve a
// registry, how to prove who asks, manifests, and blobs as streams that
// survive broken and stalled connections.
package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/sirupsen/logrus"

	"noded.dev/noded/imagestore/limit"
	"noded.dev/noded/internal/kind"
)

// Options configures a Client.
type Options struct {
	Dirs         []string // hosts.toml folders; the first that knows a registry counts
	DockerConfig string   // path of Docker's config.json; "" none
	NamespaceDir string   // folder of such files by namespace; "" none
	TokenHosts   []string // further hosts that credentials may go to as token servers
	Limits       limit.Limits
	MinRate      int64         // bytes per second below which a transfer counts as stalled
	StallWindow  time.Duration // over which MinRate is measured, and for which a host may be silent
	Log          logrus.FieldLogger
}

const (
	dialTimeout = 15 * time.Second
	userAgent   = "noded"
)

// Client makes the sessions of pulls.
type Client struct{ opts Options }

// New makes a client.
func New(o Options) *Client {
	o.Limits = o.Limits.WithDefaults()
	if o.MinRate == 0 {
		o.MinRate = 1 << 10
	}
	if o.StallWindow == 0 {
		o.StallWindow = time.Minute
	}
	return &Client{opts: o}
}

// newTransport makes a host's transport. Each session has its own, because
// certificates and pins are read from disk anew for each pull; idle
// connections are closed when the session ends.
func newTransport(h *host, window time.Duration) *http.Transport {
	timeout := h.dial
	if timeout == 0 {
		timeout = dialTimeout
	}
	dialer := &net.Dialer{Timeout: timeout, KeepAlive: 30 * time.Second}
	if !localName(h.url.Hostname()) {
		dialer.Control = refuseLocal
	}
	return &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           dialer.DialContext,
		TLSClientConfig:       h.tls,
		TLSHandshakeTimeout:   timeout,
		ResponseHeaderTimeout: window,
		MaxIdleConnsPerHost:   8,
		IdleConnTimeout:       30 * time.Second,
		ForceAttemptHTTP2:     true,
		DisableCompression:    true, // blobs are hashed as they are stored
		ReadBufferSize:        64 << 10,
	}
}

// refuseLocal keeps a name that a remote registry sends us to (a redirect, a
// token server) from turning out, by DNS, to be this machine or the cloud's
// metadata service.
func refuseLocal(_, address string, _ syscall.RawConn) error {
	ip, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil
	}
	if a := ip.Addr().Unmap(); a.IsLinkLocalUnicast() || a.IsUnspecified() {
		return fmt.Errorf("address %s is local to this machine", a)
	}
	return nil
}

// localName reports whether a host name without port is, by its letters, on
// this machine or its own link or private network.
func localName(name string) bool {
	if loopbackName(name) {
		return true
	}
	ip, err := netip.ParseAddr(strings.Trim(name, "[]"))
	if err != nil {
		return false
	}
	ip = ip.Unmap()
	return ip.IsPrivate() || ip.IsLinkLocalUnicast() || ip.IsUnspecified()
}

// statusError is a reply that is not what was asked for.
type statusError struct {
	status int
	code   string // the registry's own error code, if it sent one
	after  time.Duration
}

func (e *statusError) Error() string {
	text := fmt.Sprintf("%d %s", e.status, http.StatusText(e.status))
	if e.code != "" {
		text += " (" + e.code + ")"
	}
	return text
}

// kind says what a status means to the caller.
func (e *statusError) kind() kind.Kind {
	switch {
	case e.status == http.StatusUnauthorized:
		return kind.Unauthenticated
	case e.status == http.StatusForbidden:
		return kind.PermissionDenied
	case e.status == http.StatusNotFound:
		return kind.NotFound
	}
	return kind.Unavailable
}

func (e *statusError) transient() bool {
	return e.status == http.StatusTooManyRequests || e.status >= 500 && e.status != http.StatusNotImplemented || e.status == http.StatusRequestTimeout
}

// request is one GET to a host, following redirects.
type request struct {
	path   string // below the host's API root
	query  url.Values
	accept []string
	from   int64 // first byte wanted
	token  string
}

// send does the request and the redirects, without trying again. Credentials
// and the configured headers go to the host itself only: never to where a
// redirect leads, not even when it leads back.
func (s *session) send(ctx context.Context, h *hostState, r request) (*http.Response, error) {
	at := *h.url
	at.Path += r.path
	query := r.query
	if s.ref.Domain != h.url.Host && !(s.ref.Domain == "docker.io" && h.upstream) {
		if query == nil {
			query = url.Values{}
		}
		query.Set("ns", s.ref.Domain) // how mirrors that serve many registries know which
	}
	at.RawQuery = query.Encode()
	next, home := &at, true
	for hops := 0; ; hops++ {
		resp, err := s.get(ctx, h, next, home, r)
		if err != nil {
			return nil, err
		}
		location := resp.Header.Get("Location")
		if resp.StatusCode < 300 || resp.StatusCode >= 400 || location == "" {
			return resp, nil
		}
		discard(resp)
		if hops == s.client.opts.Limits.Redirects {
			return nil, limit.Error(kind.Unavailable, "a chain of redirects", "redirects", hops)
		}
		to, err := next.Parse(location)
		if err != nil {
			return nil, errors.New("redirect to a malformed address")
		}
		if err := checkRedirect(next, to); err != nil {
			return nil, err
		}
		home = home && sameOrigin(to, h.url)
		next = to
	}
}

// get does one exchange.
func (s *session) get(ctx context.Context, h *hostState, at *url.URL, home bool, r request) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at.String(), nil)
	if err != nil {
		return nil, errors.New("address is malformed")
	}
	if home {
		for k, v := range h.header {
			req.Header[k] = v
		}
		if r.token != "" {
			req.Header.Set("Authorization", r.token)
		}
	}
	req.Header.Set("User-Agent", userAgent)
	if len(r.accept) > 0 {
		req.Header.Set("Accept", strings.Join(r.accept, ", ")) // one line: some registries read only the first
	}
	if r.from > 0 {
		req.Header.Set("Range", "bytes="+strconv.FormatInt(r.from, 10)+"-")
	}
	resp, err := h.transport.RoundTrip(req)
	if err != nil {
		return nil, bare(err)
	}
	return resp, nil
}

func sameOrigin(a, b *url.URL) bool { return a.Scheme == b.Scheme && a.Host == b.Host }

// checkRedirect refuses a step down from TLS, and a step from elsewhere onto
// this machine or its link, where only this machine's own services are meant
// to be reached.
func checkRedirect(from, to *url.URL) error {
	to.User = nil
	switch {
	case to.Scheme != "https" && to.Scheme != "http":
		return fmt.Errorf("redirect to scheme %q", clip(to.Scheme))
	case from.Scheme == "https" && to.Scheme == "http":
		return fmt.Errorf("redirect from https to plain http (%s)", clip(to.Host))
	case !localName(from.Hostname()) && localName(to.Hostname()):
		return fmt.Errorf("redirect to an address local to this machine (%s)", clip(to.Host))
	}
	return nil
}

// bare strips the address from an HTTP client's error: it may hold a
// signature or a password.
func bare(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}

// discard ends a response, reading a little so that the connection can be
// used again.
func discard(resp *http.Response) {
	io.CopyN(io.Discard, resp.Body, 4<<10)
	resp.Body.Close()
}

// replyError reads what a registry says went wrong. Only its code is kept:
// the message is free text that may repeat what was sent.
func replyError(resp *http.Response) *statusError {
	defer resp.Body.Close()
	e := &statusError{status: resp.StatusCode}
	if seconds, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && seconds > 0 {
		e.after = time.Duration(min(seconds, 3600)) * time.Second
	}
	data, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return e
	}
	e.code = errorCode(data)
	return e
}

// readAll reads a whole body of at most most bytes.
func readAll(r io.Reader, most int64, what, name string) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, most+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", what, bare(err))
	}
	if int64(len(data)) > most {
		return nil, limit.Error(kind.Exhausted, what, name, most)
	}
	return data, nil
}
