package imagestore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"noded.dev/noded/imagestore/overlay"
	"noded.dev/noded/internal/atomicfile"
)

// recover reads the store's folders into the maps. Nothing that is damaged
// stops it: what cannot be read is set aside and logged, what was half made is
// deleted, what nothing uses is freed.
func (s *Store) recover(ctx context.Context) error {
	for _, step := range []func() error{s.recoverStaging, s.recoverLayers, s.recoverImages, s.recoverMounts, s.recoverAreas, s.recoverBlobs} {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := step(); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for hex := range s.layers {
		s.freeLocked(hex)
	}
	return nil
}

// recoverStaging throws away what was being made when the process ended.
func (s *Store) recoverStaging() error {
	entries, err := os.ReadDir(s.path(stagingDir))
	if err != nil {
		return fmt.Errorf("read staging folder: %w", err)
	}
	for _, e := range entries {
		if err := os.Rename(s.path(stagingDir, e.Name()), s.path(trashDir, s.newName("staging"))); err != nil {
			return fmt.Errorf("empty staging folder: %w", err)
		}
	}
	return nil
}

func (s *Store) recoverLayers() error {
	entries, err := os.ReadDir(s.path(layersDir))
	if err != nil {
		return fmt.Errorf("read layers: %w", err)
	}
	for _, e := range entries {
		name := e.Name()
		meta, err := s.readLayerMeta(name)
		if err == nil && len(name) == 64 && isHex(name) {
			_, err = os.Lstat(s.layerFS(name))
			if err == nil {
				s.layers[name] = &layerState{meta: meta}
				continue
			}
		}
		s.log.WithField("layer", name).WithError(err).Warn("layer is incomplete and is deleted; images that need it have to be pulled again")
		if err := os.Rename(s.path(layersDir, name), s.path(trashDir, s.newName("layer"))); err != nil {
			return fmt.Errorf("delete incomplete layer: %w", err)
		}
	}
	return nil
}

func (s *Store) recoverImages() error {
	entries, err := os.ReadDir(s.path(imagesDir))
	if err != nil {
		return fmt.Errorf("read images: %w", err)
	}
	for _, e := range entries {
		path := s.path(imagesDir, e.Name())
		if atomicfile.IsTemp(e.Name()) {
			if err := os.Remove(path); err != nil {
				return fmt.Errorf("delete temporary file: %w", err)
			}
			continue
		}
		r, missing, err := s.loadImage(path)
		if err != nil {
			if err := s.setAside(path, err); err != nil {
				return err
			}
			continue
		}
		if missing {
			s.log.WithField("image", r.ID).Warn("image lacks a layer and is not listed; pulling it again repairs it")
			s.damaged[r.ID] = r
		} else {
			s.images[r.ID] = r
		}
		r.held = s.holdLocked(r.Stack)
	}
	s.settleTags()
	return nil
}

// settleTags gives a tag that two records hold, because the process ended
// between writing the one and the other, to the one that got it last.
func (s *Store) settleTags() {
	owner := map[string]*imageRecord{}
	for _, r := range s.images {
		for _, t := range r.Tags {
			if o := owner[t]; o == nil || o.TaggedAt.Before(r.TaggedAt) {
				owner[t] = r
			}
		}
	}
	for _, r := range s.images {
		r.Tags = slices.DeleteFunc(r.Tags, func(t string) bool { return owner[t] != r })
	}
}

// setAside moves a file that cannot be read to where it does no harm and can
// be looked at.
func (s *Store) setAside(path string, why error) error {
	to := s.path(quarantineDir, s.newName(filepath.Base(path)))
	s.log.WithError(why).WithField("moved to", to).Warn("record cannot be read and is set aside")
	if err := os.Rename(path, to); err != nil {
		return fmt.Errorf("set aside: %w", err)
	}
	return nil
}

func (s *Store) recoverMounts() error {
	entries, err := os.ReadDir(s.path(containersDir))
	if err != nil {
		return fmt.Errorf("read root filesystems: %w", err)
	}
	for _, e := range entries {
		id := e.Name()
		r := &mountRecord{}
		err := readRecord(s.path(containersDir, id, mountFile), r)
		if err == nil && r.Version == recordVersion && len(r.Stack) > 0 {
			s.mounts[id] = r
			r.held = s.holdLocked(r.Stack)
			for _, v := range r.Volumes {
				r.held = append(r.held, s.holdLocked(v.Stack)...)
			}
			continue
		}
		if !overlay.Mounted(s.rootfs(id)) {
			// The record is written before anything is mounted; without one
			// (or after a power cut) there is nothing worth keeping.
			if err := os.Rename(s.path(containersDir, id), s.path(trashDir, s.newName("container"))); err != nil {
				return fmt.Errorf("delete incomplete root filesystem: %w", err)
			}
			continue
		}
		s.log.WithError(err).WithField("container", id).Warn("mounted root filesystem has no readable record; no layer is freed while it exists")
		s.mounts[id] = &mountRecord{Version: recordVersion, unknown: true}
		s.keepAll = true
	}
	return nil
}

// recoverBlobs deletes manifests and configs that no record names.
func (s *Store) recoverBlobs() error {
	used := s.usedBlobsLocked()
	entries, err := os.ReadDir(s.path(blobsDir))
	if err != nil {
		return fmt.Errorf("read blobs: %w", err)
	}
	for _, e := range entries {
		if used[e.Name()] {
			continue
		}
		if err := os.Remove(s.path(blobsDir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("delete unused blob: %w", err)
		}
	}
	return nil
}
