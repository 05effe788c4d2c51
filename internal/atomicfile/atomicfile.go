// Package atomicfile replaces a file so that a reader, or a start-up after a
// crash, finds the old content or the new, never a mixture.
package atomicfile

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// tempPrefix marks a file that a crash left behind; readers of a folder skip it.
const tempPrefix = ".tmp-"

// Write replaces path with data. The rename makes it atomic against the death
// of this process; it costs no disk sync, so after a power cut the file may be
// the old one, the new one or (on file systems that order the rename before
// the data) empty, which readers must treat as absent.
func Write(path string, data []byte, perm os.FileMode) error {
	return write(path, data, perm, false)
}

// WriteDurable is Write, and returns only when a power cut cannot undo it:
// data, rename and folder entry are on the disk.
func WriteDurable(path string, data []byte, perm os.FileMode) error {
	return write(path, data, perm, true)
}

// IsTemp reports whether name (without folder) is a leftover of a Write that
// was cut off. Start-up deletes these.
func IsTemp(name string) bool {
	return len(name) > len(tempPrefix) && name[:len(tempPrefix)] == tempPrefix
}

// RemoveTemps deletes what cut-off Writes of path left. Nobody may be writing
// it meanwhile.
func RemoveTemps(path string) error {
	left, err := filepath.Glob(filepath.Join(filepath.Dir(path), tempPrefix+filepath.Base(path)+"-*"))
	if err != nil {
		return fmt.Errorf("find temporary files: %w", err)
	}
	var errs []error
	for _, p := range left {
		if err := os.Remove(p); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func write(path string, data []byte, perm os.FileMode, durable bool) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), tempPrefix+filepath.Base(path)+"-")
	if err != nil {
		return fmt.Errorf("create temporary file: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close(), os.Remove(f.Name()))
		}
	}()
	if err := f.Chmod(perm); err != nil {
		return fmt.Errorf("set mode: %w", err)
	}
	if _, err := f.Write(data); err != nil {
		return fmt.Errorf("write %s: %w", filepath.Base(path), err)
	}
	if durable {
		if err := f.Sync(); err != nil {
			return fmt.Errorf("sync %s: %w", filepath.Base(path), err)
		}
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return fmt.Errorf("replace %s: %w", filepath.Base(path), err)
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("close %s: %w", filepath.Base(path), err)
	}
	if durable {
		return SyncDir(filepath.Dir(path))
	}
	return nil
}

// SyncDir makes the entries of a folder durable.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("open folder to sync: %w", err)
	}
	if err := d.Sync(); err != nil {
		return errors.Join(fmt.Errorf("sync folder %s: %w", dir, err), d.Close())
	}
	return d.Close()
}
