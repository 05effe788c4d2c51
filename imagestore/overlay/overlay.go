// Package overlay mounts overlayfs through the new mount API, whose options
// come one by one and are not cut off at a page: images may have 500 layers.
package overlay

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"noded.dev/noded/internal/idmap"
)

// Request is one mount.
type Request struct {
	Lower  []string // topmost first, at least one, or two without Upper
	Upper  string   // "": the mount is read-only, for data alone: no programs, devices, set-id bits
	Work   string   // on Upper's file system, empty
	Target string   // an existing folder

	// UserNS, if set, is the user namespace through whose map the owners of
	// files in Lower are shown. Upper has the owners as they are.
	UserNS *os.File
}

// option is a mount option; optional ones are left out where the kernel does
// not know them.
type option struct {
	key, value string
	optional   bool
}

// options are the same for all mounts. An image cannot point overlayfs
// elsewhere (redirect_dir, metacopy), and no sync of the whole disk happens
// when a container ends (volatile: after a power cut containers are made anew
// anyway).
func options() []option {
	return []option{
		{"redirect_dir", "nofollow", false},
		{"metacopy", "off", false},
		{"index", "off", true},
		{"xino", "off", true},
		{"volatile", "", true},
	}
}

// Mount mounts r. Kind Precondition where the owners of files cannot be mapped.
func Mount(r Request) error {
	if r.UserNS != nil {
		return mountMapped(r)
	}
	return mount(r)
}

// mount hands paths to the kernel as /proc/self/fd/N, where they are long or
// hold characters that option parsers give a meaning.
func mount(r Request) error {
	if legacy() {
		return mountClassic(r)
	}
	o := opener{}
	defer o.close()
	fd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fmt.Errorf("open overlay file system: %w", err)
	}
	defer unix.Close(fd)
	set := func(key, path string) error {
		p, err := o.path(path, r.long())
		if err != nil {
			return err
		}
		return unix.FsconfigSetString(fd, key, p)
	}
	for i := range r.Lower {
		p, err := o.layer(r, i)
		if err != nil {
			return fmt.Errorf("add layer %d of %d: %w", i+1, len(r.Lower), err)
		}
		err = unix.FsconfigSetString(fd, "lowerdir+", p)
		if i == 0 && errors.Is(err, unix.EINVAL) {
			return mountClassic(r) // Linux 6.5 to 6.7
		}
		if err != nil {
			return explain(fd, fmt.Sprintf("add layer %d of %d", i+1, len(r.Lower)), err)
		}
	}
	if r.Upper != "" {
		if err := set("upperdir", r.Upper); err != nil {
			return explain(fd, "set upper folder", err)
		}
		if err := set("workdir", r.Work); err != nil {
			return explain(fd, "set work folder", err)
		}
	}
	for _, opt := range options() {
		err := setOption(fd, opt)
		if err != nil && !(opt.optional && errors.Is(err, unix.EINVAL)) {
			return explain(fd, "set option "+opt.key, err)
		}
	}
	if err := unix.FsconfigCreate(fd); err != nil {
		return explain(fd, "create overlay", err)
	}
	return attach(fd, r)
}

// legacy tells overlayfs before Linux 6.5, which collects any options for one
// page and looks at them only when the mount is made: it takes an option that
// lacks its value.
func legacy() bool {
	fd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	return unix.FsconfigSetFlag(fd, "lowerdir") == nil
}

func setOption(fd int, o option) error {
	if o.value == "" {
		return unix.FsconfigSetFlag(fd, o.key)
	}
	return unix.FsconfigSetString(fd, o.key, o.value)
}

func attach(fs int, r Request) error {
	attributes := 0
	if r.Upper == "" {
		attributes = unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC
	}
	m, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, attributes)
	if err != nil {
		return explain(fs, "make mount", err)
	}
	defer unix.Close(m)
	if err := unix.MoveMount(m, "", unix.AT_FDCWD, r.Target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("attach mount: %w", err)
	}
	return nil
}

// explain adds what the kernel logged to the file system context (fsopen(2)).
func explain(fd int, step string, err error) error {
	buf := make([]byte, 4096)
	if n, e := unix.Read(fd, buf); e == nil && n > 0 {
		return fmt.Errorf("%s: %w (%s)", step, err, strings.TrimSpace(string(buf[:n])))
	}
	return fmt.Errorf("%s: %w", step, err)
}

// opener keeps the descriptors behind /proc paths until the mount is made.
type opener []int

func (o *opener) close() {
	for _, fd := range *o {
		unix.Close(fd)
	}
}

// maxShown is how many bytes of layers' paths may stand in a line of mountinfo.
// Who reads that file (the OCI runtime, the kubelet) gives up at a line of 64 KiB
// and then sees no mount of the node at all; programs in C take a page.
const maxShown = 4096

// long reports whether the paths are too many to be shown by their names.
func (r Request) long() bool {
	n := 0
	for _, l := range r.Lower {
		n += len(l) + len(",lowerdir+=")
	}
	return n > maxShown
}

// layer is path for a lower folder, which may have to be mapped.
func (o *opener) layer(r Request, i int) (string, error) {
	if r.UserNS == nil {
		return o.path(r.Lower[i], r.long())
	}
	return o.mapped(r.Lower[i], r.UserNS)
}

func (o *opener) mapped(p string, userNS *os.File) (string, error) {
	tree, err := idmap.Clone(p, userNS, false)
	if err != nil {
		return "", err
	}
	defer tree.Close()
	fd, err := unix.FcntlInt(tree.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("open %s: %w", p, err)
	}
	return o.keep(fd), nil
}

// path returns p itself if it is short and plain (readable in mountinfo).
func (o *opener) path(p string, long bool) (string, error) {
	if !long && len(p) < 250 && !strings.ContainsAny(p, `\:,"`) {
		return p, nil
	}
	return o.proc(p)
}

func (o *opener) proc(p string) (string, error) {
	fd, err := unix.Open(p, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("open %s: %w", p, err)
	}
	return o.keep(fd), nil
}

func (o *opener) keep(fd int) string {
	*o = append(*o, fd)
	return "/proc/self/fd/" + strconv.Itoa(fd)
}

// mountClassic is mount(2), whose options share one page: some 200 layers.
func mountClassic(r Request) error {
	o := opener{}
	defer o.close()
	lower := make([]string, len(r.Lower))
	for i, l := range r.Lower {
		var err error
		if r.UserNS != nil {
			lower[i], err = o.mapped(l, r.UserNS)
		} else {
			lower[i], err = o.proc(l)
		}
		if err != nil {
			return err
		}
	}
	data, flags := "lowerdir="+strings.Join(lower, ":"), uintptr(unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC)
	if r.Upper != "" {
		upper, err := o.proc(r.Upper)
		if err != nil {
			return err
		}
		work, err := o.proc(r.Work)
		if err != nil {
			return err
		}
		data, flags = data+",upperdir="+upper+",workdir="+work, 0
	}
	if len(data) > os.Getpagesize()-200 {
		return fmt.Errorf("mount overlay: %d layers need Linux 6.8", len(r.Lower))
	}
	required := data
	for _, opt := range options() {
		text := "," + opt.key
		if opt.value != "" {
			text += "=" + opt.value
		}
		data += text
		if !opt.optional {
			required += text
		}
	}
	err := unix.Mount("overlay", r.Target, "overlay", flags, data)
	if errors.Is(err, unix.EINVAL) {
		err = unix.Mount("overlay", r.Target, "overlay", flags, required)
	}
	if err != nil {
		return fmt.Errorf("mount overlay: %w", err)
	}
	return nil
}

// Unmount takes a mount away; nil if there is none. What still holds it after
// a moment keeps a detached copy, and the place is free all the same.
func Unmount(target string) error {
	// A scanner that walks /proc holds a mount for milliseconds, and the kernel
	// has no event for its end.
	for range 20 {
		err := unix.Unmount(target, unix.UMOUNT_NOFOLLOW)
		switch {
		case err == nil:
			continue // mounted more than once
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT):
			return nil
		case !errors.Is(err, unix.EBUSY):
			return fmt.Errorf("unmount: %w", err)
		}
		time.Sleep(5 * time.Millisecond)
	}
	err := unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("detach mount: %w", err)
	}
	return nil
}

// Mounted reports whether dir is the root of an overlay mount.
func Mounted(dir string) bool {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil || fs.Type != unix.OVERLAYFS_SUPER_MAGIC {
		return false
	}
	var own, parent unix.Stat_t
	if unix.Lstat(dir, &own) != nil || unix.Lstat(dir+"/..", &parent) != nil {
		return false
	}
	return own.Dev != parent.Dev
}
