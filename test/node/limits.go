package node

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Limit reads what the kernel enforces on the container: a file of its cgroup,
// by the name that cgroup v1 gives it or, on a v2 host, that of v2.
func (c *Container) Limit(t testing.TB, v1, v2 string) string {
	t.Helper()
	return limit(t, c.ID, c.Pod.Config.GetLinux().GetCgroupParent(), v1, v2)
}

// PodLimit reads the same of a pod's cgroup that is noded's own: its name is
// the pod's id.
func (p *Pod) PodLimit(t testing.TB, v1, v2 string) string {
	t.Helper()
	return limit(t, p.ID, "", v1, v2)
}

// SetLimit writes one of the container's files, as somebody else might.
func (c *Container) SetLimit(t testing.TB, v1, v2, value string) {
	t.Helper()
	name, dir := limitFile(t, c.ID, c.Pod.Config.GetLinux().GetCgroupParent(), v1, v2)
	if err := os.WriteFile(filepath.Join(dir, name), []byte(value), 0); err != nil {
		t.Fatal(err)
	}
}

// UnifiedCgroup says that this is a cgroup v2 host.
func UnifiedCgroup() bool {
	_, err := os.Stat("/sys/fs/cgroup/cgroup.controllers")
	return err == nil
}

func limit(t testing.TB, id, below, v1, v2 string) string {
	t.Helper()
	name, dir := limitFile(t, id, below, v1, v2)
	data, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(data))
}

// limitFile finds the cgroup whose name has id in it.
func limitFile(t testing.TB, id, below, v1, v2 string) (name, dir string) {
	t.Helper()
	controller, _, _ := strings.Cut(v1, ".")
	name, root := v1, filepath.Join("/sys/fs/cgroup", controller)
	if UnifiedCgroup() {
		name, root = v2, "/sys/fs/cgroup"
	}
	filepath.WalkDir(filepath.Join(root, below), func(path string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() && dir == "" && strings.Contains(d.Name(), id) {
			dir = path
		}
		return nil
	})
	if dir == "" {
		t.Fatalf("there is no cgroup of %s below %s", id, filepath.Join(root, below))
	}
	return name, dir
}
