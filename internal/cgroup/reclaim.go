package cgroup

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"noded.dev/noded/internal/kind"
)

// CheckMemoryLimit makes sure that a new memory limit kills nothing. A v2
// kernel kills processes until a cgroup fits below a lowered memory.max, so
// what can be reclaimed is reclaimed first, and a limit that the cgroup does
// not fit below is of kind Precondition. A v1 kernel refuses such a limit
// itself (EBUSY). An unknown cgroup is nil.
func (h *Host) CheckMemoryLimit(dir string, limit int64) error {
	root, v2 := h.controller("memory")
	if limit <= 0 || !v2 || root == "" {
		return nil
	}
	dir = filepath.Join(root, clean(dir))
	usage, err := memoryCurrent(dir)
	if gone(err) || err == nil && usage < limit {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read memory usage: %w", err)
	}
	// Since Linux 5.19. It fails with EAGAIN where less could be reclaimed; what
	// is left says the same.
	_ = writeFile(filepath.Join(dir, "memory.reclaim"), strconv.FormatInt(usage-limit+1, 10))
	if usage, err = memoryCurrent(dir); err != nil {
		return fmt.Errorf("read memory usage: %w", err)
	}
	if usage >= limit {
		return kind.Errorf(kind.Precondition, "%d bytes are in use, which a limit of %d would kill processes for", usage, limit)
	}
	return nil
}

func memoryCurrent(dir string) (int64, error) {
	b, err := os.ReadFile(filepath.Join(dir, "memory.current"))
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
}
