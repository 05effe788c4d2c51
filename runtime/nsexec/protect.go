package nsexec

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Protect executes this process's program again from a read-only mount of it
// that no file system tree has, unless that is done already. The shim calls it
// first of all, before it has any state: it only returns if there is nothing to
// do, or on failure. Descriptors that are not close-on-exec stay.
//
// A process inside a container can be told to execute /proc/self/exe, also as
// the interpreter of a script, and so gets hold of the host's file that the
// child was forked from (CVE-2019-5736). Through this mount it can read it, but
// neither write to it nor remount it: the mount is in no mount namespace.
func Protect() error {
	if ok, err := protected(); ok || err != nil {
		return err
	}
	tree, err := unix.OpenTree(unix.AT_FDCWD, "/proc/self/exe", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("clone mount of own program: %w", err)
	}
	defer unix.Close(tree)
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, attr); err != nil {
		return fmt.Errorf("make mount of own program read-only: %w", err)
	}
	err = unix.Exec("/proc/self/fd/"+strconv.Itoa(tree), os.Args, os.Environ())
	return fmt.Errorf("execute own program again: %w", err)
}

// protected reports whether this process's program is on a read-only mount.
func protected() (bool, error) {
	var st unix.Statfs_t
	if err := unix.Statfs("/proc/self/exe", &st); err != nil {
		return false, fmt.Errorf("look at mount of own program: %w", err)
	}
	return st.Flags&unix.ST_RDONLY != 0, nil
}
