package spec

import (
	"regexp"
	"strconv"
	"strings"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/internal/kind"
)

const unlimited = -1

// validateResources checks ranges. Zero is "not specified" everywhere.
func validateResources(r *cri.LinuxContainerResources) error {
	for _, f := range []struct {
		what            string
		value, min, max int64
		unlimited       bool
	}{
		{"cpu_shares", r.GetCpuShares(), minCPUShares, maxCPUShares, false},
		{"cpu_quota", r.GetCpuQuota(), minCPUQuota, maxCPUQuota, true},
		{"cpu_period", r.GetCpuPeriod(), minCPUPeriod, maxCPUPeriod, false},
		{"memory_limit_in_bytes", r.GetMemoryLimitInBytes(), 1, maxMemory, true},
		{"memory_swap_limit_in_bytes", r.GetMemorySwapLimitInBytes(), 1, maxMemory, true},
		{"oom_score_adj", r.GetOomScoreAdj(), -1000, 1000, false},
	} {
		if f.value == 0 || f.unlimited && f.value == unlimited {
			continue
		}
		if f.value < f.min || f.value > f.max {
			return kind.Errorf(kind.Invalid, "%s %d is not within %d and %d", f.what, f.value, f.min, f.max)
		}
	}
	memory, swap := r.GetMemoryLimitInBytes(), r.GetMemorySwapLimitInBytes()
	if memory > 0 && swap > 0 && swap < memory {
		return kind.Errorf(kind.Invalid, "memory_swap_limit_in_bytes %d, which includes memory, is below memory_limit_in_bytes %d", swap, memory)
	}
	if err := validateCPUSet("cpuset_cpus", r.GetCpusetCpus(), maxCPU); err != nil {
		return err
	}
	if err := validateCPUSet("cpuset_mems", r.GetCpusetMems(), maxMemoryNode); err != nil {
		return err
	}
	if err := validateHugePages(r.GetHugepageLimits()); err != nil {
		return err
	}
	return validateUnified(r.GetUnified())
}

// validateOnNode refuses CPUs and memory nodes that this node does not have;
// the kernel would, but in words that no user knows the pod by.
func validateOnNode(r *cri.LinuxContainerResources, f Facts) error {
	if f.CPUs > 0 {
		if err := validateCPUSet("cpuset_cpus", r.GetCpusetCpus(), f.CPUs-1); err != nil {
			return err
		}
	}
	if f.MemoryNodes > 0 {
		return validateCPUSet("cpuset_mems", r.GetCpusetMems(), f.MemoryNodes-1)
	}
	return nil
}

// validateCPUSet reads the list format of cpuset(7): "0-3,8". "" is all.
func validateCPUSet(what, list string, highest int) error {
	if list == "" {
		return nil
	}
	if len(list) > maxPath {
		return tooLong(what, len(list), maxPath)
	}
	for _, part := range strings.Split(list, ",") {
		first, last, isRange := strings.Cut(part, "-")
		if !isRange {
			last = first
		}
		a, okA := plainNumber(first)
		b, okB := plainNumber(last)
		if !okA || !okB || a > b || b > highest {
			return kind.Errorf(kind.Invalid, "%s %q: %q is not a number or range up to %d", what, clip(list), clip(part), highest)
		}
	}
	return nil
}

// plainNumber reads digits only; strconv alone would take a sign.
func plainNumber(s string) (int, bool) {
	if s == "" || strings.Trim(s, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.Atoi(s)
	return n, err == nil
}

var hugePageSize = regexp.MustCompile(`^[1-9][0-9]{0,3}[KMG]B$`)

func validateHugePages(limits []*cri.HugepageLimit) error {
	seen := map[string]bool{}
	for _, h := range limits {
		size := h.GetPageSize()
		if !hugePageSize.MatchString(size) {
			return kind.Errorf(kind.Invalid, `huge page size %q is not of the form "2MB"`, clip(size))
		}
		// Pages are powers of two; 3KB is spelt well and still none.
		if n, ok := plainNumber(size[:len(size)-2]); !ok || n&(n-1) != 0 {
			return kind.Errorf(kind.Invalid, "huge page size %q is not a power of two", size)
		}
		if seen[size] {
			return kind.Errorf(kind.Invalid, "two limits for huge pages of %s", size)
		}
		seen[size] = true
		if h.GetLimit() > maxMemory {
			return kind.Errorf(kind.Invalid, "huge page limit %d is above %d", h.GetLimit(), uint64(maxMemory))
		}
	}
	return nil
}

var unifiedKey = regexp.MustCompile(`^[a-z][a-z0-9_]*\.[a-zA-Z0-9_.]+$`)

// validateUnified keeps each key one file of the container's own cgroup. The
// cgroup.* files are the runtime's: they move, freeze and kill processes.
func validateUnified(unified map[string]string) error {
	if len(unified) > maxUnified {
		return tooMany("unified keys", len(unified), maxUnified)
	}
	for _, key := range sortedKeys(unified) {
		if len(key) > maxPathPart || !unifiedKey.MatchString(key) || strings.Contains(key, "..") || strings.HasPrefix(key, "cgroup.") {
			return kind.Errorf(kind.Invalid, "unified key %q", clip(key))
		}
		value := unified[key]
		if len(value) > maxUnifiedValue {
			return tooLong("unified "+key, len(value), maxUnifiedValue)
		}
		if strings.IndexByte(value, 0) >= 0 {
			return kind.Errorf(kind.Invalid, "unified %s has a NUL byte", key)
		}
	}
	return nil
}
