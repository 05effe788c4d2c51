package oracle

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// addCgroups lists the groups of every hierarchy, v1 and v2.
func (s *Snapshot) addCgroups(scope Scope) error {
	if !scope.all() && len(scope.Cgroups) == 0 {
		return nil
	}
	var errs []error
	for _, m := range readMounts("self") {
		if (m.fstype != "cgroup" && m.fstype != "cgroup2") || m.root != "/" {
			continue
		}
		name := hierarchy(m)
		err := filepath.WalkDir(m.point, func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // removed while walking
			}
			if err != nil || !d.IsDir() || path == m.point {
				return err
			}
			rel := strings.TrimPrefix(path, m.point)
			if scope.all() || prefixed(rel, scope.Cgroups) {
				s.fixed("cgroup %s in %s", rel, name)
			} else if !leads(rel, scope.Cgroups) {
				return fs.SkipDir
			}
			return nil
		})
		errs = append(errs, err)
	}
	if table, err := os.ReadFile("/proc/cgroups"); err == nil {
		for _, line := range strings.Split(string(table), "\n") {
			if f := strings.Fields(line); len(f) == 4 && f[0] == "memory" {
				s.note("%s memory cgroups, dying ones included", f[2])
			}
		}
	}
	return errors.Join(errs...)
}

// leads says whether a group in scope may lie below path.
func leads(path string, prefixes []string) bool {
	for _, p := range prefixes {
		if strings.HasPrefix(p, path+"/") {
			return true
		}
	}
	return false
}

func hierarchy(m mount) string {
	if m.fstype == "cgroup2" {
		return "cgroup2"
	}
	return filepath.Base(m.point)
}
