package stream

import (
	"container/list"
	"crypto/rand"
	"sync"
	"time"

	"noded.dev/noded/internal/kind"
)

const (
	tokenLife  = time.Minute
	maxPending = 1024 // tokens that no client has come with yet
)

// tokens are the sessions that wait for their client. A token is worth its
// session once, for one verb, for a minute.
type tokens struct {
	now func() time.Time

	mu      sync.Mutex
	pending map[string]*list.Element // of *pending
	oldest  *list.List               // *pending, oldest first
}

type pending struct {
	token   string
	session *session
	expires time.Time
}

func newTokens(now func() time.Time) *tokens {
	return &tokens{now: now, pending: map[string]*list.Element{}, oldest: list.New()}
}

// add returns a new token of at least 128 random bits.
func (t *tokens) add(s *session) (string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.expire()
	if t.oldest.Len() >= maxPending {
		return "", kind.Errorf(kind.Exhausted, "%d streaming URLs wait for their client, the most at one time", maxPending)
	}
	p := &pending{token: rand.Text(), session: s, expires: t.now().Add(tokenLife)}
	t.pending[p.token] = t.oldest.PushBack(p)
	return p.token, nil
}

// take returns the session of a token and forgets it, or returns nil. A token
// that comes with another verb is void too.
func (t *tokens) take(verb, token string) *session {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.expire()
	e := t.pending[token]
	if e == nil {
		return nil
	}
	t.forget(e)
	if s := e.Value.(*pending).session; s.verb == verb {
		return s
	}
	return nil
}

func (t *tokens) expire() {
	now := t.now()
	for e := t.oldest.Front(); e != nil && !e.Value.(*pending).expires.After(now); e = t.oldest.Front() {
		t.forget(e)
	}
}

func (t *tokens) forget(e *list.Element) {
	delete(t.pending, t.oldest.Remove(e).(*pending).token)
}
