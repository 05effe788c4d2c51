package imagestore

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"noded.dev/noded/imagestore/layer"
	"noded.dev/noded/imagestore/limit"
	"noded.dev/noded/imagestore/registry"
	"noded.dev/noded/internal/atomicfile"
	"noded.dev/noded/internal/kind"
)

// again handles the pull of an image that is there: only its names change.
func (s *Store) again(ref registry.Reference, r *registry.Resolved) (img Image, found bool, err error) {
	s.commits.Lock()
	defer s.commits.Unlock()
	s.mu.Lock()
	old := s.images[r.ID.String()]
	s.mu.Unlock()
	if old == nil {
		return Image{}, false, nil
	}
	img, err = s.retag(old.clone(), ref, r)
	return img, true, err
}

// commit makes a pulled image visible. The order is what a power cut leaves
// true: content first, one sync of the file system for all of it, then the
// layers' names, then the record.
func (s *Store) commit(ref registry.Reference, r *registry.Resolved, layers []*pulledLayer) (Image, error) {
	s.commits.Lock()
	defer s.commits.Unlock()
	id := r.ID.String()
	s.mu.Lock()
	old := s.images[id]
	s.mu.Unlock()
	if old != nil {
		return s.retag(old.clone(), ref, r)
	}
	rec := &imageRecord{
		Version: recordVersion, ID: id, Manifest: r.Digest.String(), Artifact: r.Artifact, config: &r.Image,
		Taken: int64(len(r.Manifest) + len(r.Config)), PulledAt: time.Now().UTC(),
	}
	blobs := [][]byte{r.Manifest, r.Config}
	if r.Artifact != "" {
		blobs = blobs[:1]
	}
	for _, data := range blobs {
		name, err := s.writeBlob(data)
		if err != nil {
			return Image{}, kind.Wrap(diskKind(err), err)
		}
		rec.Blobs = append(rec.Blobs, name)
	}
	img, err := s.commitRecord(rec, ref, r, layers)
	if err != nil {
		s.deleteUnused(rec.Blobs)
	}
	return img, err
}

func (s *Store) commitRecord(rec *imageRecord, ref registry.Reference, r *registry.Resolved, layers []*pulledLayer) (Image, error) {
	top, err := s.assemble(rec, layers)
	if err != nil {
		return Image{}, err
	}
	all := layers
	if top != nil {
		defer s.release([]*pulledLayer{top}, false)
		all = append([]*pulledLayer{top}, layers...)
	}
	if err := s.settle(all); err != nil {
		return Image{}, kind.Wrap(diskKind(err), err)
	}
	s.mu.Lock()
	rec.held = s.holdLocked(rec.Stack)
	s.mu.Unlock()
	img, err := s.retag(rec, ref, r)
	if err != nil {
		s.mu.Lock()
		s.releaseLocked(rec.held)
		s.mu.Unlock()
	}
	return img, err
}

// assemble fills the record's stack and size. Where overlayfs would show
// folders with the wrong attributes, a layer of corrected ones goes on top; an
// image without layers gets one too, since overlayfs needs a lower layer.
func (s *Store) assemble(rec *imageRecord, layers []*pulledLayer) (*pulledLayer, error) {
	var stack []layer.Stacked
	rec.Size = rec.Taken
	s.mu.Lock()
	for _, l := range layers {
		dir, meta := s.layerFS(l.hex), layer.Meta{}
		switch {
		case s.layers[l.hex] != nil:
			meta = s.layers[l.hex].meta
		default:
			dir, meta = filepath.Join(l.job.dir, "fs"), l.job.meta
		}
		rec.Size += meta.Bytes
		rec.Stack = append(rec.Stack, l.hex)
		stack = append(stack, layer.Stacked{Dir: dir, Meta: meta})
		if meta.Opaque {
			break
		}
	}
	s.mu.Unlock()
	folders, err := layer.Corrections(stack)
	if err != nil {
		return nil, fmt.Errorf("assemble image: %w", err)
	}
	rec.Root = folders[0]
	if len(folders) == 1 && len(layers) > 0 {
		return nil, nil
	}
	if len(rec.Stack) >= maxStack {
		return nil, limit.Error(kind.Invalid, "number of layers, with one for corrected folders,", "layers", maxStack)
	}
	top, err := s.correct(folders)
	if err != nil {
		return nil, fmt.Errorf("assemble image: %w", err)
	}
	rec.Stack = slices.Insert(rec.Stack, 0, top.hex)
	return top, nil
}

// maxStack is OVL_MAX_STACK of overlayfs.
const maxStack = 500

// correct makes (or finds) the layer that holds corrected folders. It is named
// by its content, so images with the same corrections share it.
func (s *Store) correct(folders []layer.Folder) (*pulledLayer, error) {
	data, err := json.Marshal(folders)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(append([]byte("corrected folders "), data...))
	l := &pulledLayer{hex: hex.EncodeToString(sum[:])}
	s.mu.Lock()
	if state := s.layers[l.hex]; state != nil {
		state.refs++
		l.ready = true
		s.mu.Unlock()
		return l, nil
	}
	s.mu.Unlock()
	nothing := func(error) {} // it is made here and now
	j := &job{hex: l.hex, users: 1, cancel: nothing, done: make(chan struct{})}
	l.job = j
	close(j.done)
	err = s.stage(j)
	if err == nil {
		err = layer.Build(filepath.Join(j.dir, "fs"), folders)
	}
	if err == nil {
		j.meta = layer.Meta{Bytes: int64(len(folders)) * 4096, Inodes: int64(len(folders))}
		err = writeLayerMeta(j.dir, j.meta)
	}
	if err != nil {
		s.release([]*pulledLayer{l}, false)
		return nil, err
	}
	return l, nil
}

// settle makes layers durable and gives them their names.
func (s *Store) settle(layers []*pulledLayer) error {
	if err := unix.Syncfs(int(s.rootFD.Fd())); err != nil {
		return fmt.Errorf("sync file system: %w", err)
	}
	if err := s.nameLayers(layers); err != nil {
		return err
	}
	return atomicfile.SyncDir(s.path(layersDir))
}

func (s *Store) nameLayers(layers []*pulledLayer) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range layers {
		if l.ready {
			continue
		}
		if s.layers[l.hex] == nil {
			if err := os.Rename(l.job.dir, s.path(layersDir, l.hex)); err != nil {
				return fmt.Errorf("name layer: %w", err)
			}
			s.layers[l.hex] = &layerState{meta: l.job.meta}
			l.job.published = true
			if s.jobs[l.hex] == l.job {
				delete(s.jobs, l.hex) // from here on the layer itself is found
			}
		}
		// From a user of the job the pull becomes one of the layer, so that
		// it is not freed before the image holds it.
		s.layers[l.hex].refs++
		s.leaveJobLocked(l.job)
		l.ready = true
	}
	return nil
}

// retag writes the record with the reference added, takes the tag from the
// image that had it, and publishes.
func (s *Store) retag(rec *imageRecord, ref registry.Reference, r *registry.Resolved) (Image, error) {
	rec.TaggedAt = time.Now().UTC()
	if ref.Tag != "" && ref.Digest == "" {
		rec.Tags = addName(rec.Tags, ref.String())
	}
	rec.Digests = addName(rec.Digests, ref.Name()+"@"+r.Top.String())
	if r.SignedBy != "" {
		if rec.Signed == nil {
			rec.Signed = map[string][]string{}
		}
		rec.Signed[ref.Name()] = addName(slices.Clone(rec.Signed[ref.Name()]), r.SignedBy)
	}
	if err := s.writeRecord(rec); err != nil {
		return Image{}, kind.Wrap(diskKind(err), fmt.Errorf("write image record: %w", err))
	}
	s.mu.Lock()
	if d := s.damaged[rec.ID]; d != nil {
		delete(s.damaged, rec.ID)
		s.releaseLocked(d.held)
	}
	s.images[rec.ID] = rec
	var losers []*imageRecord
	for id, other := range s.images {
		if ref.Tag != "" && ref.Digest == "" && id != rec.ID && slices.Contains(other.Tags, ref.String()) {
			c := other.clone()
			c.Tags = slices.DeleteFunc(c.Tags, func(t string) bool { return t == ref.String() })
			s.images[id] = c
			losers = append(losers, c)
		}
	}
	s.publishLocked()
	s.mu.Unlock()
	for _, l := range losers {
		// If this is lost, Open finds the tag twice and the later record counts.
		if err := s.writeRecord(l); err != nil {
			s.log.WithError(err).WithField("image", l.ID).Warn("record of moved tag is not written")
		}
	}
	return s.image(rec), nil
}

func addName(list []string, name string) []string {
	if slices.Contains(list, name) {
		return list
	}
	list = append(list, name)
	slices.Sort(list)
	return list
}

// Remove removes an image with all its tags, whichever of its names is given;
// nil if there is none. What root filesystems still use stays until the last
// of them is unmounted.
func (s *Store) Remove(ctx context.Context, ref string) error {
	s.commits.Lock()
	defer s.commits.Unlock()
	img, err := s.Lookup(ref)
	if kind.Is(err, kind.NotFound) {
		return s.removeDamaged(ref)
	}
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return s.removeRecord(img.ID, s.images)
}

// removeDamaged forgets an image that is not listed because a layer is missing.
func (s *Store) removeDamaged(ref string) error {
	s.mu.Lock()
	var id string
	parsed, err := registry.ParseReference(ref)
	for _, r := range s.damaged {
		if r.ID == ref || hexOf(r.ID) == ref || err == nil && (slices.Contains(r.Tags, parsed.String()) || slices.Contains(r.Digests, parsed.String())) {
			id = r.ID
		}
	}
	s.mu.Unlock()
	if id == "" {
		return nil
	}
	return s.removeRecord(id, s.damaged)
}

func (s *Store) removeRecord(id string, from map[string]*imageRecord) error {
	err := os.Remove(s.recordPath(id))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove image %s: %w", id, err)
	}
	if err := atomicfile.SyncDir(s.path(imagesDir)); err != nil {
		return fmt.Errorf("remove image %s: %w", id, err)
	}
	s.mu.Lock()
	rec := from[id]
	delete(from, id)
	s.publishLocked()
	s.releaseLocked(rec.held)
	s.mu.Unlock()
	s.deleteUnused(rec.Blobs)
	return nil
}

// deleteUnused deletes those blobs that no record names. One that stays,
// because the process ends here, is deleted by the next Open.
func (s *Store) deleteUnused(blobs []string) {
	s.mu.Lock()
	used := s.usedBlobsLocked()
	s.mu.Unlock()
	for _, b := range blobs {
		if used[b] {
			continue
		}
		if err := os.Remove(s.path(blobsDir, b)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			s.log.WithError(err).Warn("delete blob")
		}
	}
}

func (s *Store) usedBlobsLocked() map[string]bool {
	used := map[string]bool{}
	for _, list := range []map[string]*imageRecord{s.images, s.damaged} {
		for _, r := range list {
			for _, b := range r.Blobs {
				used[b] = true
			}
		}
	}
	return used
}

// diskKind tells a full disk from other trouble with it.
func diskKind(err error) kind.Kind {
	for _, full := range []error{unix.ENOSPC, unix.EDQUOT, unix.EMFILE, unix.ENFILE} {
		if errors.Is(err, full) {
			return kind.Exhausted
		}
	}
	if k := kind.Of(err); k != kind.Internal {
		return k
	}
	return kind.Unavailable
}
