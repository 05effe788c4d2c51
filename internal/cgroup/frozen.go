package cgroup

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Frozen reports whether the cgroup is frozen by itself or from above, which
// is how runtimes pause a container. A process that enters it stops there.
func (h *Host) Frozen(dir string) (bool, error) {
	root, v2 := h.controller("freezer")
	if root == "" {
		return false, nil
	}
	file, frozen := "freezer.state", "THAWED"
	if v2 {
		file, frozen = "cgroup.events", "frozen 1"
	}
	b, err := os.ReadFile(filepath.Join(root, clean(dir), file))
	if gone(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read freezer: %w", err)
	}
	return strings.Contains(string(b), frozen) == v2, nil
}

// UnifiedOf lists the folders of the v2 tree that a new process of the
// container can be put into, best first: the cgroup itself, and that of the
// container's first process if it has moved below. It is empty if the cgroup
// is not in the v2 tree.
func (h *Host) UnifiedOf(dir string, initPid int) []string {
	own := h.Unified(dir)
	if st, err := os.Stat(own); own == "" || err != nil || !st.IsDir() {
		return nil
	}
	list := []string{own}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", initPid))
	if err != nil {
		return list
	}
	for line := range strings.Lines(string(b)) {
		if p, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			if below := h.Unified(p); strings.HasPrefix(below, own+"/") {
				list = append(list, below)
			}
		}
	}
	return list
}
