// Package facts reads what this node can do: kernel features, noded's own
// privileges and limits. It reads and never changes anything.
package facts

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	rspec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Node is what was found. It does not change while the node is up, apart from
// OOMScoreFloor, Hostname and Rlimits, which are of the moment of reading.
type Node struct {
	Kernel   string // release, as uname -r
	Hostname string

	CgroupV2 bool // the unified hierarchy alone; false for v1 and hybrid
	Overlay  bool // overlayfs can be mounted
	Seccomp  bool // system call filters
	AppArmor bool
	SELinux  bool
	Swap     bool     // memory cgroups account for swap
	CPUs     int      // highest number of an online CPU, plus 1; 0 unknown
	Nodes    int      // the same of NUMA nodes
	Huge     []string // page sizes whose use can be limited: "2MB", "1GB"

	Capabilities  []string            // that noded has and can give: "CAP_CHOWN" …, in the kernel's order
	Rlimits       []rspec.POSIXRlimit // noded's own
	OOMScoreFloor int                 // lowest oom_score_adj that noded may set
}

// Read gathers the facts. What a kernel lacks is a fact and no error; errors
// are of /proc being unreadable. root stands for "/"; "" is the real one.
func Read(ctx context.Context, root string) (Node, error) {
	h := host{root: root}
	n := Node{
		Overlay:  h.hasFilesystem("overlay"),
		AppArmor: h.value("sys/module/apparmor/parameters/enabled") == "Y",
		SELinux:  h.exists("sys/fs/selinux/enforce"),
		CgroupV2: h.exists("sys/fs/cgroup/cgroup.controllers"),
		Rlimits:  ownRlimits(),
	}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return Node{}, fmt.Errorf("uname: %w", err)
	}
	n.Kernel = unix.ByteSliceToString(uts.Release[:])
	n.Hostname = unix.ByteSliceToString(uts.Nodename[:])
	status, err := h.status()
	if err != nil {
		return Node{}, err
	}
	_, n.Seccomp = status["Seccomp"]
	if n.Capabilities, err = capabilities(status); err != nil {
		return Node{}, err
	}
	if n.OOMScoreFloor, err = h.oomScoreFloor(n.Capabilities); err != nil {
		return Node{}, err
	}
	n.CPUs = count(h.value("sys/devices/system/cpu/online"))
	n.Nodes = count(h.value("sys/devices/system/node/online"))
	n.Swap = h.swap(n.CgroupV2)
	n.Huge = h.hugePages(n.CgroupV2)
	return n, ctx.Err()
}

// count is the last number of a list like "0-3,8" plus 1; 0 if there is none.
func count(list string) int {
	last := list[strings.LastIndexAny(list, ",-")+1:]
	n, err := strconv.Atoi(last)
	if err != nil {
		return 0
	}
	return n + 1
}

// host reads small files below a root.
type host struct{ root string }

func (h host) path(name string) string { return filepath.Join("/", h.root, name) }

func (h host) exists(name string) bool {
	_, err := os.Stat(h.path(name))
	return err == nil
}

// value is a file's trimmed content; "" if it cannot be read.
func (h host) value(name string) string {
	data, err := os.ReadFile(h.path(name))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(data))
}

func (h host) hasFilesystem(name string) bool {
	for line := range strings.Lines(h.value("proc/filesystems")) {
		if f := strings.Fields(line); len(f) > 0 && f[len(f)-1] == name {
			return true
		}
	}
	return false
}

func (h host) status() (map[string]string, error) {
	data, err := os.ReadFile(h.path("proc/self/status"))
	if err != nil {
		return nil, fmt.Errorf("read own status: %w", err)
	}
	status := map[string]string{}
	for line := range strings.Lines(string(data)) {
		key, value, _ := strings.Cut(line, ":")
		status[key] = strings.TrimSpace(value)
	}
	return status, nil
}

// oomScoreFloor: without CAP_SYS_RESOURCE a score can only be set as low as
// it once was set with it, which the kernel does not show; the present one is
// always permitted.
func (h host) oomScoreFloor(capabilities []string) (int, error) {
	if slices.Contains(capabilities, "CAP_SYS_RESOURCE") {
		return -1000, nil
	}
	score, err := strconv.Atoi(h.value("proc/self/oom_score_adj"))
	if err != nil {
		return 0, fmt.Errorf("read own oom_score_adj: %w", err)
	}
	return score, nil
}

// swap looks for the file that limits it. On v2 the root cgroup has none, so
// any child of it is asked; a kernel without swap accounting has it in no child.
func (h host) swap(v2 bool) bool {
	if !v2 {
		return h.exists("sys/fs/cgroup/memory/memory.memsw.limit_in_bytes")
	}
	own := h.value("proc/self/cgroup") // 0::/path
	if _, path, ok := strings.Cut(own, "::"); ok && h.exists(filepath.Join("sys/fs/cgroup", path, "memory.swap.max")) {
		return true
	}
	entries, err := os.ReadDir(h.path("sys/fs/cgroup"))
	if err != nil {
		return false
	}
	return slices.ContainsFunc(entries, func(e fs.DirEntry) bool {
		return e.IsDir() && h.exists(filepath.Join("sys/fs/cgroup", e.Name(), "memory.swap.max"))
	})
}

// hugePages lists the page sizes if the hugetlb controller can limit them.
func (h host) hugePages(v2 bool) []string {
	if v2 && !slices.Contains(strings.Fields(h.value("sys/fs/cgroup/cgroup.controllers")), "hugetlb") ||
		!v2 && !h.exists("sys/fs/cgroup/hugetlb/cgroup.procs") {
		return nil
	}
	entries, err := os.ReadDir(h.path("sys/kernel/mm/hugepages"))
	if err != nil {
		return nil
	}
	var sizes []string
	for _, e := range entries {
		var kb uint64
		if _, err := fmt.Sscanf(e.Name(), "hugepages-%dkB", &kb); err == nil && kb > 0 {
			sizes = append(sizes, pageSize(kb))
		}
	}
	return sizes
}

// pageSize writes a size as cgroup file names do.
func pageSize(kb uint64) string {
	switch {
	case kb >= 1<<20 && kb%(1<<20) == 0:
		return fmt.Sprintf("%dGB", kb>>20)
	case kb >= 1<<10 && kb%(1<<10) == 0:
		return fmt.Sprintf("%dMB", kb>>10)
	}
	return fmt.Sprintf("%dKB", kb)
}
