package imagestore

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"noded.dev/noded/imagestore/registry"
	"noded.dev/noded/internal/kind"
	"noded.dev/noded/internal/steps"
)

// pull is one pull under way, wanted by one or more callers.
//
//	           every layer            all durable, record written
//	resolving ------------> pulling ------------------------------> done
//	    |                      |
//	    +----------------------+-----> error, or the last caller left
type pull struct {
	key       string
	ref       registry.Reference
	namespace string // whose stored credentials count
	started   time.Time
	waiters   int // guarded by Store.mu
	cancel    context.CancelCauseFunc
	done      chan struct{}

	// Set before done is closed.
	image Image
	err   error

	session atomic.Pointer[registry.Session]
	layers  atomic.Pointer[[]*pulledLayer] // nil until the manifest is read
	ended   atomic.Bool
}

// pulledLayer is one distinct layer of a pull.
type pulledLayer struct {
	hex  string // of the diff id, or what stands for it in an artifact
	desc ocispec.Descriptor
	as   form
	job  *job // nil: it was there already

	// The pull is a user of the layer itself and no longer of the job.
	// Guarded by Store.mu.
	ready bool
}

var errAllLeft = errors.New("nobody waits for this pull any more")

// progressEvery is how often a caller's progress function is called.
const progressEvery = 100 * time.Millisecond

// Pull makes an image available: it returns when its layers are verified,
// durable and listed. Equal pulls share the work, which ends when the last
// caller's context does.
func (s *Store) Pull(ctx context.Context, ref string, o PullOptions) (Image, error) {
	parsed, err := registry.ParseReference(ref)
	if err != nil {
		return Image{}, err
	}
	auth, err := o.Auth.convert()
	if err != nil {
		return Image{}, err
	}
	p, err := s.join(ctx, parsed, auth, o.Namespace)
	if err != nil {
		return Image{}, err
	}
	defer s.leave(p)
	var tick <-chan time.Time
	if o.Progress != nil {
		t := time.NewTicker(progressEvery)
		defer t.Stop()
		tick = t.C
	}
	for {
		select {
		case <-tick:
			o.Progress(p.progress())
		case <-ctx.Done():
			return Image{}, fmt.Errorf("pull %s: %w", parsed, context.Cause(ctx))
		case <-p.done:
			if o.Progress != nil {
				o.Progress(p.progress())
			}
			return p.image, p.err
		}
	}
}

// join finds the pull that a caller can share, or starts it. Credentials are
// part of what makes pulls equal: nobody gets an image by another's.
func (s *Store) join(ctx context.Context, ref registry.Reference, auth *registry.Auth, namespace string) (*pull, error) {
	key := ref.String()
	if s.client.OwnCredentials(namespace) {
		key += " for " + namespace
	} else {
		namespace = ""
	}
	if auth != nil {
		sum := sha256.Sum256(fmt.Appendf(nil, "%q %q %q %q %q", auth.Username, auth.Password, auth.IdentityToken, auth.RegistryToken, auth.ServerAddress))
		key += " " + hex.EncodeToString(sum[:])
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.isClosing() {
		return nil, kind.Errorf(kind.Unavailable, "pull %s: the image store is closed", ref)
	}
	if p := s.pulls[key]; p != nil {
		p.waiters++
		return p, nil
	}
	own, cancel := s.ownContextLocked(ctx)
	p := &pull{key: key, ref: ref, started: time.Now(), namespace: namespace, waiters: 1, cancel: cancel, done: make(chan struct{})}
	s.pulls[key] = p
	s.publishLocked()
	s.workers.Go(func() { s.run(own, p, auth) })
	return p, nil
}

// leave takes a caller away; without callers the pull is cancelled, and a
// later caller starts a new one.
func (s *Store) leave(p *pull) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.waiters--; p.waiters > 0 {
		return
	}
	if s.pulls[p.key] == p {
		delete(s.pulls, p.key)
		s.publishLocked()
	}
	p.cancel(errAllLeft)
}

func (s *Store) run(ctx context.Context, p *pull, auth *registry.Auth) {
	p.err = steps.Guard(s.panicked, func() (err error) {
		p.image, err = s.pull(ctx, p, auth)
		return err
	})
	if p.err != nil && s.isClosing() {
		p.err = kind.Errorf(kind.Unavailable, "pull %s: the image store is closing: %w", p.ref, p.err)
	}
	s.mu.Lock()
	if s.pulls[p.key] == p {
		delete(s.pulls, p.key)
		s.publishLocked()
	}
	s.mu.Unlock()
	p.ended.Store(true)
	close(p.done)
}

// panicked notes that an image has found a bug; it costs only its own pull.
func (s *Store) panicked(stack string) { s.log.WithField("stack", stack).Error("pull panicked") }

// pull does the work of a pull.
func (s *Store) pull(ctx context.Context, p *pull, auth *registry.Auth) (Image, error) {
	if err := s.policy.Load().For(p.ref.Name()).Refuses(); err != nil {
		return Image{}, fmt.Errorf("pull %s: %w", p.ref, err) // without asking anybody
	}
	session, err := s.client.Session(p.ref, auth, p.namespace)
	if err != nil {
		return Image{}, fmt.Errorf("pull %s: %w", p.ref, err)
	}
	defer session.Close()
	p.session.Store(session)
	r, err := session.Resolve(ctx, registry.ThisNode())
	if err != nil {
		return Image{}, fmt.Errorf("pull %s: %w", p.ref, err)
	}
	if err := s.permit(ctx, session, p.ref, r); err != nil {
		return Image{}, fmt.Errorf("pull %s: %w", p.ref, err)
	}
	if img, found, err := s.again(p.ref, r); found || err != nil {
		return img, err
	}
	layers, err := s.layersOf(r)
	if err != nil {
		return Image{}, fmt.Errorf("pull %s: %w", p.ref, err)
	}
	s.hold(ctx, session, layers)
	p.layers.Store(&layers)
	img, err := s.finish(ctx, p.ref, r, layers)
	// On a full disk nothing is kept for later.
	s.release(layers, err != nil && !kind.Is(err, kind.Exhausted))
	if err != nil {
		return Image{}, fmt.Errorf("pull %s: %w", p.ref, err)
	}
	return img, nil
}

// finish waits for the layers and makes the image visible.
func (s *Store) finish(ctx context.Context, ref registry.Reference, r *registry.Resolved, layers []*pulledLayer) (Image, error) {
	for _, l := range layers {
		if err := l.wait(ctx); err != nil {
			return Image{}, err
		}
	}
	return s.commit(ref, r, layers)
}

// form is how a blob becomes a layer.
type form struct {
	loose bool   // of an artifact, which names no diff id
	file  string // the one file that the blob is, by its path; "": it is a tar
}

func (s *Store) layersOf(r *registry.Resolved) ([]*pulledLayer, error) {
	if r.Artifact != "" {
		return artifactLayers(r.Layers, s.limits)
	}
	return distinct(r), nil
}

// distinct lists an image's layers once each, topmost first. A layer that
// occurs again lower down changes nothing: what it holds is on top already.
func distinct(r *registry.Resolved) []*pulledLayer {
	var list []*pulledLayer
	seen := map[string]*pulledLayer{}
	for i := len(r.Layers) - 1; i >= 0; i-- {
		id := r.Image.RootFS.DiffIDs[i].Encoded()
		if l := seen[id]; l != nil {
			if l.desc.Digest != r.Layers[i].Digest && l.desc.Size > r.Layers[i].Size {
				l.desc = r.Layers[i] // the same content, compressed better
			}
			continue
		}
		l := &pulledLayer{hex: id, desc: r.Layers[i]}
		seen[id] = l
		list = append(list, l)
	}
	return list
}

// progress is how far the pull has come; it takes no lock.
func (p *pull) progress() Progress {
	g := Progress{Reference: p.ref.String(), Started: p.started, Status: "resolving"}
	if session := p.session.Load(); session != nil {
		g.Host = session.Host()
	}
	if layers := p.layers.Load(); layers != nil {
		g.Status, g.Layers = "pulling", len(*layers)
		for _, l := range *layers {
			g.Total += l.desc.Size
			done, ready := l.progress()
			g.Done += done
			if ready {
				g.Ready++
			}
		}
	}
	if p.ended.Load() {
		g.Status = "done"
		if p.err != nil {
			g.Status = p.err.Error()
		}
	}
	return g
}

// convert checks the credentials of a request.
func (a *Auth) convert() (*registry.Auth, error) {
	if a == nil {
		return nil, nil
	}
	r := &registry.Auth{
		Username: a.Username, Password: a.Password, ServerAddress: a.ServerAddress,
		IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken,
	}
	if r.Username == "" && r.Password == "" && a.Encoded != "" {
		var err error
		if r.Username, r.Password, err = registry.DecodeAuth(a.Encoded); err != nil {
			return nil, err
		}
	}
	return r, nil
}
