package cgroup

import (
	"path"
	"path/filepath"
	"strings"

	"noded.dev/noded/internal/kind"
)

// Limits of a cgroup's name: a path handed to the kernel with its terminating
// NUL, and one folder's name (PATH_MAX and NAME_MAX of limits.h).
const (
	maxPath = 4096 - 1
	maxName = 255
)

// DefaultParent and DefaultSlice hold containers whose pod names no parent.
const (
	DefaultParent = "/noded"
	DefaultSlice  = "system.slice"
)

// OCIPath gives the cgroupsPath of a runtime spec for container id below
// parent: "/parent/id", or "slice:noded:id" for systemd. An empty parent means
// DefaultParent or DefaultSlice. A parent that is malformed or would leave the
// hierarchy is of kind Invalid.
func (h *Host) OCIPath(parent, id string, systemd bool) (string, error) {
	if err := checkID(id); err != nil {
		return "", err
	}
	if err := checkParent(parent); err != nil {
		return "", err
	}
	if systemd {
		return systemdPath(parent, id)
	}
	if parent == "" {
		parent = DefaultParent
	}
	full := path.Join("/", parent, id)
	if len(full) > maxPath {
		return "", kind.Errorf(kind.Invalid, "cgroup path of %d bytes is longer than %d", len(full), maxPath)
	}
	return full, nil
}

func systemdPath(parent, id string) (string, error) {
	if parent == "" {
		parent = DefaultSlice
	}
	slice := path.Base(parent)
	folder, err := expandSlice(slice)
	if err != nil {
		return "", err
	}
	// The kubelet hands over the whole folder, other clients the slice alone.
	if given := strings.Trim(path.Clean(parent), "/"); given != slice && given != folder {
		return "", kind.Errorf(kind.Invalid, "cgroup parent %q is not the folder %q of its slice", parent, folder)
	}
	return slice + ":noded:" + id, nil
}

func checkID(id string) error {
	switch {
	case id == "" || id == "." || id == "..":
		return kind.Errorf(kind.Invalid, "cgroup name %q is not a folder name", id)
	case strings.ContainsAny(id, "/:\x00\n"):
		return kind.Errorf(kind.Invalid, "cgroup name %q has a slash, colon, newline or NUL", id)
	case len(id) > maxName:
		return kind.Errorf(kind.Invalid, "cgroup name of %d bytes is longer than %d", len(id), maxName)
	}
	return nil
}

func checkParent(parent string) error {
	if len(parent) > maxPath {
		return kind.Errorf(kind.Invalid, "cgroup parent of %d bytes is longer than %d", len(parent), maxPath)
	}
	// A newline is allowed in a folder's name, but /proc/<pid>/cgroup and its
	// readers are lines; a colon separates the parts of a systemd path.
	if strings.ContainsAny(parent, "\x00\n:") {
		return kind.Errorf(kind.Invalid, "cgroup parent %q has a colon, newline or NUL", parent)
	}
	for name := range strings.SplitSeq(parent, "/") {
		if name == ".." {
			return kind.Errorf(kind.Invalid, "cgroup parent %q has a \"..\" element", parent)
		}
		if len(name) > maxName {
			return kind.Errorf(kind.Invalid, "cgroup parent has a name of %d bytes, longer than %d", len(name), maxName)
		}
	}
	return nil
}

// expandSlice gives the folder of a systemd slice: "a-b.slice" lies inside
// "a.slice" (systemd.slice(5)); "-.slice" is the root.
func expandSlice(slice string) (string, error) {
	name, ok := strings.CutSuffix(slice, ".slice")
	if !ok {
		return "", kind.Errorf(kind.Invalid, "cgroup parent %q is not a systemd slice", slice)
	}
	if name == "-" {
		return "", nil
	}
	var folders []string
	for i, part := range strings.Split(name, "-") {
		if part == "" {
			return "", kind.Errorf(kind.Invalid, "systemd slice %q has an empty part", slice)
		}
		prefix := part
		if i > 0 {
			prefix = strings.TrimSuffix(folders[i-1], ".slice") + "-" + part
		}
		folders = append(folders, prefix+".slice")
	}
	return strings.Join(folders, "/"), nil
}

// Dir gives the folder of an OCI cgroupsPath relative to each hierarchy's
// root, without a slash at either end. It never leads out of the root: ".."
// elements end there, and a slice that is not one is taken as a plain name.
func (h *Host) Dir(ociPath string) string {
	parts := strings.Split(ociPath, ":")
	if len(parts) != 3 {
		return clean(ociPath)
	}
	slice, prefix, name := parts[0], parts[1], parts[2]
	if slice == "" {
		slice = DefaultSlice
	}
	folder, err := expandSlice(slice)
	if err != nil {
		folder = slice
	}
	unit := name
	if !strings.HasSuffix(name, ".slice") {
		unit += ".scope"
		if prefix != "" {
			unit = prefix + "-" + unit
		}
	}
	return clean(folder + "/" + unit)
}

// clean makes any path relative to a root that it cannot leave.
func clean(dir string) string {
	return strings.TrimPrefix(filepath.Clean("/"+dir), "/")
}

// checkDir refuses the root itself where a cgroup below it is meant.
func checkDir(dir string) (string, error) {
	c := clean(dir)
	if c == "" || strings.ContainsRune(c, 0) {
		return "", kind.Errorf(kind.Invalid, "cgroup %q is not below a hierarchy's root", dir)
	}
	return c, nil
}
