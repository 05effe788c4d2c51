package spec

import (
	"fmt"

	rspec "github.com/opencontainers/runtime-spec/specs-go"

	"noded.dev/noded/internal/kind"
)

// baseVersion is what every runtime in use understands. Runtimes refuse a spec
// that is newer than they are, so nothing newer is written without need.
const baseVersion = "1.0.2"

// Version is the lowest OCI runtime spec version that has all that s uses.
func Version(s *rspec.Spec) string {
	v := baseVersion
	need := func(used bool, version string) {
		if used && newer(version, v) {
			v = version
		}
	}
	need(s.Domainname != "", "1.1.0")
	for _, m := range s.Mounts {
		need(len(m.UIDMappings)+len(m.GIDMappings) > 0, "1.1.0")
	}
	if p := s.Process; p != nil {
		need(p.Scheduler != nil || p.IOPriority != nil, "1.1.0")
		need(p.ExecCPUAffinity != nil, "1.2.1")
	}
	if l := s.Linux; l != nil {
		need(len(l.TimeOffsets) > 0, "1.1.0")
		need(len(l.NetDevices) > 0 || l.MemoryPolicy != nil, "1.3.0")
	}
	return v
}

// applyVersion writes the version, or says that the handler is too old.
func applyVersion(in *Input, s *rspec.Spec) error {
	s.Version = Version(s)
	limit := choose(in.Facts.RuntimeSpecMax, baseVersion)
	if newer(s.Version, limit) {
		return kind.Errorf(kind.Precondition, "the container needs OCI spec version %s, its runtime handler takes %s at most", s.Version, limit)
	}
	return nil
}

// newer compares "major.minor.patch"; a suffix such as "-rc.1" is ignored.
func newer(a, b string) bool {
	var x, y [3]int
	for i, s := range []string{a, b} {
		to := []*[3]int{&x, &y}[i]
		// An unreadable version counts as 0.0.0: older than any need.
		_, _ = fmt.Sscanf(s, "%d.%d.%d", &to[0], &to[1], &to[2])
	}
	for i := range x {
		if x[i] != y[i] {
			return x[i] > y[i]
		}
	}
	return false
}
