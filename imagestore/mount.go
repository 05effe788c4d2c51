package imagestore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"syscall"

	"noded.dev/noded/imagestore/layer"
	"noded.dev/noded/imagestore/overlay"
	"noded.dev/noded/internal/atomicfile"
	"noded.dev/noded/internal/idmap"
	"noded.dev/noded/internal/kind"
)

// mountRecord is containers/<id>/mount.json. It is there before the mount is
// and keeps the layers from being freed until Unmount. It is not synced: after
// a power cut there is no mount either.
type mountRecord struct {
	Version int          `json:"version"`
	Image   string       `json:"image"`
	Stack   []string     `json:"stack"`
	Root    layer.Folder `json:"root"`
	// Writable is the folder of upper and work; "" is the record's own.
	Writable string `json:"writable,omitempty"`
	// IDs is the map of the container's user namespace; nil: the node's ids.
	IDs *idmap.Mapping `json:"ids,omitempty"`

	Volumes map[int]volumeRecord `json:"volumes,omitempty"`

	held    []string // layers that this record is counted as a user of
	unknown bool     // mounted, but the record cannot be read
}

const mountFile = "mount.json"

var containerID = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$`)

func (s *Store) rootfs(id string) string { return s.path(containersDir, id, "rootfs") }

// exclusive waits until no other operation on a container's root filesystem is
// under way, and begins one; call the function returned when it is over.
func (s *Store) exclusive(ctx context.Context, id string) (func(), error) {
	if !containerID.MatchString(id) {
		return nil, kind.Errorf(kind.Invalid, "container id %q is not 1 to 128 of letters, digits, '_', '.', '-'", id)
	}
	for {
		s.mu.Lock()
		other := s.busy[id]
		if other == nil {
			mine := make(chan struct{})
			s.busy[id] = mine
			s.mu.Unlock()
			return func() {
				s.mu.Lock()
				delete(s.busy, id)
				s.mu.Unlock()
				close(mine)
			}, nil
		}
		s.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for the operation before: %w", context.Cause(ctx))
		case <-other:
		}
	}
}

// Mount assembles and mounts a container's root filesystem and returns its
// path. A second Mount with the same id returns the same path.
func (s *Store) Mount(ctx context.Context, req MountRequest) (string, error) {
	done, err := s.exclusive(ctx, req.ID)
	if err != nil {
		return "", fmt.Errorf("mount root filesystem: %w", err)
	}
	defer done()
	rec, isNew, err := s.claim(req)
	if err != nil {
		return "", fmt.Errorf("mount root filesystem of %s: %w", req.ID, err)
	}
	if !isNew && overlay.Mounted(s.rootfs(req.ID)) {
		return s.rootfs(req.ID), nil
	}
	if err := s.mount(ctx, req, rec); err != nil {
		err = kind.Wrap(diskKind(err), fmt.Errorf("mount root filesystem of %s: %w", req.ID, err))
		if isNew {
			err = errors.Join(err, s.destroy(req.ID))
		}
		return "", err
	}
	return s.rootfs(req.ID), nil
}

// claim finds a container's record, or makes one that holds the image's layers.
func (s *Store) claim(req MountRequest) (rec *mountRecord, isNew bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if rec := s.mounts[req.ID]; rec != nil {
		if rec.Image != req.ImageID && !rec.unknown {
			return nil, false, kind.Errorf(kind.Exists, "it exists with image %s", rec.Image)
		}
		if !rec.unknown && !sameIDs(rec.IDs, req.UserNS.ids()) {
			return nil, false, kind.Errorf(kind.Exists, "it exists with another map of ids")
		}
		return rec, false, nil
	}
	img := s.images[req.ImageID]
	if img == nil {
		return nil, false, kind.Errorf(kind.NotFound, "no image %s", req.ImageID)
	}
	if err := s.admit(img, req.Name); err != nil {
		return nil, false, err
	}
	rec = &mountRecord{Version: recordVersion, Image: img.ID, Stack: img.Stack, Root: img.Root, IDs: req.UserNS.ids()}
	if s.own != "" {
		rec.Writable = s.own.layer(req.ID)
	}
	s.mounts[req.ID] = rec
	rec.held = s.holdLocked(rec.Stack)
	return rec, true, nil
}

// mount makes the folders, the record and the mount. Upper content of an
// earlier mount is kept; the work folder is overlayfs's own and is made anew,
// since a volatile mount that was cut off refuses to be mounted with it again.
func (s *Store) mount(ctx context.Context, req MountRequest, rec *mountRecord) error {
	id, dir := req.ID, s.path(containersDir, req.ID)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	data, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	if err := atomicfile.Write(filepath.Join(dir, mountFile), data, 0o600); err != nil {
		return err
	}
	upper, work := filepath.Join(s.writable(id, rec), "upper"), filepath.Join(s.writable(id, rec), "work")
	if err := os.RemoveAll(work); err != nil {
		return fmt.Errorf("empty work folder: %w", err)
	}
	for _, d := range []string{work, s.rootfs(id)} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return err
		}
	}
	if err := s.makeUpper(ctx, req, rec, upper); err != nil {
		return fmt.Errorf("make writable layer: %w", err)
	}
	mount := overlay.Request{Lower: make([]string, len(rec.Stack)), Upper: upper, Work: work, Target: s.rootfs(id)}
	for i, hex := range rec.Stack {
		mount.Lower[i] = s.layerFS(hex)
	}
	if req.UserNS == nil {
		return overlay.Mount(mount)
	}
	return s.mountMapped(mount, dir, *req.UserNS)
}

// makeUpper makes the writable layer's folder with what it has at first, unless
// it is there. The root of a mounted overlay looks as that does.
func (s *Store) makeUpper(ctx context.Context, req MountRequest, rec *mountRecord, upper string) error {
	root := rec.Root
	if rec.IDs != nil {
		var err error
		if root, err = root.Mapped(*rec.IDs); err != nil {
			return err
		}
	}
	err := os.Mkdir(upper, 0o700)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := layer.Apply(upper, root); err != nil || req.Diff == nil {
		return err
	}
	if rec.IDs != nil {
		return kind.Errorf(kind.Unimplemented, "a writable layer is not restored into a user namespace")
	}
	_, err = layer.Untar(ctx, upper, req.Diff, s.limits)
	return err
}

// Unmount unmounts a container's root filesystem and volumes and deletes its
// writable layer; nil if there is none (any more).
func (s *Store) Unmount(ctx context.Context, id string) error {
	if !containerID.MatchString(id) {
		return nil // nothing by such a name can exist
	}
	done, err := s.exclusive(ctx, id)
	if err != nil {
		return fmt.Errorf("unmount root filesystem: %w", err)
	}
	defer done()
	if err := s.destroy(id); err != nil {
		return fmt.Errorf("unmount root filesystem of %s: %w", id, err)
	}
	return nil
}

// destroy takes a root filesystem away, however far it came.
func (s *Store) destroy(id string) error {
	if err := s.unmountVolumes(id); err != nil {
		return err
	}
	if err := overlay.Unmount(s.rootfs(id)); err != nil {
		return err
	}
	for _, a := range s.areas {
		if err := s.throwAway(a, id); err != nil {
			return fmt.Errorf("delete writable layer: %w", err)
		}
	}
	name := s.newName("container")
	err := os.Rename(s.path(containersDir, id), s.path(trashDir, name))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	s.discard(name, 0, 0)
	s.mu.Lock()
	defer s.mu.Unlock()
	rec := s.mounts[id]
	if rec == nil {
		return nil
	}
	delete(s.mounts, id)
	if rec.unknown {
		s.keepAll = s.anyUnknownLocked()
		for hex := range s.layers {
			s.freeLocked(hex)
		}
	}
	s.releaseLocked(rec.held)
	return nil
}

func (s *Store) anyUnknownLocked() bool {
	for _, r := range s.mounts {
		if r.unknown {
			return true
		}
	}
	return false
}

// Mounts lists the container ids that have a root filesystem, sorted.
func (s *Store) Mounts() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	ids := make([]string, 0, len(s.mounts))
	for id := range s.mounts {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// WritableUsage measures a container's writable layer: disk blocks and inodes
// below it, a file with several names counted once.
func (s *Store) WritableUsage(ctx context.Context, id string) (Usage, error) {
	s.mu.Lock()
	rec := s.mounts[id]
	s.mu.Unlock()
	if rec == nil {
		return Usage{}, kind.Errorf(kind.NotFound, "no root filesystem of %s", id)
	}
	u, err := measureTree(ctx, filepath.Join(s.writable(id, rec), "upper"))
	if err != nil {
		return Usage{}, fmt.Errorf("measure writable layer of %s: %w", id, err)
	}
	u.Path = s.opts.Root
	if rec.Writable != "" {
		u.Path = filepath.Dir(filepath.Dir(rec.Writable)) // as ContainerUsage has it
	}
	return u, nil
}

func measureTree(ctx context.Context, dir string) (Usage, error) {
	u := Usage{Path: dir}
	linked := map[uint64]bool{}
	err := filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if e := ctx.Err(); e != nil {
			return e
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil // the container deletes while this looks
		}
		if err != nil {
			return err
		}
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		count(&u, info, linked)
		return nil
	})
	return u, err
}

func count(u *Usage, info fs.FileInfo, linked map[uint64]bool) {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return
	}
	if st.Nlink > 1 && !info.IsDir() {
		if linked[st.Ino] {
			return
		}
		linked[st.Ino] = true
	}
	u.Bytes += uint64(st.Blocks) * 512
	u.Inodes++
}
