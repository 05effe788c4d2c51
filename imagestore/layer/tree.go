package layer

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"noded.dev/noded/imagestore/limit"
	"noded.dev/noded/internal/kind"
)

// tree is the folder a layer is unpacked into. Whatever an image names is
// resolved by the kernel beneath it: parents by openat2 with RESOLVE_IN_ROOT,
// so that a layer's own symbolic links lead inside the layer and nowhere
// else, and last components never followed.
type tree struct {
	root    int    // descriptor of the folder
	rootDir string // its path as /proc shows it
	limits  limit.Limits

	// The folder of the entry before, which is most often the next one's too.
	// Making entries changes its time, which is put back when it is left; so
	// no list of folders has to be kept until the end.
	dir     int
	dirPath string
	dirTime []unix.Timespec

	// Folders made because a path goes through them, by inode: until their own
	// entry comes, if it does, their attributes are not known here.
	implied map[uint64]string

	dirs int64 // folders made
}

const openDir = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC | unix.O_NOFOLLOW

func openTree(dir string, l limit.Limits) (*tree, error) {
	fd, err := unix.Open(dir, openDir, 0)
	if err != nil {
		return nil, fmt.Errorf("open layer folder: %w", err)
	}
	t := &tree{root: fd, limits: l, dir: -1, implied: map[uint64]string{}}
	if t.rootDir, err = t.real(fd); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return t, nil
}

func (t *tree) close() error {
	err := t.leave()
	return errors.Join(err, unix.Close(t.root))
}

// real is the path of an open folder.
func (t *tree) real(fd int) (string, error) {
	p, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	if err != nil {
		return "", fmt.Errorf("find the folder's path: %w", err)
	}
	return p, nil
}

// inside is a folder's path below the root. It is measured against the limit,
// because a layer's own links could otherwise nest folders without end.
func (t *tree) inside(fd int) (string, error) {
	p, err := t.real(fd)
	if err != nil {
		return "", err
	}
	p = strings.TrimPrefix(strings.TrimPrefix(p, t.rootDir), "/")
	if len(p) > t.limits.PathBytes {
		return "", limit.Error(kind.Invalid, "path of a folder", "path_bytes", t.limits.PathBytes)
	}
	return p, nil
}

// leave lets go of the current folder and puts its time back.
func (t *tree) leave() error {
	if t.dir < 0 {
		return nil
	}
	err := setTime(t.dir, t.dirTime)
	if t.dir != t.root {
		err = errors.Join(err, unix.Close(t.dir))
	}
	t.dir = -1
	return err
}

// enter makes dir (a clean path, "" the root) the current folder, making what
// is missing of it.
func (t *tree) enter(dir string) error {
	if t.dir >= 0 && t.dirPath == dir {
		return nil
	}
	if err := t.leave(); err != nil {
		return err
	}
	fd := t.root
	if dir != "" {
		var err error
		if fd, err = t.open(dir); err != nil {
			return err
		}
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("stat folder: %w", err)
	}
	t.dir, t.dirPath = fd, dir
	t.dirTime = []unix.Timespec{{Nsec: unix.UTIME_OMIT}, st.Mtim}
	return nil
}

func (t *tree) open(dir string) (int, error) {
	fd, err := t.lookup(dir, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS)
	switch {
	case err == nil:
		return fd, nil
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
		return t.make(dir)
	}
	return -1, pathError("open folder", dir, err)
}

// lookup opens a folder beneath the root. EAGAIN is the kernel's way of saying
// that a rename somewhere made it unsure.
func (t *tree) lookup(dir string, resolve uint64) (int, error) {
	how := unix.OpenHow{
		Flags:   openDir &^ unix.O_NOFOLLOW,
		Resolve: resolve | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	}
	for tries := 0; ; tries++ {
		fd, err := unix.Openat2(t.root, dir, &how)
		if tries < 100 && (err == unix.EAGAIN || err == unix.EINTR) {
			continue
		}
		return fd, err
	}
}

// make opens a folder component by component, following the layer's links
// inside the root, and makes the components that are missing.
func (t *tree) make(dir string) (int, error) {
	at := t.root
	for i, done := 0, false; !done; i++ {
		next := strings.IndexByte(dir[i:], '/')
		if done = next < 0; done {
			i = len(dir)
		} else {
			i += next
		}
		fd, err := t.lookup(dir[:i], unix.RESOLVE_IN_ROOT)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
			fd, err = t.imply(at, path.Base(dir[:i]))
		}
		if at != t.root {
			unix.Close(at)
		}
		if err != nil {
			return -1, pathError("make folder", dir[:i], err)
		}
		at = fd
	}
	if _, err := t.inside(at); err != nil {
		unix.Close(at)
		return -1, err
	}
	return at, nil
}

// imply makes a folder that has no entry (yet). In the place of a whiteout it
// hides what lies below, and then needs nothing of that either.
func (t *tree) imply(parent int, name string) (int, error) {
	var st unix.Stat_t
	if err := unix.Fstat(parent, &st); err != nil {
		return -1, err
	}
	opaque := false
	if isWhiteoutAt(parent, name) {
		if err := unix.Unlinkat(parent, name, 0); err != nil {
			return -1, err
		}
		opaque = true
	}
	if err := unix.Mkdirat(parent, name, 0o755); err != nil {
		if err == unix.EEXIST {
			return -1, kind.Errorf(kind.Invalid, "what is there is not a folder")
		}
		return -1, err
	}
	t.dirs++
	if err := setTime(parent, []unix.Timespec{{Nsec: unix.UTIME_OMIT}, st.Mtim}); err != nil {
		return -1, err
	}
	fd, err := unix.Openat(parent, name, openDir, 0)
	if err != nil {
		return -1, err
	}
	if err := t.settleImplied(fd, opaque); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func (t *tree) settleImplied(fd int, opaque bool) error {
	// The process's umask took its part of the mode, a set-group-id parent gave
	// its group.
	if err := errors.Join(unix.Fchown(fd, 0, 0), unix.Fchmod(fd, 0o755)); err != nil {
		return err
	}
	if opaque {
		return unix.Fsetxattr(fd, opaqueXattr, []byte("y"), 0)
	}
	return t.noteImplied(fd)
}

func (t *tree) noteImplied(fd int) error {
	if len(t.implied) >= t.limits.ImpliedDirs {
		return limit.Error(kind.Exhausted, "number of folders without an entry", "implied_dirs", t.limits.ImpliedDirs)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	p, err := t.inside(fd)
	if err != nil {
		return err
	}
	t.implied[st.Ino] = p
	return nil
}

// remove deletes a name in the current folder, with all below it.
func (t *tree) remove(name string) error {
	err := unix.Unlinkat(t.dir, name, 0)
	if err == nil || err == unix.ENOENT {
		return nil
	}
	if err != unix.EISDIR && err != unix.EPERM {
		return err
	}
	return t.removeDir(t.dir, name)
}

// removeDir empties and deletes a folder. Going down is by descriptor and
// never through a link. Depth is bounded by the limit on paths.
func (t *tree) removeDir(parent int, name string) error {
	fd, err := unix.Openat(parent, name, openDir, 0)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return err
	}
	dir := os.NewFile(uintptr(fd), name)
	defer dir.Close()
	for {
		names, err := dir.Readdirnames(256)
		if len(names) == 0 {
			if err != nil && err.Error() != "EOF" {
				return err
			}
			break
		}
		for _, n := range names {
			err := unix.Unlinkat(fd, n, 0)
			if err == unix.EISDIR || err == unix.EPERM {
				err = t.removeDir(fd, n)
			}
			if err != nil && err != unix.ENOENT {
				return err
			}
		}
	}
	delete(t.implied, st.Ino)
	t.dirs--
	return unix.Unlinkat(parent, name, unix.AT_REMOVEDIR)
}

// setTime sets access and modification time of an open file.
func setTime(fd int, ts []unix.Timespec) error {
	// The path "" with AT_EMPTY_PATH needs Linux 5.8; /proc works everywhere.
	err := unix.UtimesNanoAt(fd, "", ts, unix.AT_EMPTY_PATH)
	if err != nil {
		err = unix.UtimesNanoAt(unix.AT_FDCWD, "/proc/self/fd/"+strconv.Itoa(fd), ts, 0)
	}
	if err != nil {
		return fmt.Errorf("set time: %w", err)
	}
	return nil
}

// pathError names the step and the layer's path, and gives the kernel's
// answers the kind they mean for an image.
func pathError(step, name string, err error) error {
	return kind.Wrap(errnoKind(err), fmt.Errorf("%s %q: %w", step, name, err))
}

func errnoKind(err error) kind.Kind {
	if k := kind.Of(err); k != kind.Internal {
		return k
	}
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT), errors.Is(err, unix.EMLINK), errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE), errors.Is(err, unix.ENOMEM):
		return kind.Exhausted
	case errors.Is(err, unix.EROFS), errors.Is(err, unix.EIO), errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return kind.Unavailable
	}
	return kind.Invalid
}
