// Package hostdev finds the device nodes of this node that a container gets.
package hostdev

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	rspec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"noded.dev/noded/internal/kind"
)

const (
	maxDevices = 4096  // device nodes of one folder
	maxEntries = 65536 // entries that are looked at
	maxDepth   = 16
)

// notShared are parts of /dev that each container has of its own, or that are
// no devices.
var notShared = []string{"/dev/pts", "/dev/shm", "/dev/fd", "/dev/mqueue", "/dev/console", "/dev/.udev", "/dev/.lxc", "/dev/.lxd-mounts"}

// Resolve returns the device nodes behind a CRI device: one node, or all that
// are below a folder, with the paths that they get in the container. Links are
// followed at host, not below it. kind.NotFound if there is nothing at host,
// kind.Invalid if it is neither a device nor a folder, kind.Exhausted if the
// folder is too large.
func Resolve(host, container string) ([]rspec.LinuxDevice, error) {
	info, err := os.Stat(host)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil, kind.Errorf(kind.NotFound, "device %s does not exist", host)
	}
	if err != nil {
		return nil, kind.Errorf(kind.Invalid, "device: %w", err)
	}
	if info.IsDir() {
		w := walk{host: host, container: container}
		err := w.folder(host, 0)
		return w.found, err
	}
	d, ok := device(info)
	if !ok {
		return nil, kind.Errorf(kind.Invalid, "device %s is neither a device nor a folder of devices", host)
	}
	d.Path = container
	return []rspec.LinuxDevice{d}, nil
}

// All returns what a privileged container gets: every device of /dev.
func All() ([]rspec.LinuxDevice, error) { return Resolve("/dev", "/dev") }

// walk gathers the devices below one folder, within limits.
type walk struct {
	host, container string
	found           []rspec.LinuxDevice
	entries         int
}

func (w *walk) folder(dir string, depth int) error {
	if depth > maxDepth {
		return kind.Errorf(kind.Exhausted, "devices of %s: folders deeper than %d", w.host, maxDepth)
	}
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // unplugged meanwhile
	}
	if err != nil {
		return kind.Errorf(kind.Invalid, "devices: %w", err)
	}
	for _, e := range entries {
		if w.entries++; w.entries > maxEntries {
			return kind.Errorf(kind.Exhausted, "devices of %s: more than %d entries", w.host, maxEntries)
		}
		if err := w.entry(filepath.Join(dir, e.Name()), e, depth); err != nil {
			return err
		}
	}
	return nil
}

func (w *walk) entry(path string, e fs.DirEntry, depth int) error {
	if slices.Contains(notShared, path) {
		return nil
	}
	if e.IsDir() {
		return w.folder(path, depth+1)
	}
	if e.Type()&fs.ModeDevice == 0 {
		return nil
	}
	info, err := e.Info()
	if errors.Is(err, fs.ErrNotExist) {
		return nil // unplugged meanwhile
	}
	if err != nil {
		return kind.Errorf(kind.Invalid, "device: %w", err)
	}
	d, ok := device(info)
	if !ok {
		return nil
	}
	if len(w.found) == maxDevices {
		return kind.Errorf(kind.Exhausted, "devices of %s: more than %d", w.host, maxDevices)
	}
	below, err := filepath.Rel(w.host, path)
	if err != nil {
		return kind.Errorf(kind.Internal, "device %s: %w", path, err)
	}
	d.Path = filepath.Join(w.container, below)
	w.found = append(w.found, d)
	return nil
}

// device reads type, numbers, mode and owner; false if info is of no device.
func device(info fs.FileInfo) (rspec.LinuxDevice, bool) {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || info.Mode()&fs.ModeDevice == 0 {
		return rspec.LinuxDevice{}, false
	}
	d := rspec.LinuxDevice{
		Type:     "b",
		Major:    int64(unix.Major(st.Rdev)),
		Minor:    int64(unix.Minor(st.Rdev)),
		FileMode: new(fs.FileMode),
		UID:      &st.Uid,
		GID:      &st.Gid,
	}
	if info.Mode()&fs.ModeCharDevice != 0 {
		d.Type = "c"
	}
	*d.FileMode = info.Mode().Perm()
	return d, true
}
