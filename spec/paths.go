package spec

import (
	"path"
	"slices"

	rspec "github.com/opencontainers/runtime-spec/specs-go"

	"noded.dev/noded/internal/kind"
)

// defaultMaskedPaths leak what the node or other containers do: memory, keys,
// timers, interrupts and power use (from which secrets can be computed).
var defaultMaskedPaths = []string{
	"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
	"/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats",
	"/sys/devices/virtual/powercap", "/sys/firmware",
}

// defaultReadonlyPaths control the node's kernel.
var defaultReadonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}

// applyPaths hides and protects parts of /proc and /sys. An absent list means
// the defaults: on the wire it cannot be told from an empty one, with which
// the kubelet unmasks only pods that have a user namespace of their own. In
// those it means what it says, as kubelets always send a list there else.
func applyPaths(in *Input, s *rspec.Spec) error {
	if in.privileged() {
		return nil
	}
	if in.Paths.UserNS != "" && len(in.security().GetMaskedPaths())+len(in.security().GetReadonlyPaths()) == 0 {
		return nil
	}
	s.Linux.MaskedPaths = pathsOr(in.security().GetMaskedPaths(), defaultMaskedPaths)
	s.Linux.ReadonlyPaths = pathsOr(in.security().GetReadonlyPaths(), defaultReadonlyPaths)
	return nil
}

func pathsOr(list, defaults []string) []string {
	if len(list) == 0 {
		return slices.Clone(defaults)
	}
	clean := make([]string, len(list))
	for i, p := range list {
		clean[i] = path.Clean(p)
	}
	return clean
}

func validatePaths(what string, list []string) error {
	if len(list) > maxMounts {
		return tooMany(what, len(list), maxMounts)
	}
	for _, p := range list {
		if err := checkText(what, p, maxPath); err != nil {
			return err
		}
		if !path.IsAbs(p) || path.Clean(p) == "/" {
			return kind.Errorf(kind.Invalid, "%s: %q is not an absolute path below the root", what, clip(p))
		}
	}
	return nil
}
