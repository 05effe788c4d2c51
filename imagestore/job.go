package imagestore

import (
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"noded.dev/noded/imagestore/layer"
	"noded.dev/noded/imagestore/registry"
	"noded.dev/noded/internal/kind"
	"noded.dev/noded/internal/steps"
)

// job makes one layer in the staging folder, for all pulls that need it.
type job struct {
	hex    string
	as     form
	users  int // pulls; guarded by Store.mu
	cancel context.CancelCauseFunc
	done   chan struct{}
	count  layer.Count

	// Set before done is closed.
	dir  string // in the staging folder: fs and meta.json
	meta layer.Meta
	err  error

	published bool // moved to the layers folder; guarded by Store.mu
}

// hold makes sure that each layer is there, is being made, or is begun now,
// and stays until release.
func (s *Store) hold(ctx context.Context, session *registry.Session, layers []*pulledLayer) {
	slots := make(chan struct{}, s.opts.MaxLayersAtOnce)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range layers {
		if state := s.layers[l.hex]; state != nil {
			state.refs++
			l.ready = true
			continue
		}
		if j := s.jobs[l.hex]; j != nil {
			j.users++
			l.job = j
			continue
		}
		own, cancel := s.ownContextLocked(ctx)
		j := &job{hex: l.hex, as: l.as, users: 1, cancel: cancel, done: make(chan struct{})}
		s.jobs[l.hex], l.job = j, j
		desc := l.desc
		s.workers.Go(func() { s.runJob(own, j, session, desc, slots) })
	}
}

// release ends a pull's need of layers; what became an image's has that
// image as its user by now. With keep, a layer that is finished waits a while
// for the next try of a pull that failed elsewhere.
func (s *Store) release(layers []*pulledLayer, keep bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range layers {
		switch {
		case l.ready:
			s.releaseLocked([]string{l.hex})
		case keep && l.job.finished() && s.jobs[l.hex] == l.job && !s.isClosing():
			j := l.job
			s.workers.Go(func() { s.keep(j) })
		default:
			s.leaveJobLocked(l.job)
		}
	}
}

// keep is a job's user for a while.
func (s *Store) keep(j *job) {
	t := time.NewTimer(s.keepFor)
	defer t.Stop()
	select {
	case <-t.C:
	case <-s.closing:
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leaveJobLocked(j)
}

// finished reports whether the layer was made.
func (j *job) finished() bool {
	select {
	case <-j.done:
		return j.err == nil
	default:
		return false
	}
}

// leaveJobLocked takes a user from a job; without users it is cancelled and
// what it made is deleted.
func (s *Store) leaveJobLocked(j *job) {
	if j.users--; j.users > 0 {
		return
	}
	j.cancel(errAllLeft)
	if s.jobs[j.hex] == j {
		delete(s.jobs, j.hex)
	}
	select {
	case <-j.done:
		s.dropJobLocked(j)
	default: // the job's goroutine does it when it ends
	}
}

// dropJobLocked throws away what a job made and no image took.
func (s *Store) dropJobLocked(j *job) {
	if j.dir == "" || j.published {
		return
	}
	name := s.newNameLocked("staging")
	if err := os.Rename(j.dir, s.path(trashDir, name)); err != nil {
		s.log.WithError(err).Warn("delete unfinished layer")
		return
	}
	j.dir = ""
	s.discard(name, j.count.Bytes.Load(), j.count.Inodes.Load())
}

func (s *Store) runJob(ctx context.Context, j *job, session *registry.Session, desc ocispec.Descriptor, slots chan struct{}) {
	select {
	case slots <- struct{}{}:
		j.err = steps.Guard(s.panicked, func() error { return s.makeLayer(ctx, j, session, desc) })
		<-slots
	case <-ctx.Done():
		j.err = context.Cause(ctx)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if j.err != nil && s.jobs[j.hex] == j {
		delete(s.jobs, j.hex) // who comes later tries anew
	}
	close(j.done)
	if j.users == 0 || j.err != nil {
		s.dropJobLocked(j)
	}
}

// tries is how often a layer is fetched again after wrong bytes: once the same
// host may have been unlucky, then others get their turn.
const tries = 3

// makeLayer downloads and unpacks a layer.
func (s *Store) makeLayer(ctx context.Context, j *job, session *registry.Session, desc ocispec.Descriptor) error {
	var liars []string
	for n := 1; ; n++ {
		if err := s.stage(j); err != nil {
			return err
		}
		blob := session.Blob(ctx, desc, liars)
		meta, err := layer.Unpack(ctx, filepath.Join(j.dir, "fs"), blob, s.want(j, desc), s.limits)
		host := blob.Host()
		blob.Close()
		if err == nil {
			j.meta = meta
			return writeLayerMeta(j.dir, meta)
		}
		if n == tries || !errors.Is(err, layer.ErrDigest) {
			return fmt.Errorf("layer %s: %w", desc.Digest, err)
		}
		s.log.WithFields(map[string]any{"layer": desc.Digest, "host": host}).Warn("registry sent wrong bytes; trying again")
		if n > 1 || host != "" {
			liars = append(liars, host)
		}
		j.count.Blob.Store(0)
	}
}

func (s *Store) want(j *job, desc ocispec.Descriptor) layer.Want {
	w := layer.Want{
		Digest: desc.Digest.Encoded(), DiffID: j.hex, Count: &j.count,
		NewHash: func() layer.Hash { return sha256.New() }, Panicked: s.panicked,
		File: j.as.file, Size: desc.Size,
	}
	if j.as.loose {
		w.DiffID = ""
	}
	if desc.Digest.Algorithm() == digest.SHA512 {
		w.NewHash = func() layer.Hash { return sha512.New() }
	}
	return w
}

// stage makes the job a fresh folder, putting an earlier one away.
func (s *Store) stage(j *job) error {
	s.mu.Lock()
	s.dropJobLocked(j)
	dir := s.path(stagingDir, s.newNameLocked("layer"))
	j.dir = dir
	s.mu.Unlock()
	if err := os.MkdirAll(filepath.Join(dir, "fs"), 0o700); err != nil {
		return kind.Wrap(diskKind(err), fmt.Errorf("make staging folder: %w", err))
	}
	return nil
}

// wait waits for a layer that is being made.
func (l *pulledLayer) wait(ctx context.Context) error {
	if l.job == nil {
		return nil
	}
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-l.job.done:
		return l.job.err
	}
}

// progress returns the compressed bytes that are there and whether the layer
// is ready.
func (l *pulledLayer) progress() (int64, bool) {
	if l.job == nil {
		return l.desc.Size, true
	}
	select {
	case <-l.job.done:
		return l.desc.Size, l.job.err == nil
	default:
		return min(l.job.count.Blob.Load(), l.desc.Size), false
	}
}
