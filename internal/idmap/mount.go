package idmap

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"noded.dev/noded/internal/kind"
)

// Clone opens a copy of the mount at path, beginning there, that shows the
// owners of its files as the user namespace's map says. It is attached
// nowhere, so that no mount table has it, and ends with its descriptor. With
// recursive, the mounts below are part of it and mapped too. Kind Precondition
// where the file system, or this kernel, cannot do it.
func Clone(path string, userNS *os.File, recursive bool) (*os.File, error) {
	flags := uint(0)
	if recursive {
		flags = unix.AT_RECURSIVE
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|flags)
	if err != nil {
		return nil, unable(fmt.Errorf("clone mount of %s: %w", path, err), err)
	}
	tree := os.NewFile(uintptr(fd), path)
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(userNS.Fd())}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|flags, attr); err != nil {
		tree.Close()
		return nil, unable(fmt.Errorf("map the owners of files in %s (%s): %w", path, fsName(path), err), err)
	}
	return tree, nil
}

// unable marks the answers of a kernel or a file system that has no id maps:
// EINVAL from one that lacks them, EPERM from a file system of another user
// namespace or a mount that is mapped already.
func unable(err, cause error) error {
	for _, errno := range []error{unix.EINVAL, unix.EPERM, unix.ENOSYS, unix.EOPNOTSUPP} {
		if errors.Is(cause, errno) {
			return kind.Wrap(kind.Precondition, err)
		}
	}
	return err
}

// fsName is the type of the file system that a path without links is on. It
// does not ask the file system, which may be one whose server is gone.
func fsName(path string) string {
	name, best := "unknown file system", -1
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return name
	}
	for line := range strings.Lines(string(table)) {
		mount, source, _ := strings.Cut(line, " - ")
		m, s := strings.Fields(mount), strings.Fields(source)
		if len(m) < 5 || len(s) < 1 {
			continue
		}
		point := strings.TrimSuffix(m[4], "/")
		if len(point) >= best && (path == m[4] || strings.HasPrefix(path, point+"/")) {
			name, best = s[0], len(point) // of several at one place the last is on top
		}
	}
	return name
}

// Close takes from others what they may do in a folder of noded's own, but for
// what Pass lets them do there.
func Close(dir string) error {
	info, err := os.Stat(dir)
	if err == nil && info.Mode().Perm() != info.Mode().Perm()&0o011|0o700 {
		err = os.Chmod(dir, info.Mode().Perm()&0o011|0o700)
	}
	if err != nil {
		return fmt.Errorf("close folder to others: %w", err)
	}
	return nil
}

// Pass lets everybody walk through a folder of noded's own, without listing
// it: an OCI runtime looks root filesystems up as the root of the user
// namespace, which is nobody here.
func Pass(dir string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("let user namespaces pass: %w", err)
	}
	if mode := info.Mode().Perm(); mode&0o011 != 0o011 {
		if err := os.Chmod(dir, mode|0o011); err != nil {
			return fmt.Errorf("let user namespaces pass: %w", err)
		}
	}
	return nil
}

// PassGroup lets one group walk through a folder of noded's own, and nobody
// else: the group of the root of one user namespace.
func PassGroup(dir string, gid int) error {
	if err := errors.Join(os.Chown(dir, 0, gid), os.Chmod(dir, 0o710)); err != nil {
		return fmt.Errorf("let the user namespace pass: %w", err)
	}
	return nil
}

// Passable returns which folder above dir, a path without links, is closed to
// the roots of user namespaces; nil if none is. Kind Precondition.
func Passable(dir string) error {
	for at := filepath.Dir(dir); ; at = filepath.Dir(at) {
		info, err := os.Stat(at)
		if errors.Is(err, fs.ErrNotExist) {
			continue // will be made, by noded
		}
		if err != nil {
			return fmt.Errorf("look at folder: %w", err)
		}
		if info.Mode().Perm()&0o001 == 0 {
			return kind.Errorf(kind.Precondition, "%s has mode %#o: user namespaces cannot pass to %s; chmod o+x would let them", at, info.Mode().Perm(), dir)
		}
		if at == filepath.Dir(at) {
			return nil
		}
	}
}
