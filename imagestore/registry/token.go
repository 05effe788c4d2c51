package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"golang.org/x/net/publicsuffix"

	"noded.dev/noded/internal/kind"
)

// challenge is one scheme of a WWW-Authenticate header (RFC 9110, 11.6.1).
type challenge struct {
	scheme string // lower case
	params map[string]string
}

// authorize answers a 401: it returns the Authorization header to try next.
func (s *session) authorize(ctx context.Context, h *hostState, resp *http.Response) (string, error) {
	var basic, bearer *challenge
	for _, header := range resp.Header.Values("WWW-Authenticate") {
		for _, c := range parseChallenges(header) {
			switch {
			case c.scheme == "basic" && basic == nil:
				basic = &c
			case c.scheme == "bearer" && bearer == nil:
				bearer = &c
			}
		}
	}
	switch {
	case bearer != nil && h.auth.RegistryToken != "":
		return "Bearer " + h.auth.RegistryToken, nil
	case bearer != nil:
		token, err := s.fetchToken(ctx, h, bearer)
		if err != nil {
			return "", err
		}
		return "Bearer " + token, nil
	case basic != nil && h.auth.Username != "":
		return h.auth.basic(), nil
	}
	return "", errNoCredentials
}

var errNoCredentials = errors.New("credentials are needed and there are none")

// fetchToken gets a bearer token as the distribution project's token
// authentication specifies: GET with basic credentials, or POST with a refresh
// token (its OAuth2 form).
func (s *session) fetchToken(ctx context.Context, h *hostState, c *challenge) (string, error) {
	realm, err := s.checkRealm(h, c.params["realm"])
	if err != nil {
		return "", kind.Errorf(kind.Unauthenticated, "token server: %w", err)
	}
	scope := c.params["scope"]
	if scope == "" {
		scope = "repository:" + s.ref.Path + ":pull"
	}
	req, err := tokenRequest(ctx, realm, h.auth, c.params["service"], scope)
	if err != nil {
		return "", err
	}
	transport := h.transport
	if realm.Host != h.url.Host {
		// The registry's client certificate and skip_verify are for the
		// registry; its token server must prove itself as any other.
		transport = s.tokenTransport(h)
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return "", fmt.Errorf("token server %s: %w", realm.Host, bare(err))
	}
	if resp.StatusCode != http.StatusOK {
		// A redirect too: what was sent is credentials, and they go no further.
		e := replyError(resp)
		return "", kind.Errorf(tokenKind(e), "token server %s: %w", realm.Host, e)
	}
	defer resp.Body.Close()
	data, err := readAll(resp.Body, s.client.opts.Limits.TokenBytes, "the token server's reply", "token_bytes")
	if err != nil {
		return "", err
	}
	var reply struct {
		Token       string `json:"token"`
		AccessToken string `json:"access_token"`
	}
	if err := json.Unmarshal(data, &reply); err != nil {
		return "", kind.Errorf(kind.Unauthenticated, "token server %s: reply is not valid JSON", realm.Host)
	}
	token := reply.Token
	if token == "" {
		token = reply.AccessToken
	}
	if token == "" || strings.ContainsAny(token, "\r\n\x00 ") {
		return "", kind.Errorf(kind.Unauthenticated, "token server %s: reply has no usable token", realm.Host)
	}
	return token, nil
}

// tokenKind tells bad credentials from a token server that is unwell.
func tokenKind(e *statusError) kind.Kind {
	if e.status >= 400 && e.status < 500 && !e.transient() && e.status != http.StatusForbidden {
		return kind.Unauthenticated
	}
	return e.kind()
}

func tokenRequest(ctx context.Context, realm *url.URL, a Auth, service, scope string) (*http.Request, error) {
	at := *realm
	form := url.Values{}
	if service != "" {
		form.Set("service", service)
	}
	if a.IdentityToken != "" {
		form.Set("grant_type", "refresh_token")
		form.Set("refresh_token", a.IdentityToken)
		form.Set("client_id", userAgent)
		form.Set("scope", scope)
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, at.String(), strings.NewReader(form.Encode()))
		if err != nil {
			return nil, errors.New("token server: address is malformed")
		}
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		req.Header.Set("User-Agent", userAgent)
		return req, nil
	}
	query := at.Query()
	for k, v := range form {
		query[k] = v
	}
	for _, sc := range strings.Fields(scope) {
		query.Add("scope", sc)
	}
	at.RawQuery = query.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at.String(), nil)
	if err != nil {
		return nil, errors.New("token server: address is malformed")
	}
	if a.Username != "" {
		req.Header.Set("Authorization", a.basic())
	}
	req.Header.Set("User-Agent", userAgent)
	return req, nil
}

// checkRealm decides whether a registry may send us, and our credentials, to
// the token server it names. The realm comes from whoever answered, so it is
// held to: https, or plain http only where the registry itself is plain http
// at that same host or on this machine; nothing local unless the registry is
// local; and credentials only to the registry's own host, one below the same
// registrable domain, or one the configuration allows.
func (s *session) checkRealm(h *hostState, realm string) (*url.URL, error) {
	u, err := url.Parse(realm)
	if err != nil || u.Host == "" || u.User != nil || u.Scheme != "https" && u.Scheme != "http" {
		return nil, errors.New("its address is not an http or https address")
	}
	own := u.Host == h.url.Host
	switch {
	case u.Scheme == "http" && h.url.Scheme != "http":
		return nil, fmt.Errorf("%s is plain http, the registry is not", clip(u.Host))
	case u.Scheme == "http" && !own && !(loopbackName(u.Host) && loopbackName(h.url.Host)):
		return nil, fmt.Errorf("%s is plain http and not the registry's own host", clip(u.Host))
	case !own && localName(u.Hostname()) && !localName(h.url.Hostname()):
		return nil, fmt.Errorf("%s is local to this machine, the registry is not", clip(u.Host))
	case !h.auth.empty() && !own && !s.trustedRealm(h, u):
		return nil, fmt.Errorf("%s is not the registry's domain; credentials are not sent there unless it is configured as a token host", clip(u.Host))
	}
	return u, nil
}

func (s *session) trustedRealm(h *hostState, realm *url.URL) bool {
	if loopbackName(realm.Host) && loopbackName(h.url.Host) {
		return true
	}
	if slices.ContainsFunc(s.client.opts.TokenHosts, func(host string) bool { return strings.EqualFold(host, realm.Host) }) {
		return true
	}
	a, errA := publicsuffix.EffectiveTLDPlusOne(strings.ToLower(h.url.Hostname()))
	b, errB := publicsuffix.EffectiveTLDPlusOne(strings.ToLower(realm.Hostname()))
	return errA == nil && errB == nil && a == b && !localName(realm.Hostname())
}

// parseChallenges reads a WWW-Authenticate value: schemes, each with
// comma-separated name=value parameters, values optionally quoted.
func parseChallenges(header string) []challenge {
	var found []challenge
	rest := header
	for len(found) < 8 {
		rest = strings.TrimLeft(rest, " \t,")
		word, after := token(rest)
		if word == "" {
			return found
		}
		c := challenge{scheme: strings.ToLower(word), params: map[string]string{}}
		rest = after
		for len(c.params) < 16 {
			name, value, after, ok := param(rest)
			if !ok {
				break
			}
			if _, seen := c.params[name]; !seen {
				c.params[name] = value
			}
			rest = after
		}
		found = append(found, c)
	}
	return found
}

func param(s string) (name, value, rest string, ok bool) {
	s = strings.TrimLeft(s, " \t,")
	name, s = token(s)
	s = strings.TrimLeft(s, " \t")
	if name == "" || !strings.HasPrefix(s, "=") {
		return "", "", "", false
	}
	s = strings.TrimLeft(s[1:], " \t")
	if !strings.HasPrefix(s, `"`) {
		value, s = token(s)
		return strings.ToLower(name), value, s, true
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '\\':
			if i++; i < len(s) {
				b.WriteByte(s[i])
			}
		case '"':
			return strings.ToLower(name), b.String(), s[i+1:], true
		default:
			b.WriteByte(s[i])
		}
	}
	return "", "", "", false
}

// token cuts an RFC 9110 token, also taking what servers put into unquoted
// values against the rules.
func token(s string) (string, string) {
	i := strings.IndexAny(s, " \t,=\"")
	if i < 0 {
		return s, ""
	}
	return s[:i], s[i:]
}
