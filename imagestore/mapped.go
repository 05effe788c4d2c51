package imagestore

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"noded.dev/noded/imagestore/overlay"
	"noded.dev/noded/internal/idmap"
	"noded.dev/noded/internal/kind"
	"noded.dev/noded/internal/namespace"
)

// ids is nil for the node's own.
func (u *UserNS) ids() *idmap.Mapping {
	if u == nil {
		return nil
	}
	ids := u.IDs
	return &ids
}

// mount mounts an overlay whose image has its owners mapped.
func (u *UserNS) mount(r overlay.Request) (err error) {
	if r.UserNS, err = os.Open(u.Path); err != nil {
		return fmt.Errorf("open user namespace: %w", err)
	}
	defer r.UserNS.Close()
	return overlay.Mount(r)
}

func sameIDs(a, b *idmap.Mapping) bool { return a == b || a != nil && b != nil && *a == *b }

// mountMapped mounts a root filesystem in a user namespace. The OCI runtime looks it up as the root inside, who is let through to this one
// folder and nowhere else.
func (s *Store) mountMapped(r overlay.Request, dir string, users UserNS) error {
	_, gid, err := users.IDs.Root()
	if err != nil {
		return err
	}
	err = errors.Join(idmap.Pass(s.opts.Root), idmap.Pass(s.path(containersDir)), idmap.PassGroup(dir, gid))
	if err != nil {
		return err
	}
	return users.mount(r)
}

// Mapped returns nil if root filesystems can have mapped ids here, or why not,
// as Open found out. Kind Precondition.
func (s *Store) Mapped() error { return s.unmapped }

// tryMapped makes a mapped root filesystem that nobody sees, and looks at it.
func (s *Store) tryMapped() (err error) {
	dir := s.path(stagingDir, s.newName("try"))
	defer func() {
		err = errors.Join(err, os.RemoveAll(dir))
		if err != nil {
			err = kind.Wrap(kind.Precondition, fmt.Errorf("try to map ids: %w", err))
		}
	}()
	r := overlay.Request{
		Lower: []string{filepath.Join(dir, "lower")}, Upper: filepath.Join(dir, "upper"),
		Work: filepath.Join(dir, "work"), Target: filepath.Join(dir, "root"),
	}
	for _, d := range []string{r.Lower[0], filepath.Join(r.Lower[0], "file"), r.Upper, r.Work, r.Target} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return err
		}
	}
	const host, length = 1 << 16, 1 << 16
	span := idmap.Range{Host: host, Length: length}
	if r.UserNS, err = namespace.NewUser(idmap.Mapping{Users: span, Groups: span}); err != nil {
		return err
	}
	defer r.UserNS.Close()
	tree, err := overlay.Aside(r)
	if err != nil {
		return err
	}
	defer tree.Close()
	var st unix.Stat_t
	if err := unix.Fstatat(int(tree.Fd()), "file", &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("look at mapped file: %w", err)
	}
	if st.Uid != host || st.Gid != host {
		return fmt.Errorf("a mapped file belongs to %d:%d, not %d:%d", st.Uid, st.Gid, host, host)
	}
	return nil
}
