package layer

import (
	"errors"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"noded.dev/noded/internal/kind"
)

// Whiteouts of the OCI image specification (layer.md, "Whiteouts") become
// those of overlayfs: a character device 0:0 in the place of what is gone, and
// an attribute on a folder that hides what lies below.
const (
	whiteoutPrefix = ".wh."
	whiteoutOpaque = ".wh..wh..opq"
	opaqueXattr    = "trusted.overlay.opaque"
)

// whiteout handles an entry whose name is a whiteout's; false if it is not.
func (u *unpacker) whiteout(name string) (bool, error) {
	base := path.Base(name)
	if !strings.HasPrefix(base, whiteoutPrefix) {
		return false, nil
	}
	dir := parentOf(name)
	if base == whiteoutOpaque {
		return true, u.makeOpaque(dir)
	}
	if strings.HasPrefix(base, ".wh..wh.") && len(base) > len(".wh..wh.") {
		return true, nil // other metadata of aufs, as .wh..wh.plnk: means nothing here
	}
	gone := strings.TrimPrefix(base, whiteoutPrefix)
	if gone == "" || gone == "." || gone == ".." {
		return true, kind.Errorf(kind.Invalid, "whiteout %q names nothing", name)
	}
	if err := u.tree.enter(dir); err != nil {
		return true, err
	}
	return true, u.hide(gone, name)
}

func (u *unpacker) makeOpaque(dir string) error {
	if err := u.tree.enter(dir); err != nil {
		return err
	}
	var here, root unix.Stat_t
	if err := errors.Join(unix.Fstat(u.tree.dir, &here), unix.Fstat(u.tree.root, &root)); err != nil {
		return pathError("make folder opaque", dir, err)
	}
	if here.Ino == root.Ino {
		u.meta.Opaque = true // overlayfs does not look for the attribute on a layer's root
		return nil
	}
	if err := unix.Fsetxattr(u.tree.dir, opaqueXattr, []byte("y"), 0); err != nil {
		return pathError("make folder opaque", dir, err)
	}
	return nil
}

// hide whites a name out of the layers below. What this layer itself has by
// that name stays: a whiteout applies to lower layers only. A file hides what
// is below anyway, a folder must be made to.
func (u *unpacker) hide(gone, name string) error {
	err := unix.Mknodat(u.tree.dir, gone, unix.S_IFCHR, 0)
	if err == nil {
		u.meta.Inodes++
		return nil
	}
	if !errors.Is(err, unix.EEXIST) {
		return pathError("make whiteout", name, err)
	}
	var st unix.Stat_t
	if err := unix.Fstatat(u.tree.dir, gone, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return pathError("make whiteout", name, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil
	}
	fd, err := unix.Openat(u.tree.dir, gone, openDir, 0)
	if err != nil {
		return pathError("make whiteout", name, err)
	}
	defer unix.Close(fd)
	delete(u.tree.implied, st.Ino) // nothing below to take attributes from
	if err := unix.Fsetxattr(fd, opaqueXattr, []byte("y"), 0); err != nil {
		return pathError("make whiteout", name, err)
	}
	return nil
}

// isWhiteoutAt reports whether a name is a whiteout this layer made.
func isWhiteoutAt(dir int, name string) bool {
	var st unix.Stat_t
	err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	return err == nil && isWhiteout(&st)
}

func isWhiteout(st *unix.Stat_t) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
}

// parentOf is the folder of a clean path; "" for what lies in the root.
func parentOf(name string) string {
	dir := path.Dir(name)
	if dir == "." {
		return ""
	}
	return dir
}
