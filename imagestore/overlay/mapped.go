package overlay

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"noded.dev/noded/internal/idmap"
	"noded.dev/noded/internal/kind"
	"noded.dev/noded/internal/namespace"
)

// mountMapped mounts r with the owners of its layers shown through
// r.UserNS's map. Nothing but the result is ever in this process's mount table.
func mountMapped(r Request) error {
	err := mount(r)
	if errors.Is(err, unix.EINVAL) && !kind.Is(err, kind.Precondition) {
		return mountAside(r) // before Linux 6.15 a layer's mount must be attached
	}
	return err
}

// mountAside is Aside, and brings the result here.
func mountAside(r Request) error {
	tree, err := Aside(r)
	if err != nil {
		return err
	}
	defer tree.Close()
	if err := unix.MoveMount(int(tree.Fd()), "", unix.AT_FDCWD, r.Target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("attach mount: %w", err)
	}
	return nil
}

// Aside mounts r, which has a UserNS, without attaching the result anywhere:
// the mount ends with its descriptor. It is made in a mount namespace that one
// thread has for as long as it takes, where the mapped layers hide the plain ones.
func Aside(r Request) (*os.File, error) {
	var tree *os.File
	err := namespace.OnThread(func() (err error) {
		tree, err = assembleAside(r)
		return err
	})
	return tree, err
}

func assembleAside(r Request) (*os.File, error) {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return nil, fmt.Errorf("make mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return nil, fmt.Errorf("make mounts private: %w", err)
	}
	for i, l := range r.Lower {
		if err := cover(l, r.UserNS); err != nil {
			return nil, fmt.Errorf("add layer %d of %d: %w", i+1, len(r.Lower), err)
		}
	}
	r.UserNS = nil
	if err := mount(r); err != nil {
		return nil, err
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, r.Target, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("clone mount: %w", err)
	}
	return os.NewFile(uintptr(fd), r.Target), nil
}

// cover mounts a folder, mapped, on itself.
func cover(dir string, userNS *os.File) error {
	tree, err := idmap.Clone(dir, userNS, false)
	if err != nil {
		return err
	}
	defer tree.Close()
	if err := unix.MoveMount(int(tree.Fd()), "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("attach mapped layer: %w", err)
	}
	return nil
}
