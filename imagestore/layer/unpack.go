// Package layer unpacks the tar of an image layer into a folder that overlayfs
// can use as a lower layer. Everything about the tar is hostile: see tree for
// how it is kept inside, and package limit for what it may cost.
package layer

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"noded.dev/noded/imagestore/limit"
	"noded.dev/noded/internal/kind"
)

// Meta is what is known of an unpacked layer without reading it again.
type Meta struct {
	Bytes   int64    `json:"bytes"`             // disk blocks taken, in bytes
	Inodes  int64    `json:"inodes"`            // files, folders, links and nodes
	Implied []string `json:"implied,omitempty"` // folders without own attributes; "" is the root
	Opaque  bool     `json:"opaque,omitempty"`  // the root hides all layers below
}

// Untar unpacks a tar stream into dir, an empty folder. It reads up to the
// tar's end and no further. When it fails, the folder holds an arbitrary part.
func Untar(ctx context.Context, dir string, r io.Reader, l limit.Limits) (Meta, error) {
	return untar(ctx, dir, r, l, new(Count))
}

func untar(ctx context.Context, dir string, r io.Reader, l limit.Limits, count *Count) (Meta, error) {
	t, err := openTree(dir, l)
	if err != nil {
		return Meta{}, err
	}
	u := &unpacker{tree: t, count: count, limits: l, buf: make([]byte, 256<<10)}
	err = u.start(dir)
	if err == nil {
		err = u.run(ctx, tar.NewReader(r))
	}
	if err := errors.Join(err, t.close()); err != nil {
		return Meta{}, err
	}
	for _, p := range t.implied {
		u.meta.Implied = append(u.meta.Implied, p)
	}
	u.meta.Inodes += t.dirs
	u.meta.Bytes += t.dirs * u.space.block
	return u.meta, nil
}

type unpacker struct {
	tree    *tree
	limits  limit.Limits
	meta    Meta
	buf     []byte
	space   space
	entries int64
	count   *Count
}

func (u *unpacker) start(dir string) error {
	if err := unix.Fchmod(u.tree.root, 0o755); err != nil {
		return fmt.Errorf("set mode of layer folder: %w", err)
	}
	u.tree.dirs = 1
	if err := u.tree.noteImplied(u.tree.root); err != nil {
		return err
	}
	return u.space.start(u.tree.root, u.limits)
}

func (u *unpacker) run(ctx context.Context, tr *tar.Reader) error {
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return tarError(err)
		}
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if u.entries++; u.entries > u.limits.LayerEntries {
			return limit.Error(kind.Exhausted, "number of entries of a layer", "layer_entries", u.limits.LayerEntries)
		}
		if err := u.space.check(0); err != nil {
			return err
		}
		if err := u.entry(tr, h); err != nil {
			return err
		}
		u.count.Bytes.Store(u.meta.Bytes)
		u.count.Inodes.Store(u.meta.Inodes + u.tree.dirs)
	}
}

// tarError classifies what the tar reader says. Errors of the stream below it
// come through as they are.
func tarError(err error) error {
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF):
		return kind.Errorf(kind.DataLoss, "layer ends in the middle: %w", err)
	case kind.Of(err) != kind.Internal:
		return err
	}
	return kind.Errorf(kind.Invalid, "read tar: %w", err)
}

// entry unpacks one entry.
func (u *unpacker) entry(tr *tar.Reader, h *tar.Header) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil // comments, as git archive writes them
	}
	name, err := u.cleanName(h.Name)
	if err != nil {
		return err
	}
	a, err := u.attributes(h)
	if err != nil {
		return fmt.Errorf("entry %q: %w", clip(name), err)
	}
	if name == "" {
		return u.rootEntry(h, a)
	}
	if done, err := u.whiteout(name); done || err != nil {
		return err
	}
	if isDevice(h) && h.Devmajor == 0 && h.Devminor == 0 && h.Typeflag == tar.TypeChar {
		return nil // overlayfs's own whiteout, which an image does not get to make
	}
	if err := u.tree.enter(parentOf(name)); err != nil {
		return err
	}
	if err := u.create(tr, h, name, a); err != nil {
		return pathError(typeName(h.Typeflag), clip(name), err)
	}
	return nil
}

// rootEntry is "./": the layer's root folder itself, which is there already
// and may not be anything else.
func (u *unpacker) rootEntry(h *tar.Header, a attributes) error {
	if h.Typeflag != tar.TypeDir {
		return kind.Errorf(kind.Invalid, "the root entry is a %s, not a folder", typeName(h.Typeflag))
	}
	if err := u.tree.leave(); err != nil {
		return err
	}
	return u.applyDir(u.tree.root, a)
}

func (u *unpacker) create(tr *tar.Reader, h *tar.Header, name string, a attributes) error {
	base := path.Base(name)
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse, tar.TypeCont:
		return u.file(tr, h.Size, base, a)
	case tar.TypeDir:
		return u.dir(base, a)
	case tar.TypeSymlink:
		return u.symlink(h.Linkname, base, a)
	case tar.TypeLink:
		return u.hardlink(h.Linkname, base)
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		return u.node(h, base, a)
	}
	return kind.Errorf(kind.Invalid, "type %q is not known", h.Typeflag)
}

// cleanName makes a path relative and takes ".." out by its letters, as if the
// layer's root were the root of everything.
func (u *unpacker) cleanName(name string) (string, error) {
	if strings.IndexByte(name, 0) >= 0 {
		return "", kind.Errorf(kind.Invalid, "name of an entry contains NUL")
	}
	if name == "" {
		return "", kind.Errorf(kind.Invalid, "name of an entry is empty")
	}
	clean := path.Clean("/" + name)[1:]
	if len(clean) > u.limits.PathBytes {
		return "", limit.Error(kind.Invalid, "name of an entry", "path_bytes", u.limits.PathBytes)
	}
	for part := range strings.SplitSeq(clean, "/") {
		if len(part) > u.limits.NameBytes {
			return "", limit.Error(kind.Invalid, "component of an entry's name", "name_bytes", u.limits.NameBytes)
		}
	}
	return clean, nil
}

// replacing makes something new, deleting what has the name if need be: of two
// entries of the same name the later one counts.
func (u *unpacker) replacing(base string, make func() error) error {
	err := make()
	if err != unix.EEXIST {
		return err
	}
	if err := u.tree.remove(base); err != nil {
		return err
	}
	return make()
}

func (u *unpacker) file(tr io.Reader, size int64, base string, a attributes) error {
	if size > u.limits.LayerBytes {
		return limit.Error(kind.Invalid, "file", "layer_bytes", u.limits.LayerBytes)
	}
	if err := u.space.check(size); err != nil {
		return err
	}
	fd := -1
	err := u.replacing(base, func() (err error) {
		fd, err = unix.Openat(u.tree.dir, base, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		return err
	})
	if err != nil {
		return err
	}
	err = u.fill(fd, tr, size)
	if err == nil {
		err = u.apply(fd, a)
	}
	if e := unix.Close(fd); err == nil {
		err = e
	}
	u.meta.Inodes++
	u.meta.Bytes += u.space.round(size)
	return err
}

func (u *unpacker) fill(fd int, tr io.Reader, size int64) error {
	for size > 0 {
		n, err := tr.Read(u.buf[:min(int64(len(u.buf)), size)])
		size -= int64(n)
		for b := u.buf[:n]; len(b) > 0; {
			w, err := unix.Write(fd, b)
			if err == unix.EINTR {
				continue
			}
			if err != nil {
				return err
			}
			b = b[w:]
		}
		if err != nil && !(err == io.EOF && size == 0) {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return tarError(err)
		}
	}
	return nil
}

// dir makes a folder or, if there is one, gives it this entry's attributes.
func (u *unpacker) dir(base string, a attributes) error {
	opaque := false
	err := unix.Mkdirat(u.tree.dir, base, 0o700)
	if err == unix.EEXIST {
		var st unix.Stat_t
		if err := unix.Fstatat(u.tree.dir, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			opaque = isWhiteout(&st)
			if err := u.tree.remove(base); err != nil {
				return err
			}
			err = unix.Mkdirat(u.tree.dir, base, 0o700)
		}
	}
	switch err {
	case nil:
		u.tree.dirs++
	case unix.EEXIST:
	default:
		return err
	}
	fd, err := unix.Openat(u.tree.dir, base, openDir, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if opaque {
		if err := unix.Fsetxattr(fd, opaqueXattr, []byte("y"), 0); err != nil {
			return err
		}
	}
	return u.applyDir(fd, a)
}

func (u *unpacker) applyDir(fd int, a attributes) error {
	if len(u.tree.implied) > 0 {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return err
		}
		delete(u.tree.implied, st.Ino)
	}
	return u.apply(fd, a)
}

func (u *unpacker) symlink(target, base string, a attributes) error {
	if target == "" || len(target) >= u.limits.PathBytes || strings.IndexByte(target, 0) >= 0 {
		return kind.Errorf(kind.Invalid, "target of %d bytes is empty, over the limit path_bytes = %d, or contains NUL", len(target), u.limits.PathBytes)
	}
	if err := u.replacing(base, func() error { return unix.Symlinkat(target, u.tree.dir, base) }); err != nil {
		return err
	}
	u.meta.Inodes++
	return u.applyAt(base, a, false)
}

// hardlink links to something of this layer that came before.
func (u *unpacker) hardlink(target, base string) error {
	target, err := u.cleanName(target)
	if err != nil {
		return err
	}
	if target == "" {
		return kind.Errorf(kind.Invalid, "links to the root folder")
	}
	from := u.tree.dir
	if dir := parentOf(target); dir != u.tree.dirPath {
		from, err = u.tree.lookup(orDot(dir), unix.RESOLVE_IN_ROOT)
		if err != nil {
			return kind.Errorf(kind.Invalid, "target %q: %w", clip(target), err)
		}
		defer unix.Close(from)
	}
	var st, own unix.Stat_t
	if err := unix.Fstatat(from, path.Base(target), &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return kind.Errorf(kind.Invalid, "target %q: %w", clip(target), err)
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR || isWhiteout(&st) {
		return kind.Errorf(kind.Invalid, "target %q is not a file", clip(target))
	}
	if unix.Fstatat(u.tree.dir, base, &own, unix.AT_SYMLINK_NOFOLLOW) == nil && own.Ino == st.Ino {
		return nil // the same file by both names already; replacing would lose it
	}
	return u.replacing(base, func() error {
		return unix.Linkat(from, path.Base(target), u.tree.dir, base, 0)
	})
}

func orDot(dir string) string {
	if dir == "" {
		return "."
	}
	return dir
}

func isDevice(h *tar.Header) bool {
	return h.Typeflag == tar.TypeChar || h.Typeflag == tar.TypeBlock
}

// node makes a device or FIFO. It is inert in the store, whose folders only
// root can enter, and in a container the device cgroup decides.
func (u *unpacker) node(h *tar.Header, base string, a attributes) error {
	mode, dev := uint32(unix.S_IFIFO), uint64(0)
	if isDevice(h) {
		if h.Devmajor < 0 || h.Devminor < 0 || h.Devmajor > math.MaxUint32 || h.Devminor > math.MaxUint32 {
			return kind.Errorf(kind.Invalid, "device number %d:%d", h.Devmajor, h.Devminor)
		}
		mode, dev = unix.S_IFCHR, unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))
		if h.Typeflag == tar.TypeBlock {
			mode = unix.S_IFBLK
		}
	}
	err := u.replacing(base, func() error { return unix.Mknodat(u.tree.dir, base, mode, int(dev)) })
	if err != nil {
		return err
	}
	u.meta.Inodes++
	return u.applyAt(base, a, true)
}

func typeName(flag byte) string {
	switch flag {
	case tar.TypeDir:
		return "folder"
	case tar.TypeSymlink:
		return "symbolic link"
	case tar.TypeLink:
		return "hard link"
	case tar.TypeChar, tar.TypeBlock:
		return "device"
	case tar.TypeFifo:
		return "fifo"
	}
	return "file"
}

func clip(s string) string {
	const most = 200
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}
