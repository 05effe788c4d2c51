package nsexec

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"noded.dev/noded/internal/kind"
)

// rlimits plans the limits of the spec. The limit of descriptors is always
// set: the Go runtime has raised its own, which the child would inherit; where
// the spec has none, that of the container's first process is taken.
func (p *plan) rlimits(r Request) error {
	s := p.script
	files := false
	for _, l := range r.Process.Rlimits {
		resource, ok := rlimitNumber(l.Type)
		if !ok {
			return kind.Errorf(kind.Invalid, "resource limit %q is unknown", l.Type)
		}
		files = files || resource == unix.RLIMIT_NOFILE
		s.step("set " + l.Type)
		s.setrlimit(resource, &unix.Rlimit{Cur: l.Soft, Max: l.Hard})
	}
	if !files {
		limit, err := openFiles(r.InitPid)
		if err != nil {
			return alive(r, fmt.Errorf("read limit of descriptors: %w", err))
		}
		s.step("set RLIMIT_NOFILE")
		s.setrlimit(unix.RLIMIT_NOFILE, &limit)
	}
	return nil
}

// openFiles reads a process's limit of descriptors. It is read from /proc and
// not by prlimit(2), which asks for CAP_SYS_RESOURCE as soon as the process
// runs as another user.
func openFiles(pid int) (unix.Rlimit, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/limits")
	if err != nil {
		return unix.Rlimit{}, err
	}
	for line := range strings.Lines(string(b)) {
		rest, ok := strings.CutPrefix(line, "Max open files")
		if !ok {
			continue
		}
		var soft, hard uint64
		if _, err := fmt.Sscan(rest, &soft, &hard); err != nil {
			return unix.Rlimit{}, fmt.Errorf("limits of process %d: %w", pid, err)
		}
		return unix.Rlimit{Cur: soft, Max: hard}, nil
	}
	return unix.Rlimit{}, fmt.Errorf("limits of process %d do not name its open files", pid)
}

func (s *script) setrlimit(resource int, l *unix.Rlimit) {
	s.call(unix.SYS_PRLIMIT64, 0, uintptr(resource), address(s, l), 0)
}

func rlimitNumber(name string) (int, bool) {
	n, ok := map[string]int{
		"RLIMIT_AS":         unix.RLIMIT_AS,
		"RLIMIT_CORE":       unix.RLIMIT_CORE,
		"RLIMIT_CPU":        unix.RLIMIT_CPU,
		"RLIMIT_DATA":       unix.RLIMIT_DATA,
		"RLIMIT_FSIZE":      unix.RLIMIT_FSIZE,
		"RLIMIT_LOCKS":      unix.RLIMIT_LOCKS,
		"RLIMIT_MEMLOCK":    unix.RLIMIT_MEMLOCK,
		"RLIMIT_MSGQUEUE":   unix.RLIMIT_MSGQUEUE,
		"RLIMIT_NICE":       unix.RLIMIT_NICE,
		"RLIMIT_NOFILE":     unix.RLIMIT_NOFILE,
		"RLIMIT_NPROC":      unix.RLIMIT_NPROC,
		"RLIMIT_RSS":        unix.RLIMIT_RSS,
		"RLIMIT_RTPRIO":     unix.RLIMIT_RTPRIO,
		"RLIMIT_RTTIME":     unix.RLIMIT_RTTIME,
		"RLIMIT_SIGPENDING": unix.RLIMIT_SIGPENDING,
		"RLIMIT_STACK":      unix.RLIMIT_STACK,
	}[name]
	return n, ok
}
