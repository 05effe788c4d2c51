package cgroup

import (
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
)

// Children lists the names of the cgroups right below dir, of every hierarchy.
// An unknown cgroup has none.
func (h *Host) Children(dir string) ([]string, error) {
	dir, err := checkDir(dir)
	if err != nil {
		return nil, err
	}
	var all []string
	for _, root := range h.roots() {
		entries, err := os.ReadDir(filepath.Join(root, dir))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for _, e := range entries {
			if e.IsDir() {
				all = append(all, e.Name())
			}
		}
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}

// SliceDir is the folder of a systemd slice, given as the slice's name or
// folder; an invalid one is given back as it is.
func (h *Host) SliceDir(parent string) string {
	if parent == "" {
		parent = DefaultSlice
	}
	dir, err := expandSlice(path.Base(parent))
	if err != nil {
		return parent
	}
	return dir
}
