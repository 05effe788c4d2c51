package oracle

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// process is what /proc says of one process.
type process struct {
	pid, parent int
	state       byte
	start       string // ticks after boot; tells a pid's users apart
	name        string
	command     string
	cgroups     []string // its path in each hierarchy
	mountNS     string
}

func readProcesses() ([]process, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var list []process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if p, ok := readProcess(pid); ok {
			list = append(list, p)
		}
	}
	return list, nil
}

// readProcess returns false if the process is gone or is a kernel thread.
func readProcess(pid int) (process, bool) {
	dir := fmt.Sprintf("/proc/%d/", pid)
	stat, err := os.ReadFile(dir + "stat")
	if err != nil {
		return process{}, false
	}
	// The name is in brackets and may contain anything, so split after the last one.
	open, end := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
	fields := strings.Fields(string(stat[end+1:]))
	if open < 0 || len(fields) < 20 {
		return process{}, false
	}
	p := process{pid: pid, name: string(stat[open+1 : end]), state: fields[0][0], start: fields[19]}
	p.parent, _ = strconv.Atoi(fields[1])
	command, _ := os.ReadFile(dir + "cmdline")
	p.command = strings.TrimSpace(strings.ReplaceAll(string(command), "\x00", " "))
	if p.parent == 2 || pid == 2 {
		return process{}, false
	}
	groups, _ := os.ReadFile(dir + "cgroup")
	for _, line := range strings.Split(strings.TrimSpace(string(groups)), "\n") {
		if parts := strings.SplitN(line, ":", 3); len(parts) == 3 {
			p.cgroups = append(p.cgroups, parts[2])
		}
	}
	p.mountNS, _ = os.Readlink(dir + "ns/mnt")
	return p, true
}

// ownProcesses are those in scope, without this process and those with a role.
func ownProcesses(list []process, scope Scope) []process {
	skip := map[int]bool{os.Getpid(): true}
	parents := map[int]bool{}
	for _, pid := range scope.roles() {
		skip[pid], parents[pid] = true, true
	}
	var own []process
	for _, p := range list {
		if !skip[p.pid] && !contains(strings.Join(p.cgroups, " "), scope.Bystanders) && (scope.all() || parents[p.parent] || p.belongs(scope)) {
			own = append(own, p)
		}
	}
	return own
}

func (p process) belongs(scope Scope) bool {
	if contains(p.command, scope.Paths) {
		return true
	}
	for _, g := range p.cgroups {
		if prefixed(g, scope.Cgroups) {
			return true
		}
	}
	if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", p.pid)); err == nil && below(exe, scope.Paths) {
		return true
	}
	if scope.Env == "" {
		return false
	}
	env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", p.pid))
	return err == nil && bytes.Contains(append([]byte{0}, append(env, 0)...), []byte("\x00"+scope.Env+"\x00"))
}

func (s *Snapshot) addProcesses(list []process, scope Scope) {
	for _, p := range list {
		command := p.command
		if len(command) > 160 {
			command = command[:160] + "…"
		}
		s.passing("process %d started %s state %c %s: %s", p.pid, p.start, p.stateClass(), p.name, command)
	}
	s.note("%d processes in scope", len(list))
}

// stateClass tells the dead from the living; running and sleeping are the same to a leak.
func (p process) stateClass() byte {
	if p.state == 'Z' || p.state == 'X' {
		return 'Z'
	}
	return 'R'
}

// maxThreads is how many threads a Go process may have without being called
// leaking: the Go runtime keeps the threads of system calls that blocked once.
const maxThreads = 96

// addDescriptors counts what each role's process holds open, by kind.
func (s *Snapshot) addDescriptors(roles map[string]int) {
	for role, pid := range roles {
		dir := fmt.Sprintf("/proc/%d/", pid)
		entries, err := os.ReadDir(dir + "fd")
		if err != nil {
			continue // ended
		}
		for _, e := range entries {
			if target, err := os.Readlink(dir + "fd/" + e.Name()); err == nil {
				s.passing("descriptor of %s: %s", role, kindOf(target))
			}
		}
		threads, _ := os.ReadDir(dir + "task")
		for i := maxThreads; i < len(threads); i++ {
			s.passing("thread of %s above %d", role, maxThreads)
		}
		s.note("%s pid %d: %d descriptors, %d threads, %s", role, pid, len(entries), len(threads), resident(pid))
	}
}

// kindOf makes descriptors of anonymous objects comparable by leaving their inode out.
func kindOf(target string) string {
	if i := strings.Index(target, ":["); i > 0 && !strings.HasPrefix(target, "/") && !strings.HasPrefix(target, "anon_inode") {
		return target[:i]
	}
	return target
}

func resident(pid int) string {
	status, _ := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	for _, line := range strings.Split(string(status), "\n") {
		if v, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			return "rss " + strings.TrimSpace(v)
		}
	}
	return "gone"
}
