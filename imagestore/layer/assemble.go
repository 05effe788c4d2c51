package layer

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"noded.dev/noded/internal/idmap"
	"noded.dev/noded/internal/kind"
)

// Stacked is an unpacked layer in its place in an image.
type Stacked struct {
	Dir  string // the layer's folder
	Meta Meta
}

// Folder is a folder with the attributes that it has in an image.
type Folder struct {
	Path   string            `json:"path"` // relative; "" is the root
	UID    int               `json:"uid"`
	GID    int               `json:"gid"`
	Mode   uint32            `json:"mode"` // permission and special bits
	Sec    int64             `json:"sec"`  // modification time
	Nsec   int64             `json:"nsec"`
	Xattrs map[string][]byte `json:"xattrs,omitempty"`
}

// Mapped is the folder with the owner that it has on the node for a user
// namespace in which it shall have the image's. Kind Invalid for an owner whom
// the map does not have.
func (f Folder) Mapped(ids idmap.Mapping) (Folder, error) {
	uid, err := ids.User(uint32(f.UID))
	if err != nil {
		return f, fmt.Errorf("owner of folder: %w", err)
	}
	gid, err := ids.Group(uint32(f.GID))
	if err != nil {
		return f, fmt.Errorf("owner of folder: %w", err)
	}
	f.UID, f.GID, f.Xattrs = int(uid), int(gid), maps.Clone(f.Xattrs)
	for name, value := range f.Xattrs {
		if strings.HasPrefix(name, "system.posix_acl_") {
			if f.Xattrs[name], err = ids.ACL(value); err != nil {
				return f, err
			}
		}
	}
	return f, nil
}

// Corrections finds the folders of an image that overlayfs would show with
// made-up attributes. A layer is unpacked without its parents, so a folder
// that has no entry in it gets default ones there; overlayfs shows a folder as
// the topmost layer has it. The right ones are those of the highest layer that
// does have an entry for the folder. The root comes first and is always
// listed; every folder's parents come before it. layers is topmost first.
func Corrections(layers []Stacked) ([]Folder, error) {
	v, err := openView(layers)
	if err != nil {
		return nil, err
	}
	defer v.close()
	root, _, err := v.folder("")
	if err != nil {
		return nil, err
	}
	wrong := map[string]Folder{"": root}
	for _, l := range layers {
		for _, p := range l.Meta.Implied {
			if _, done := wrong[p]; done {
				continue
			}
			f, differs, err := v.folder(p)
			if err != nil {
				return nil, err
			}
			if differs {
				wrong[p] = f
			}
		}
	}
	// A correction sits in a layer of its own on top, where its parents must
	// be too, with their attributes.
	for p := range wrong {
		for dir := parentOf(p); dir != ""; dir = parentOf(dir) {
			if _, done := wrong[dir]; done {
				continue
			}
			if wrong[dir], _, err = v.folder(dir); err != nil {
				return nil, err
			}
		}
	}
	list := make([]Folder, 0, len(wrong))
	for _, f := range wrong {
		list = append(list, f)
	}
	slices.SortFunc(list, func(a, b Folder) int { return strings.Compare(a.Path, b.Path) })
	return list, nil
}

// view looks at stacked layers as overlayfs will.
type view struct {
	layers  []Stacked
	roots   []int
	implied []map[string]bool
}

func openView(layers []Stacked) (*view, error) {
	v := &view{layers: layers}
	for _, l := range layers {
		fd, err := unix.Open(l.Dir, openDir|unix.O_PATH, 0)
		if err != nil {
			v.close()
			return nil, fmt.Errorf("open layer: %w", err)
		}
		v.roots = append(v.roots, fd)
		set := make(map[string]bool, len(l.Meta.Implied))
		for _, p := range l.Meta.Implied {
			set[p] = true
		}
		v.implied = append(v.implied, set)
	}
	return v, nil
}

func (v *view) close() {
	for _, fd := range v.roots {
		unix.Close(fd)
	}
}

// What a layer has at a path.
type found int

const (
	nothing found = iota // neither the path nor anything in its place
	hidden               // a whiteout or something else in its place: lower layers do not count
	opaque               // nothing, but a parent hides lower layers
	folder               // the folder
	closed               // the folder, and a parent hides lower layers
)

// folder determines a folder's attributes in the image, and whether overlayfs
// would show others.
func (v *view) folder(p string) (f Folder, differs bool, err error) {
	default0 := Folder{Path: p, Mode: 0o755}
	seen := false
	for i := range v.layers {
		what, st, fd, err := v.look(i, p)
		if err != nil {
			return f, false, err
		}
		if what == folder || what == closed {
			if !v.implied[i][p] {
				f, err = read(fd, p, st)
				unix.Close(fd)
				return f, seen, err
			}
			unix.Close(fd)
			seen = true
		}
		if what == hidden || what == opaque || what == closed {
			break
		}
	}
	return default0, false, nil
}

// look finds a path in one layer, without following links. The descriptor is
// open if it is a folder.
func (v *view) look(i int, p string) (found, *unix.Stat_t, int, error) {
	fd, err := unix.Dup(v.roots[i])
	if err != nil {
		return nothing, nil, -1, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return nothing, nil, -1, err
	}
	hides := false
	parts := strings.Split(p, "/")
	if p == "" {
		parts = nil
	}
	for n, part := range parts {
		next, err := unix.Openat(fd, part, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		unix.Close(fd)
		if err != nil {
			if !errors.Is(err, unix.ENOENT) {
				return nothing, nil, -1, err
			}
			return absent(hides), nil, -1, nil
		}
		fd = next
		if err := unix.Fstat(fd, &st); err != nil {
			unix.Close(fd)
			return nothing, nil, -1, err
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			unix.Close(fd)
			return hidden, nil, -1, nil
		}
		// A folder that is itself opaque still takes its attributes from
		// below; its content does not.
		if n < len(parts)-1 {
			hides = hides || isOpaque(fd)
		}
	}
	if hides {
		return closed, &st, fd, nil
	}
	return folder, &st, fd, nil
}

func absent(hides bool) found {
	if hides {
		return opaque
	}
	return nothing
}

func isOpaque(fd int) bool {
	var buf [4]byte
	n, err := unix.Getxattr(procPath(fd), opaqueXattr, buf[:])
	return err == nil && n == 1 && buf[0] == 'y'
}

func procPath(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

func read(fd int, p string, st *unix.Stat_t) (Folder, error) {
	f := Folder{Path: p, UID: int(st.Uid), GID: int(st.Gid), Mode: st.Mode & 0o7777, Sec: st.Mtim.Sec, Nsec: st.Mtim.Nsec}
	buf := make([]byte, 64<<10)
	n, err := unix.Listxattr(procPath(fd), buf)
	if err == unix.ENOTSUP {
		return f, nil
	}
	if err != nil {
		return f, fmt.Errorf("list extended attributes: %w", err)
	}
	for name := range strings.SplitSeq(strings.TrimRight(string(buf[:n]), "\x00"), "\x00") {
		if !keepXattr(name) {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := unix.Getxattr(procPath(fd), name, value)
		if err != nil {
			return f, fmt.Errorf("read extended attribute: %w", err)
		}
		if f.Xattrs == nil {
			f.Xattrs = map[string][]byte{}
		}
		f.Xattrs[name] = value[:n]
	}
	return f, nil
}

// Build makes folders in dir, an empty folder, as Corrections lists them.
func Build(dir string, list []Folder) error {
	root, err := unix.Open(dir, openDir, 0)
	if err != nil {
		return fmt.Errorf("open folder: %w", err)
	}
	defer unix.Close(root)
	for _, f := range list {
		if f.Path == "" {
			continue
		}
		if err := os.Mkdir(path.Join(dir, f.Path), 0o700); err != nil {
			return kind.Wrap(errnoKind(err), fmt.Errorf("make corrected folder: %w", err))
		}
	}
	for _, f := range slices.Backward(list) {
		if err := Apply(path.Join(dir, f.Path), f); err != nil {
			return err
		}
	}
	return nil
}

// Apply gives a folder its attributes. dir is a folder that only this process
// writes to, so its path can be trusted.
func Apply(dir string, f Folder) error {
	fd, err := unix.Open(dir, openDir, 0)
	if err != nil {
		return fmt.Errorf("open folder: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.Fchown(fd, f.UID, f.GID); err != nil {
		return fmt.Errorf("set owner of folder: %w", err)
	}
	for name, value := range f.Xattrs {
		if err := xattrError(name, unix.Fsetxattr(fd, name, value, 0)); err != nil {
			return fmt.Errorf("set extended attribute of folder: %w", err)
		}
	}
	if err := unix.Fchmod(fd, f.Mode); err != nil {
		return fmt.Errorf("set mode of folder: %w", err)
	}
	if f.Sec == 0 && f.Nsec == 0 {
		return nil
	}
	return setTime(fd, []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Sec: f.Sec, Nsec: f.Nsec}})
}
