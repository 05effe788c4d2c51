package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Setting is one limit file of a cgroup and what is, or shall be, in it, in
// the kernel's own words.
type Setting struct {
	File  string // "memory.max", "hugetlb.2MB.limit_in_bytes"
	Value string
}

// limitFiles are the files behind the CRI's limits, of both versions; a host
// has the ones of its own. Those of huge pages are found by name.
var limitFiles = []string{
	"cpu.shares", "cpu.cfs_period_us", "cpu.cfs_quota_us", "cpu.weight", "cpu.max",
	"memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.max", "memory.swap.max",
	"cpuset.cpus", "cpuset.mems",
}

// file is the path of a cgroup's file: the controller is in its name.
func (h *Host) file(dir, name string) string {
	controller, _, _ := strings.Cut(name, ".")
	if controller == "io" && h.mode != V2 {
		controller = "blkio"
	}
	root, _ := h.controller(controller)
	return filepath.Join(root, clean(dir), filepath.Base(name))
}

// hugeFiles are the limit files for huge pages of one size; "" is all sizes.
// Beside the limit of use there is one of reservations, which has to follow.
func (h *Host) hugeFiles(size string) []string {
	suffix := ".limit_in_bytes"
	if _, v2 := h.controller("hugetlb"); v2 {
		suffix = ".max"
	}
	var list []string
	for _, have := range h.hugePageSizes() {
		if size == "" || size == have {
			list = append(list, "hugetlb."+have+".rsvd"+suffix, "hugetlb."+have+suffix)
		}
	}
	return list
}

// Save reads the cgroup's limits, and the further files named, so that Restore
// can put them back. Files that do not exist are left out.
func (h *Host) Save(dir string, more ...string) ([]Setting, error) {
	var saved []Setting
	for _, name := range append(append(h.hugeFiles(""), limitFiles...), more...) {
		b, err := os.ReadFile(h.file(dir, name))
		switch {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENODEV), errors.Is(err, unix.EOPNOTSUPP):
		case err != nil:
			return nil, fmt.Errorf("read limit: %w", err)
		default:
			saved = append(saved, Setting{name, strings.TrimSpace(string(b))})
		}
	}
	return saved, nil
}

// Restore writes saved limits back where they differ. It is repeatable, and
// nil for a cgroup that is gone.
func (h *Host) Restore(dir string, saved []Setting) error {
	if len(saved) > 0 && len(h.Folders(dir)) == 0 {
		return nil
	}
	if err := h.write(dir, saved); err != nil {
		return fmt.Errorf("restore limits of cgroup %s: %w", clean(dir), err)
	}
	return nil
}

// SettingError is a limit that the kernel did not take.
type SettingError struct {
	Setting
	Err error
}

func (e *SettingError) Error() string {
	return fmt.Sprintf("write %q to %s: %v", e.Value, e.File, e.Err)
}
func (e *SettingError) Unwrap() error { return e.Err }

// Apply writes limits, all or nothing: if the kernel refuses one, those before
// it are put back. The error wraps a *SettingError.
func (h *Host) Apply(dir string, wanted []Setting) error {
	var names []string
	for _, s := range wanted {
		names = append(names, s.File)
	}
	saved, err := h.Save(dir, names...)
	if err != nil {
		return err
	}
	if err := h.write(dir, wanted); err != nil {
		return errors.Join(err, h.Restore(dir, saved))
	}
	return nil
}

// write goes over the settings until all are in force. Limits depend on each
// other (v1's memory and memory+swap, quota and period), and which must come
// first depends on the values: what is refused is tried again after the others.
func (h *Host) write(dir string, settings []Setting) error {
	for {
		var refused []Setting
		var errs []error
		for _, s := range settings {
			if err := h.set(dir, s); err != nil {
				refused = append(refused, s)
				errs = append(errs, &SettingError{s, err})
			}
		}
		if len(refused) == 0 || len(refused) == len(settings) {
			return errors.Join(errs...)
		}
		settings = refused
	}
}

func (h *Host) set(dir string, s Setting) error {
	path := h.file(dir, s.File)
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	now := strings.TrimSpace(string(b))
	if now == s.Value {
		return nil
	}
	// A file of several lines takes them one by one.
	lines := append(strings.Split(s.Value, "\n"), resets(s, now)...)
	for _, line := range lines {
		if err := writeFile(path, line+"\n"); err != nil {
			var p *fs.PathError
			if errors.As(err, &p) {
				return p.Err // the file is named by the caller, its folder is nobody's business
			}
			return err
		}
	}
	return nil
}

// resets are the lines that take a device out of a file that has one for each,
// where it is in the file now and shall not be.
func resets(s Setting, now string) []string {
	none := map[string]string{"io.max": "rbps=max wbps=max riops=max wiops=max", "io.weight": "default", "io.latency": "target=0"}[s.File]
	if none == "" {
		return nil
	}
	var lines []string
	for line := range strings.Lines(now) {
		device, _, _ := strings.Cut(strings.TrimSpace(line), " ")
		if strings.Contains(device, ":") && !strings.Contains("\n"+s.Value, "\n"+device+" ") {
			lines = append(lines, device+" "+none)
		}
	}
	return lines
}
