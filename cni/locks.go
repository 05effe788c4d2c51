package cni

import (
	"context"
	"io"
	"regexp"
	"strings"
	"sync"

	"github.com/sirupsen/logrus"

	"noded.dev/noded/internal/kind"
)

// keyedLocks is one lock per pod, which a context can stop waiting for.
type keyedLocks struct {
	mu   sync.Mutex
	held map[string]*keyedLock
}

type keyedLock struct {
	token chan struct{} // holds one value while locked
	users int           // holder and waiters
}

// lock waits for key to be free and returns the function that frees it.
func (k *keyedLocks) lock(ctx context.Context, key string) (unlock func(), err error) {
	k.mu.Lock()
	if k.held == nil {
		k.held = map[string]*keyedLock{}
	}
	l := k.held[key]
	if l == nil {
		l = &keyedLock{token: make(chan struct{}, 1)}
		k.held[key] = l
	}
	l.users++
	k.mu.Unlock()
	leave := func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		if l.users--; l.users == 0 {
			delete(k.held, key)
		}
	}
	select {
	case l.token <- struct{}{}:
		return func() { <-l.token; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}

// validPodID is what CNI takes as a container id (spec, "Parameters") and what
// is safe in file names.
var validPodID = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$`)

func (p Pod) validate() error {
	if !validPodID.MatchString(p.ID) {
		return kind.Errorf(kind.Invalid, "pod id %q: letters, digits, dot, dash and underscore, at most 128", p.ID)
	}
	// CNI_ARGS is a list of KEY=VALUE with semicolons between.
	for _, s := range []string{p.Name, p.Namespace, p.UID} {
		if strings.ContainsAny(s, ";\x00\n") {
			return kind.Errorf(kind.Invalid, "pod name, namespace or uid %q holds a character that CNI cannot pass on", s)
		}
	}
	return nil
}

func discard() logrus.FieldLogger {
	l := logrus.New()
	l.SetOutput(io.Discard)
	return l
}
