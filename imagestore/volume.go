package imagestore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"noded.dev/noded/imagestore/layer"
	"noded.dev/noded/imagestore/overlay"
	"noded.dev/noded/internal/atomicfile"
	"noded.dev/noded/internal/kind"
)

// VolumeRequest asks for an image as a read-only volume of a container.
type VolumeRequest struct {
	ID      string  // container id, whose root filesystem is mounted
	Index   int     // tells the container's volumes apart
	ImageID string  // Image.ID
	Name    string  // what the user called the image, for the policy; "" not known
	SubPath string  // folder or file of the image to be the volume; "" its root
	UserNS  *UserNS // as of the container's MountRequest
}

// volumeRecord is a volume in its container's mountRecord, and lives as long.
type volumeRecord struct {
	Image string       `json:"image"`
	Stack []string     `json:"stack"`
	Root  layer.Folder `json:"root"`
}

// volumeDir holds "top", an empty layer with the image's root attributes, and
// "root", the mount.
func (s *Store) volumeDir(id string, index int) string {
	return s.path(containersDir, id, "volumes", strconv.Itoa(index))
}

// MountVolume mounts an image, read-only and without programs, devices or
// set-id files, and returns the path to bind into the container: of the image's
// root or of the sub path in it, free of links. It stays until Unmount of the
// container. A repeated call returns the same path. The error's kind is NotFound for
// an image that is not there, Invalid for a sub path that is not in the image.
func (s *Store) MountVolume(ctx context.Context, req VolumeRequest) (string, error) {
	done, err := s.exclusive(ctx, req.ID)
	if err != nil {
		return "", fmt.Errorf("mount image as a volume: %w", err)
	}
	defer done()
	path, err := s.mountVolume(req)
	if err != nil {
		return "", fmt.Errorf("mount image %s as a volume: %w", req.ImageID, err)
	}
	return path, nil
}

func (s *Store) mountVolume(req VolumeRequest) (string, error) {
	rec, err := s.claimVolume(req)
	if err != nil {
		return "", err
	}
	root := filepath.Join(s.volumeDir(req.ID, req.Index), "root")
	if !overlay.Mounted(root) {
		if err := s.attachVolume(req, rec); err != nil {
			return "", kind.Wrap(diskKind(err), err)
		}
	}
	return resolveSubPath(root, req.SubPath)
}

// claimVolume makes the layers of the image the container's too. Those of a
// volume that then cannot be mounted are held until the container is unmounted.
func (s *Store) claimVolume(req VolumeRequest) (*mountRecord, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	rec := s.mounts[req.ID]
	if rec == nil || rec.unknown {
		return nil, kind.Errorf(kind.Precondition, "container %s has no root filesystem", req.ID)
	}
	if !sameIDs(rec.IDs, req.UserNS.ids()) {
		return nil, kind.Errorf(kind.Internal, "volume of container %s with another map of ids", req.ID)
	}
	if v, ok := rec.Volumes[req.Index]; ok {
		if v.Image != req.ImageID {
			return nil, kind.Errorf(kind.Exists, "volume %d is image %s", req.Index, v.Image)
		}
		return rec, nil
	}
	img := s.images[req.ImageID]
	if img == nil {
		return nil, kind.Errorf(kind.NotFound, "no image %s", req.ImageID)
	}
	if err := s.admit(img, req.Name); err != nil {
		return nil, err
	}
	if rec.Volumes == nil {
		rec.Volumes = map[int]volumeRecord{}
	}
	rec.Volumes[req.Index] = volumeRecord{Image: img.ID, Stack: img.Stack, Root: img.Root}
	rec.held = append(rec.held, s.holdLocked(img.Stack)...)
	return rec, nil
}

// attachVolume writes the record and makes the mount. Overlayfs wants two
// layers where none is writable, and shows the root folder of the topmost: an
// empty one with the right attributes serves both.
func (s *Store) attachVolume(req VolumeRequest, rec *mountRecord) error {
	data, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	if err := atomicfile.Write(s.path(containersDir, req.ID, mountFile), data, 0o600); err != nil {
		return err
	}
	dir, vol := s.volumeDir(req.ID, req.Index), rec.Volumes[req.Index]
	top, root := filepath.Join(dir, "top"), filepath.Join(dir, "root")
	for _, d := range []string{top, root} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return err
		}
	}
	if err := layer.Apply(top, vol.Root); err != nil {
		return err
	}
	var lower []string
	for _, hex := range vol.Stack {
		lower = append(lower, s.layerFS(hex))
	}
	// At overlayfs's limit the root folder looks as the topmost layer has it.
	if len(lower) < maxStack {
		lower = slices.Insert(lower, 0, top)
	}
	mount := overlay.Request{Lower: lower, Target: root}
	if req.UserNS == nil {
		return overlay.Mount(mount)
	}
	return req.UserNS.mount(mount)
}

// resolveSubPath finds a folder or file of a mounted image as a process whose
// root the image is would find it, and returns its path on this node.
func resolveSubPath(root, sub string) (string, error) {
	if sub == "" {
		return root, nil
	}
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("open the mounted image: %w", err)
	}
	defer unix.Close(dir)
	fd, err := unix.Openat2(dir, sub, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	})
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		return "", kind.Errorf(kind.Invalid, "sub path %.256q is not in the image", sub)
	case err != nil:
		return "", kind.Errorf(kind.Invalid, "sub path %.256q: %w", sub, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return "", fmt.Errorf("sub path %.256q: %w", sub, err)
	}
	if t := st.Mode & unix.S_IFMT; t != unix.S_IFDIR && t != unix.S_IFREG {
		return "", kind.Errorf(kind.Invalid, "sub path %.256q is neither a folder nor a file of the image", sub)
	}
	// Nothing can change in a read-only image, so the path stays what it is.
	path, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	if err != nil {
		return "", fmt.Errorf("sub path %.256q: %w", sub, err)
	}
	if !utf8.ValidString(path) {
		return "", kind.Errorf(kind.Invalid, "sub path %.256q leads to a name that is not UTF-8", sub)
	}
	return path, nil
}

// unmountVolumes takes away a container's volumes, also those that no readable
// record names.
func (s *Store) unmountVolumes(id string) error {
	entries, err := os.ReadDir(s.path(containersDir, id, "volumes"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var errs []error
	for _, e := range entries {
		errs = append(errs, overlay.Unmount(s.path(containersDir, id, "volumes", e.Name(), "root")))
	}
	return errors.Join(errs...)
}
