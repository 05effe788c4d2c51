// Package oracle tells what a test left behind. It takes a snapshot of the
// things a node runtime makes on a machine (processes, mounts, namespaces,
// cgroups, links, addresses, packet filter rules, files, descriptors) before
// and after, and prints the difference.
//
// Other work may go on on the same machine, so a Scope says which of those
// things are the test's own; an empty Scope means all of them.
package oracle

import (
	"errors"
	"fmt"
	"sort"
	"strings"
)

// Scope limits a snapshot to what belongs to one daemon under test. A thing is
// taken in if any of the members that apply to it matches.
type Scope struct {
	// Paths are folders: mounts on, of or under them, processes with one of them
	// on their command line, unix sockets and loop devices below them.
	Paths []string
	// Files are folders whose entries are listed, without crossing into other
	// file systems. Depth is how deep, 0 means 4.
	Files []string
	Depth int
	// Ignore are path prefixes of entries that may come and go.
	Ignore []string
	// Cgroups are path prefixes below each hierarchy's mount: "/kubepods".
	Cgroups []string
	// Bystanders are containers that stay: processes whose cgroup's path contains
	// one of these ids may come and go.
	Bystanders []string
	// Env marks processes by an entry of their environment: "NAME=value".
	Env string
	// Links are name prefixes of network devices; what is attached to such a
	// bridge is taken in too.
	Links []string
	// Rules are strings; packet filter rules, chains and tables that contain one are taken in.
	Rules []string
	// Roles are processes whose descriptors, threads and children are counted,
	// by what they do: "daemon", "shim". Their pids may change between snapshots.
	Roles func() map[string]int
	// Restarts says that processes with a role are ended and started meanwhile,
	// so that what they hold open tells nothing.
	Restarts bool
}

func (s Scope) all() bool {
	return len(s.Paths)+len(s.Files)+len(s.Cgroups)+len(s.Links)+len(s.Rules) == 0 && s.Env == "" && s.Roles == nil
}

func (s Scope) roles() map[string]int {
	if s.Roles == nil {
		return nil
	}
	return s.Roles()
}

// contains says whether any of the needles occurs in text.
func contains(text string, needles []string) bool {
	for _, n := range needles {
		if strings.Contains(text, n) {
			return true
		}
	}
	return false
}

// below says whether path is one of the folders or lies in one.
func below(path string, folders []string) bool {
	for _, f := range folders {
		if path == f || strings.HasPrefix(path, strings.TrimSuffix(f, "/")+"/") {
			return true
		}
	}
	return false
}

// prefixed says whether text begins with one of the prefixes.
func prefixed(text string, prefixes []string) bool {
	for _, p := range prefixes {
		if strings.HasPrefix(text, p) {
			return true
		}
	}
	return false
}

// Snapshot is a machine's state as countable lines.
type Snapshot struct {
	// Fixed lines must neither appear nor vanish.
	Fixed map[string]int `json:"fixed"`
	// Passing lines are of things that end by themselves: more of them is a
	// leak, fewer of them only means that the first snapshot was taken early.
	Passing map[string]int `json:"passing"`
	// Notes are figures that are printed beside a difference, never compared.
	Notes []string `json:"notes"`
}

func (s *Snapshot) fixed(format string, args ...any)   { s.Fixed[fmt.Sprintf(format, args...)]++ }
func (s *Snapshot) passing(format string, args ...any) { s.Passing[fmt.Sprintf(format, args...)]++ }
func (s *Snapshot) note(format string, args ...any) {
	s.Notes = append(s.Notes, fmt.Sprintf(format, args...))
}

// Take makes a snapshot of this machine as this process sees it. Things that
// vanish while being looked at are left out.
func Take(scope Scope) (*Snapshot, error) {
	s := &Snapshot{Fixed: map[string]int{}, Passing: map[string]int{}}
	procs, err := readProcesses()
	if err != nil {
		return nil, err
	}
	mine := ownProcesses(procs, scope)
	s.addProcesses(mine, scope)
	if !scope.Restarts {
		s.addDescriptors(scope.roles())
	}
	return s, errors.Join(
		s.addMounts(procs, scope),
		s.addNamespaces(mine, scope),
		s.addCgroups(scope),
		s.addLinks(scope),
		s.addRules(scope),
		s.addFiles(scope),
		s.addSockets(scope),
		s.addDevices(scope),
	)
}

// Diff lists what after has more ("+") and less ("-") than before, sorted;
// empty if nothing was left behind or taken away.
func Diff(before, after *Snapshot) []string {
	var lines []string
	add := func(sign, text string, n int) {
		if n > 1 {
			text = fmt.Sprintf("%s (%d times)", text, n)
		}
		lines = append(lines, sign+" "+text)
	}
	for text, n := range after.Fixed {
		if m := n - before.Fixed[text]; m > 0 {
			add("+", text, m)
		}
	}
	for text, n := range before.Fixed {
		if m := n - after.Fixed[text]; m > 0 {
			add("-", text, m)
		}
	}
	for text, n := range after.Passing {
		if m := n - before.Passing[text]; m > 0 {
			add("+", text, m)
		}
	}
	sort.Slice(lines, func(i, j int) bool { return lines[i][2:] < lines[j][2:] })
	return lines
}
