// Package namespace makes the namespaces that a pod's containers share and
// keeps them alive by bind mounts, so that no process has to live in them.
//
// A pod's folder holds one file per namespace, "net", "ipc", "uts" and "user",
// onto which the namespace is mounted (namespaces(7)). Whoever opens such a file
// holds the namespace. It goes away with its last process, descriptor and mount.
package namespace

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"noded.dev/noded/internal/idmap"
	"noded.dev/noded/internal/kind"
)

// The kinds of namespace that can be pinned, which are also their file names.
const (
	Net  = "net"
	IPC  = "ipc"
	UTS  = "uts"
	User = "user"
)

// MaxHostname is the longest hostname in bytes (sethostname(2), __NEW_UTS_LEN).
const MaxHostname = 64

// maxStacked bounds how many mounts on one file Remove takes off.
const maxStacked = 16

// Request says which namespaces a pod gets and how they are set up.
type Request struct {
	Dir           string // made with mode 0700; its parent must exist
	Net, IPC, UTS bool
	Hostname      string            // needs UTS; "" keeps the host's
	Sysctls       map[string]string // written inside; each must belong to one of the namespaces

	// IDs, if set, asks for a user namespace with this map, which owns the
	// others: whoever has CAP_NET_ADMIN in it has that in Net.
	IDs *idmap.Mapping
}

type flavour struct {
	name string
	flag int
}

func (r Request) flavours() []flavour {
	var list []flavour
	for _, f := range []struct {
		want bool
		flavour
	}{
		{r.Net, flavour{Net, unix.CLONE_NEWNET}},
		{r.IPC, flavour{IPC, unix.CLONE_NEWIPC}},
		{r.UTS, flavour{UTS, unix.CLONE_NEWUTS}},
	} {
		if f.want {
			list = append(list, f.flavour)
		}
	}
	return list
}

// Path is where a pod's namespace of a kind is pinned.
func Path(dir, kind string) string { return filepath.Join(dir, kind) }

// Pinned reports whether path is a namespace and not the bare file that is
// left when its mount is gone.
func Pinned(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}

// Create makes the namespaces that r asks for, brings the loopback interface
// up, sets hostname and sysctls, and pins them in r.Dir. Namespaces already
// pinned there are kept and set up again, so it can be repeated after a crash
// at any instruction; with IDs all of them or none are kept. Kind Invalid for a
// request that cannot work, Exhausted where the kernel's limit of namespaces is
// reached.
func Create(ctx context.Context, r Request) error {
	if err := r.validate(); err != nil {
		return err
	}
	if err := os.Mkdir(r.Dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make folder of namespaces: %w", err)
	}
	if r.IDs != nil {
		if err := r.makeOwned(); err != nil {
			return fmt.Errorf("make namespaces: %w", err)
		}
	}
	return OnThread(func() error { return r.make(ctx) })
}

func (r Request) validate() error {
	if len(r.Hostname) > MaxHostname {
		return kind.Errorf(kind.Invalid, "hostname of %d bytes is longer than %d", len(r.Hostname), MaxHostname)
	}
	if strings.ContainsRune(r.Hostname, 0) {
		return kind.Errorf(kind.Invalid, "hostname holds a NUL byte")
	}
	if r.Hostname != "" && !r.UTS {
		return kind.Errorf(kind.Invalid, "hostname %q without a UTS namespace of its own would be the host's", r.Hostname)
	}
	for key, value := range r.Sysctls {
		if err := r.validateSysctl(key, value); err != nil {
			return err
		}
	}
	return nil
}

// make runs on a thread that ends with it: the thread is in foreign namespaces
// from the first unshare on.
func (r Request) make(ctx context.Context) error {
	var fresh []flavour
	flags := 0
	for _, f := range r.flavours() {
		path := Path(r.Dir, f.name)
		if Pinned(path) {
			if err := enter(path, f.flag); err != nil {
				return err
			}
			continue
		}
		fresh = append(fresh, f)
		flags |= f.flag
	}
	if err := unshare(flags); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("set up namespaces: %w", err)
	}
	if err := r.setUp(); err != nil {
		return err
	}
	for _, f := range fresh {
		if err := pin(r.Dir, f.name, "thread-self"); err != nil {
			return err
		}
	}
	return nil
}

func unshare(flags int) error {
	if flags == 0 {
		return nil
	}
	if err := unix.Unshare(flags); err != nil {
		return fmt.Errorf("make namespaces: %w", limited(err))
	}
	return nil
}

// limited gives the kernel's limits their kind.
func limited(err error) error {
	switch {
	case errors.Is(err, unix.ENOSPC): // user.max_*_namespaces
		return kind.Errorf(kind.Exhausted, "the limit in /proc/sys/user is reached: %w", err)
	case errors.Is(err, unix.ENOMEM), errors.Is(err, unix.EAGAIN):
		return kind.Wrap(kind.Exhausted, err)
	}
	return err
}

// setUp configures the namespaces that the calling thread is in.
func (r Request) setUp() error {
	if r.Net {
		if err := loopbackUp(); err != nil {
			return err
		}
	}
	if r.Hostname != "" {
		if err := unix.Sethostname([]byte(r.Hostname)); err != nil {
			return fmt.Errorf("set hostname: %w", err)
		}
	}
	for key, value := range r.Sysctls {
		if err := r.writeSysctl(key, value); err != nil {
			return err
		}
	}
	return nil
}

// pin mounts a process's namespace onto dir/name; pid is its folder in /proc.
func pin(dir, name, pid string) error {
	path := Path(dir, name)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("make file to pin the %s namespace: %w", name, err)
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("make file to pin the %s namespace: %w", name, err)
	}
	if err := unix.Mount(nsPath(pid, name), path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("pin %s namespace: %w", name, err)
	}
	return nil
}

// Remove takes away what Create made in dir: the mounts, lazily, so that a
// process still inside does not matter, then files and folder. It is nil if
// there is nothing (any more).
func Remove(dir string) error {
	var errs []error
	for _, name := range []string{Net, IPC, UTS, User} {
		if err := unpin(Path(dir, name)); err != nil {
			errs = append(errs, fmt.Errorf("remove %s namespace: %w", name, err))
		}
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove folder of namespaces: %w", err)
	}
	return nil
}

// unpin unmounts and deletes one file. Deleting it also detaches the copies of
// the mount that other mount namespaces took with them when they were made.
func unpin(path string) error {
	for range maxStacked {
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if err == nil {
			continue
		}
		// EINVAL: not a mount point (any more), the end of the loop.
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
			break
		}
		return fmt.Errorf("unmount: %w", err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Prepare makes root, the folder above the pods' folders, a private mount of
// its own. Without it everything works, but where root lies on a shared mount
// (systemd makes all of them so) each pinned namespace would be copied into
// every mount namespace of the node. Repeating it does nothing.
func Prepare(root string) error {
	if err := os.MkdirAll(root, 0o700); err != nil {
		return fmt.Errorf("make folder of namespaces: %w", err)
	}
	err := unix.Mount("", root, "", unix.MS_PRIVATE, "")
	if err == nil {
		return nil
	}
	if !errors.Is(err, unix.EINVAL) { // EINVAL: not a mount point yet
		return fmt.Errorf("make %s private: %w", root, err)
	}
	if err := unix.Mount(root, root, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("mount %s on itself: %w", root, err)
	}
	if err := unix.Mount("", root, "", unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make %s private: %w", root, err)
	}
	return nil
}
