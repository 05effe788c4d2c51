package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/test/node"
)

// sharedMount is a folder that propagates mounts, with the folders in and out.
func sharedMount(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	must(t, unix.Mount(dir, dir, "", unix.MS_BIND, ""))
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	must(t, unix.Mount("", dir, "", unix.MS_SHARED, ""))
	must(t, os.Mkdir(filepath.Join(dir, "in"), 0o755))
	must(t, os.Mkdir(filepath.Join(dir, "out"), 0o755))
	return dir
}

func mountTmpfs(t *testing.T, dir string) {
	t.Helper()
	must(t, unix.Mount("none", dir, "tmpfs", 0, "size=64k"))
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
}

// TestMounts binds folders and files, writable and not.
func TestMounts(t *testing.T) {
	n := start(t)
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "file"), []byte("content\n"), 0o644))
	must(t, os.Mkdir(filepath.Join(dir, "sub"), 0o755))
	mountTmpfs(t, filepath.Join(dir, "sub"))
	p := n.RunPod(t)
	c := p.Run(t, "sleep 1000", func(c *cri.ContainerConfig) {
		c.Mounts = []*cri.Mount{
			{HostPath: dir, ContainerPath: "/rw"},
			{HostPath: dir, ContainerPath: "/ro", Readonly: true},
			{HostPath: filepath.Join(dir, "file"), ContainerPath: "/new/place/file", Readonly: true},
			{HostPath: dir, ContainerPath: "/tmp/../outer"},
			{HostPath: filepath.Join(dir, "file"), ContainerPath: "/outer/sub/file"}, // below another mount, whatever the order
		}
	})
	for script, want := range map[string]string{
		"cat /rw/file /ro/file /new/place/file /outer/sub/file": strings.Repeat("content\n", 4),
		"echo x >/rw/written; cat /ro/written":                  "x\n",
		"echo x 2>/dev/null >/ro/refused || echo no":            "no\n",
		"echo x 2>/dev/null >/new/place/file || echo no":        "no\n",
		"touch /ro/sub/nested && echo yes":                      "yes\n", // read-only is not recursive unless asked for
	} {
		if got := c.Shell(t, script); got != want {
			t.Errorf("%s: %q, want %q", script, got, want)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "written")); err != nil {
		t.Error(err)
	}
	if mounts := c.Status(t).Mounts; len(mounts) != 5 {
		t.Errorf("status tells %d mounts: %v", len(mounts), mounts)
	}
}

// TestRecursiveReadOnly makes what is mounted below a read-only mount read-only too.
func TestRecursiveReadOnly(t *testing.T) {
	skipOnPeer(t, "it is older than this")
	n := start(t)
	dir := t.TempDir()
	must(t, os.Mkdir(filepath.Join(dir, "sub"), 0o755))
	mountTmpfs(t, filepath.Join(dir, "sub"))
	p := n.RunPod(t)
	out := p.Output(t, "touch /ro/sub/x 2>/dev/null || echo no", func(c *cri.ContainerConfig) {
		c.Mounts = []*cri.Mount{{HostPath: dir, ContainerPath: "/ro", Readonly: true, RecursiveReadOnly: true}}
	})
	if out != "no\n" {
		t.Errorf("got %q", out)
	}
	config := node.ContainerConfig("refused", "true")
	config.Mounts = []*cri.Mount{{HostPath: dir, ContainerPath: "/rw", RecursiveReadOnly: true}}
	_, err := p.TryCreate(config)
	wantCode(t, err, codes.InvalidArgument)
}

// TestDevices gives a container one device of the host and no other.
func TestDevices(t *testing.T) {
	n := start(t)
	p := n.RunPod(t)
	c := p.Run(t, "sleep 1000", func(c *cri.ContainerConfig) {
		c.Devices = []*cri.Device{{HostPath: "/dev/loop-control", ContainerPath: "/dev/mine", Permissions: "r"}}
	})
	for script, want := range map[string]string{
		"stat -c '%F %t %T' /dev/mine":                      "character special file a ed\n",
		"( : </dev/mine ) && echo may":                      "may\n",
		"( : >/dev/mine ) 2>/dev/null || echo may not":      "may not\n",
		"ls /dev/loop0 2>/dev/null || echo not there":       "not there\n",
		"echo x >/dev/null && head -c1 /dev/zero | wc -c":   "1\n",
		"mknod /tmp/b b 7 0; cat /tmp/b 2>&1 | grep -c not": "1\n",
	} {
		if got := c.Shell(t, script); got != want {
			t.Errorf("%s: %q, want %q", script, got, want)
		}
	}
}
