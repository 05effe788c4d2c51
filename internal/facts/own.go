package facts

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"

	rspec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"noded.dev/noded/internal/capability"
	"noded.dev/noded/internal/kind"
)

// capabilities are those that are both permitted and in the bounding set: only
// they can be given to a container. Ones newer than this list are left out.
func capabilities(status map[string]string) ([]string, error) {
	mask := ^uint64(0)
	for _, set := range []string{"CapPrm", "CapBnd"} {
		bits, err := strconv.ParseUint(status[set], 16, 64)
		if err != nil {
			return nil, fmt.Errorf("read own %s: %w", set, err)
		}
		mask &= bits
	}
	var names []string
	for i, name := range capability.Names {
		if mask&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	return names, nil
}

// ownRlimits are the limits that noded has itself; one that cannot be read is
// left out, which means "not known".
func ownRlimits() []rspec.POSIXRlimit {
	var limits []rspec.POSIXRlimit
	for _, r := range []struct {
		name string
		id   int
	}{
		{"RLIMIT_AS", unix.RLIMIT_AS}, {"RLIMIT_CORE", unix.RLIMIT_CORE}, {"RLIMIT_CPU", unix.RLIMIT_CPU},
		{"RLIMIT_DATA", unix.RLIMIT_DATA}, {"RLIMIT_FSIZE", unix.RLIMIT_FSIZE}, {"RLIMIT_LOCKS", unix.RLIMIT_LOCKS},
		{"RLIMIT_MEMLOCK", unix.RLIMIT_MEMLOCK}, {"RLIMIT_MSGQUEUE", unix.RLIMIT_MSGQUEUE}, {"RLIMIT_NICE", unix.RLIMIT_NICE},
		{"RLIMIT_NOFILE", unix.RLIMIT_NOFILE}, {"RLIMIT_NPROC", unix.RLIMIT_NPROC}, {"RLIMIT_RSS", unix.RLIMIT_RSS},
		{"RLIMIT_RTPRIO", unix.RLIMIT_RTPRIO}, {"RLIMIT_RTTIME", unix.RLIMIT_RTTIME},
		{"RLIMIT_SIGPENDING", unix.RLIMIT_SIGPENDING}, {"RLIMIT_STACK", unix.RLIMIT_STACK},
	} {
		var l unix.Rlimit
		if err := unix.Getrlimit(r.id, &l); err == nil {
			limits = append(limits, rspec.POSIXRlimit{Type: r.name, Hard: l.Max, Soft: l.Cur})
		}
	}
	return limits
}

// SeccompProfile reads a Localhost profile: a regular file of at most limit
// bytes. kind.NotFound if there is none, kind.Invalid if it is no such file.
func SeccompProfile(path string, limit int64) (data []byte, err error) {
	f, err := os.OpenFile(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, kind.Errorf(kind.NotFound, "seccomp profile %s does not exist", path)
	}
	if err != nil {
		return nil, kind.Errorf(kind.Invalid, "seccomp profile: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("seccomp profile: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, kind.Errorf(kind.Invalid, "seccomp profile %s is not a regular file", path)
	}
	data, err = io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, kind.Errorf(kind.Invalid, "seccomp profile: %w", err)
	}
	if int64(len(data)) > limit {
		return nil, kind.Errorf(kind.Invalid, "seccomp profile %s is larger than %d bytes", path, limit)
	}
	return data, nil
}
