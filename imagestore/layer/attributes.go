package layer

import (
	"archive/tar"
	"errors"
	"math"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"noded.dev/noded/imagestore/limit"
	"noded.dev/noded/internal/kind"
)

// attributes are an entry's owner, mode, time and extended attributes.
type attributes struct {
	uid, gid int
	mode     uint32
	times    []unix.Timespec
	xattrs   map[string]string
}

const xattrRecord = "SCHILY.xattr."

func (u *unpacker) attributes(h *tar.Header) (attributes, error) {
	if h.Uid < 0 || h.Gid < 0 || h.Uid > math.MaxInt32 || h.Gid > math.MaxInt32 {
		return attributes{}, kind.Errorf(kind.Invalid, "owner %d:%d is outside 0..%d", h.Uid, h.Gid, math.MaxInt32)
	}
	a := attributes{uid: h.Uid, gid: h.Gid, mode: uint32(h.Mode & 0o7777)}
	a.times = []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Sec: h.ModTime.Unix(), Nsec: int64(h.ModTime.Nanosecond())}}
	var total int64
	for key, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(key, xattrRecord)
		if !ok {
			continue
		}
		if total += int64(len(name) + len(value)); total > u.limits.XattrBytes {
			return a, limit.Error(kind.Invalid, "extended attributes of an entry", "xattr_bytes", u.limits.XattrBytes)
		}
		if !keepXattr(name) {
			continue
		}
		if a.xattrs == nil {
			a.xattrs = map[string]string{}
		}
		a.xattrs[name] = value
	}
	return a, nil
}

// keepXattr says which extended attributes an image may set. Those of
// overlayfs would let it redirect lookups; trusted.* and security labels are
// the host's business.
func keepXattr(name string) bool {
	switch name {
	case "security.capability", "system.posix_acl_access", "system.posix_acl_default":
		return true
	}
	return strings.HasPrefix(name, "user.") && !strings.HasPrefix(name, "user.overlay.")
}

// apply sets attributes of an open file or folder. The owner comes first:
// changing it takes set-id bits and capabilities away.
func (u *unpacker) apply(fd int, a attributes) error {
	if err := unix.Fchown(fd, a.uid, a.gid); err != nil {
		return err
	}
	for name, value := range a.xattrs {
		if err := xattrError(name, unix.Fsetxattr(fd, name, []byte(value), 0)); err != nil {
			return err
		}
	}
	if err := unix.Fchmod(fd, a.mode); err != nil {
		return err
	}
	return setTime(fd, a.times)
}

// applyAt sets attributes of what cannot be opened: links and nodes, by name
// in the current folder and never followed.
func (u *unpacker) applyAt(base string, a attributes, mode bool) error {
	if err := unix.Fchownat(u.tree.dir, base, a.uid, a.gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	at := "/proc/self/fd/" + strconv.Itoa(u.tree.dir) + "/" + base
	for name, value := range a.xattrs {
		if err := xattrError(name, unix.Lsetxattr(at, name, []byte(value), 0)); err != nil {
			return err
		}
	}
	if mode {
		// The node was made by this process in a folder that only it writes to.
		if err := unix.Fchmodat(u.tree.dir, base, a.mode, 0); err != nil {
			return err
		}
	}
	return unix.UtimesNanoAt(u.tree.dir, base, a.times, unix.AT_SYMLINK_NOFOLLOW)
}

// xattrError ignores what this file system, or this kind of file, cannot have.
func xattrError(name string, err error) error {
	if err == nil || err == unix.ENOTSUP || err == unix.EPERM && strings.HasPrefix(name, "user.") {
		return nil
	}
	if errors.Is(err, unix.EINVAL) {
		return kind.Errorf(kind.Invalid, "extended attribute %s is malformed", name)
	}
	return err
}
