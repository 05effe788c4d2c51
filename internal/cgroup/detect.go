// Package cgroup reads, kills and removes control groups on cgroup v1, hybrid
// and v2 hosts. The OCI runtime creates the containers' cgroups and sets their
// limits; this package makes only the pod cgroups that are noded's own.
//
// A cgroup is named by its folder relative to the root of each hierarchy, as
// "kubepods/pod1/c1"; Host.Dir translates an OCI cgroupsPath into that form.
package cgroup

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Mode is how the host mounts its hierarchies.
type Mode int

const (
	// V1 has controllers in v1 hierarchies and no v2 tree.
	V1 Mode = iota
	// Hybrid has controllers in v1 hierarchies and a v2 tree beside them, which
	// tracks processes and may hold single controllers such as hugetlb.
	Hybrid
	// V2 has one tree with all controllers.
	V2
)

func (m Mode) String() string {
	switch m {
	case V1:
		return "v1"
	case Hybrid:
		return "hybrid"
	case V2:
		return "v2"
	}
	return "unknown"
}

// DefaultRoot is where hosts mount cgroup hierarchies.
const DefaultRoot = "/sys/fs/cgroup"

// hierarchy is one mounted v1 tree with the controllers it carries; a named
// tree without controllers carries "name=systemd".
type hierarchy struct {
	dir         string
	controllers []string
}

// Host is the cgroup layout of this machine, read once.
type Host struct {
	mode    Mode
	unified string // mount point of the v2 tree; "" if there is none
	v1      []hierarchy
	systemd bool
}

// Detect reads which hierarchies are mounted at or below root; "" means
// DefaultRoot. The error is of kind Internal when none is.
func Detect(root string) (*Host, error) {
	if root == "" {
		root = DefaultRoot
	}
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("detect cgroups: %w", err)
	}
	defer f.Close()
	h, err := parseMounts(f, filepath.Clean(root))
	if err != nil {
		return nil, fmt.Errorf("detect cgroups: %w", err)
	}
	h.systemd = systemdRuns()
	return h, nil
}

// parseMounts finds the cgroup mounts below root in a mountinfo file; see
// proc_pid_mountinfo(5) for the fields.
func parseMounts(r io.Reader, root string) (*Host, error) {
	h := &Host{}
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 64<<10), 1<<20) // an overlay mount's options can exceed 64 KiB
	for lines.Scan() {
		before, after, ok := strings.Cut(lines.Text(), " - ")
		fields, fs := strings.Fields(before), strings.Fields(after)
		if !ok || len(fields) < 6 || len(fs) < 3 {
			continue
		}
		point := unescape(fields[4])
		if point != root && !strings.HasPrefix(point, root+"/") {
			continue
		}
		switch fs[0] {
		case "cgroup2":
			h.unified = point
		case "cgroup":
			if c := v1Controllers(fs[2]); len(c) > 0 {
				h.v1 = append(h.v1, hierarchy{point, c})
			}
		}
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	switch {
	case h.unified != "" && !h.anyV1Controller():
		h.mode, h.v1 = V2, nil
	case h.unified != "":
		h.mode = Hybrid
	case len(h.v1) > 0:
		h.mode = V1
	default:
		return nil, fmt.Errorf("no cgroup file system is mounted below %s", root)
	}
	return h, nil
}

func (h *Host) anyV1Controller() bool {
	for _, t := range h.v1 {
		if !strings.HasPrefix(t.controllers[0], "name=") {
			return true
		}
	}
	return false
}

// v1Controllers takes the controller names out of a v1 mount's super options.
func v1Controllers(options string) []string {
	var list []string
	for o := range strings.SplitSeq(options, ",") {
		switch o {
		case "rw", "ro", "xattr", "noprefix", "clone_children", "none", "favordynmods", "nofavordynmods", "cpuset_v2_mode":
		default:
			if !strings.HasPrefix(o, "release_agent=") {
				list = append(list, o)
			}
		}
	}
	return list
}

// unescape undoes the octal escapes that the kernel uses in mountinfo.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// systemdRuns is sd_booted(3) with a socket to talk to.
func systemdRuns() bool {
	if st, err := os.Lstat("/run/systemd/system"); err != nil || !st.IsDir() {
		return false
	}
	comm, err := os.ReadFile("/proc/1/comm")
	if err != nil || strings.TrimSpace(string(comm)) != "systemd" {
		return false
	}
	return unix.Access("/run/systemd/private", unix.F_OK) == nil
}

// Mode tells the host's layout.
func (h *Host) Mode() Mode { return h.mode }

// Systemd reports whether systemd is process 1 and answers on its private
// socket; the cgroup driver "auto" means systemd exactly then.
func (h *Host) Systemd() bool { return h.systemd }

// Controllers lists the controllers that can limit a container, sorted. On a
// hybrid host these are the v1 ones and those left in the v2 tree.
func (h *Host) Controllers() []string {
	var list []string
	for _, t := range h.v1 {
		if !strings.HasPrefix(t.controllers[0], "name=") {
			list = append(list, t.controllers...)
		}
	}
	if h.unified != "" {
		if b, err := os.ReadFile(filepath.Join(h.unified, "cgroup.controllers")); err == nil {
			list = append(list, strings.Fields(string(b))...)
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// controller returns the mount point that carries the controller: the v1
// hierarchy or else the v2 tree. v2 tells which; dir is "" if there is none.
func (h *Host) controller(name string) (dir string, v2 bool) {
	for _, t := range h.v1 {
		if slices.Contains(t.controllers, name) {
			return t.dir, false
		}
	}
	return h.unified, true
}

// roots lists the mount points of all hierarchies, the v2 tree first.
func (h *Host) roots() []string {
	var list []string
	if h.unified != "" {
		list = append(list, h.unified)
	}
	for _, t := range h.v1 {
		list = append(list, t.dir)
	}
	return list
}
