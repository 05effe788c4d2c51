package oracle

import (
	"fmt"
	"os"
	"strings"
)

// mount is one line of proc_pid_mountinfo(5).
type mount struct {
	root, point, fstype, source, super string
}

func readMounts(pid string) []mount {
	data, err := os.ReadFile("/proc/" + pid + "/mountinfo")
	if err != nil {
		return nil // ended
	}
	var list []mount
	for _, line := range strings.Split(strings.TrimSpace(string(data)), "\n") {
		left, right, ok := strings.Cut(line, " - ")
		a, b := strings.Fields(left), strings.Fields(right)
		if ok && len(a) >= 6 && len(b) >= 3 {
			list = append(list, mount{root: a[3], point: a[4], fstype: b[0], source: b[1], super: b[2]})
		}
	}
	return list
}

func (m mount) belongs(scope Scope) bool {
	return scope.all() || below(m.point, scope.Paths) || below(m.source, scope.Paths) || below(m.root, scope.Paths) ||
		contains(m.super, scope.Paths) || (strings.HasPrefix(m.fstype, "cgroup") && prefixed(m.root, scope.Cgroups))
}

// addMounts lists the mounts of every mount namespace once. A mount of ours in
// a stranger's namespace keeps a file system alive just as one of the host's
// does; but strangers' namespaces come and go with copies of what is mounted
// here, so there only counts what is not mounted here any more.
func (s *Snapshot) addMounts(procs []process, scope Scope) error {
	own, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return err
	}
	seen := map[string]bool{own: true, "": true}
	here := map[string]bool{}
	for _, m := range readMounts("self") {
		here[m.point] = true
		if m.belongs(scope) {
			s.fixed("mount %s (%s from %s)", m.point, m.fstype, m.sourceAndRoot())
		}
	}
	for _, p := range procs {
		if seen[p.mountNS] {
			continue
		}
		mounts := readMounts(fmt.Sprint(p.pid))
		seen[p.mountNS] = len(mounts) > 0 // else it has ended; another may be in there
		for _, m := range mounts {
			if m.belongs(scope) && !here[m.point] {
				s.passing("mount in %s: %s (%s from %s)", p.mountNS, m.point, m.fstype, m.sourceAndRoot())
			}
		}
	}
	return nil
}

func (m mount) sourceAndRoot() string {
	if m.root == "/" {
		return m.source
	}
	return m.source + " " + m.root
}

// addNamespaces lists the namespaces, other than this process's own, that
// processes in scope live in and that files in scope pin.
func (s *Snapshot) addNamespaces(mine []process, scope Scope) error {
	own := map[string]bool{}
	kinds := []string{"net", "ipc", "uts", "pid", "mnt", "user", "cgroup"}
	for _, kind := range kinds {
		if name, err := os.Readlink("/proc/self/ns/" + kind); err == nil {
			own[name] = true
		}
	}
	found := map[string]bool{}
	for _, p := range mine {
		for _, kind := range kinds {
			name, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", p.pid, kind))
			if err == nil && !own[name] {
				found[name] = true
			}
		}
	}
	for _, m := range readMounts("self") {
		if m.fstype == "nsfs" && m.belongs(scope) && !own[m.root] {
			found[m.root] = true
		}
	}
	for name := range found {
		s.passing("namespace %s", name)
	}
	return nil
}
