package imagestore

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"

	"github.com/sirupsen/logrus"
)

// holdLocked counts a user of layers. It returns those that it counted, which
// are what the user has to release: one that is missing now may be there then.
func (s *Store) holdLocked(stack []string) (held []string) {
	for _, hex := range stack {
		if l := s.layers[hex]; l != nil {
			l.refs++
			held = append(held, hex)
		}
	}
	return held
}

// releaseLocked takes a user away and frees what has none left.
func (s *Store) releaseLocked(stack []string) {
	for _, hex := range stack {
		if l := s.layers[hex]; l != nil {
			l.refs--
			s.freeLocked(hex)
		}
	}
}

// freeLocked moves a layer that nothing uses out of sight. Its files are
// deleted in the background, or by the next Open.
func (s *Store) freeLocked(hex string) {
	l := s.layers[hex]
	if l.refs > 0 || s.keepAll {
		return
	}
	name := s.newNameLocked("layer")
	if err := os.Rename(s.path(layersDir, hex), s.path(trashDir, name)); err != nil {
		s.log.WithError(err).WithField("layer", hex).Warn("layer cannot be freed now")
		return
	}
	delete(s.layers, hex)
	s.discard(name, l.meta.Bytes+layerOverhead, l.meta.Inodes+2)
}

// discard hands something in the trash folder to the reaper.
func (s *Store) discard(name string, bytes, inodes int64) {
	if s.trash != nil { // nil while the store is being opened; the reaper starts with a full scan
		s.trash.add(bytes, inodes)
	}
}

// reaper empties the trash folders.
type reaper struct {
	dirs          []string
	log           logrus.FieldLogger
	wake          chan struct{}
	bytes, inodes atomic.Int64 // announced and not yet deleted
}

func newReaper(dirs []string, log logrus.FieldLogger) *reaper {
	r := &reaper{dirs: dirs, log: log, wake: make(chan struct{}, 1)}
	r.wake <- struct{}{} // for what the process before this one left
	return r
}

func (r *reaper) add(bytes, inodes int64) {
	r.bytes.Add(bytes)
	r.inodes.Add(inodes)
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// run deletes until ctx ends; what is left then is deleted after the next start.
func (r *reaper) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.wake:
		}
		bytes, inodes := r.bytes.Load(), r.inodes.Load()
		if r.empty(ctx) {
			r.bytes.Add(-bytes)
			r.inodes.Add(-inodes)
		}
	}
}

// empty deletes what is there now; false if something is left.
func (r *reaper) empty(ctx context.Context) bool {
	clean := true
	for _, dir := range r.dirs {
		clean = r.emptyDir(ctx, dir) && clean
	}
	return clean
}

func (r *reaper) emptyDir(ctx context.Context, dir string) bool {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return true // of a file system that is not there any more
	}
	if err != nil {
		r.log.WithError(err).Warn("read trash folder")
		return false
	}
	clean := true
	for _, e := range entries {
		if ctx.Err() != nil {
			return false
		}
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			r.log.WithError(err).Warn("delete from trash folder")
			clean = false
		}
	}
	return clean
}
