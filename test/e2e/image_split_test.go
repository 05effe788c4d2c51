package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/test/node"
)

// secondDisk is a file system of 64 MiB.
func secondDisk(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64m"))
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("something still uses the second file system: %v", err)
		}
	})
	return dir
}

// usedOn is how many bytes of a file system are taken.
func usedOn(t *testing.T, dir string) uint64 {
	t.Helper()
	var st unix.Statfs_t
	must(t, unix.Statfs(dir, &st))
	return (st.Blocks - st.Bfree) * uint64(st.Bsize)
}

func fsInfo(t *testing.T, n *node.Node) (images, containers *cri.FilesystemUsage) {
	t.Helper()
	ctx, cancel := node.Context()
	defer cancel()
	r, err := n.Images.ImageFsInfo(ctx, &cri.ImageFsInfoRequest{})
	must(t, err)
	if len(r.ImageFilesystems) != 1 || len(r.ContainerFilesystems) != 1 {
		t.Fatalf("info %v", r)
	}
	return r.ImageFilesystems[0], r.ContainerFilesystems[0]
}

// TestOneFileSystem: where images and writable layers share one, both are told
// to be at the same place.
func TestOneFileSystem(t *testing.T) {
	n := images(t)
	i, c := fsInfo(t, n)
	if c != nil && noded() && i.FsId.Mountpoint != c.FsId.Mountpoint {
		t.Errorf("%s and %s", i.FsId.Mountpoint, c.FsId.Mountpoint)
	}
}

// TestSplitFileSystems keeps writable layers on a file system of their own,
// which a container can fill without harm to the images, and which is empty again
// when the containers are gone.
func TestSplitFileSystems(t *testing.T) {
	skipOnPeer(t, "it cannot")
	disk := secondDisk(t)
	root := filepath.Join(disk, "layers")
	n := configured(t, fmt.Sprintf("[images]\ncontainer_root = %q\n", root))
	_, err := n.Pull("registry.test/busybox:1")
	must(t, err)
	p := n.RunPod(t)
	c := p.Run(t, "sleep 1000")
	imagesBefore, _ := fsInfo(t, n)
	c.Shell(t, "head -c 8388608 /dev/zero > /file")
	if used := usedOn(t, disk); used < 8<<20 {
		t.Errorf("%d bytes on the second file system", used)
	}
	i, w := fsInfo(t, n)
	if w.FsId.Mountpoint != root || i.FsId.Mountpoint == root {
		t.Errorf("images at %s, containers at %s", i.FsId.Mountpoint, w.FsId.Mountpoint)
	}
	node.Eventually(t, "the written file is measured", 5*time.Second, func() bool {
		i, w = fsInfo(t, n)
		return w.UsedBytes.Value >= 8<<20 && w.UsedBytes.Value < 16<<20 && w.InodesUsed.Value > 0
	})
	if i.UsedBytes.Value != imagesBefore.UsedBytes.Value {
		t.Errorf("images take %d bytes, %d before", i.UsedBytes.Value, imagesBefore.UsedBytes.Value)
	}
	ctx, cancel := node.Context()
	defer cancel()
	stats, err := n.Runtime.ContainerStats(ctx, &cri.ContainerStatsRequest{ContainerId: c.ID})
	must(t, err)
	if l := stats.Stats.WritableLayer; l.FsId.Mountpoint != root || l.UsedBytes.Value < 8<<20 {
		t.Errorf("writable layer %v", l)
	}
	if _, stderr, code := c.Exec(t, "sh", "-c", "dd if=/dev/zero of=/more bs=1M count=128"); code == 0 || !strings.Contains(stderr, "No space left") {
		t.Errorf("writing more than there is: %d, %q", code, stderr)
	}
	push(t, registry, "split:1", strings.Repeat("x", 1<<20))
	_, err = n.Pull("registry.test/split:1")
	must(t, err)
	must(t, c.Remove())
	node.Eventually(t, "the second file system is empty", 10*time.Second, func() bool { return usedOn(t, disk) < 1<<20 })
}

// TestSplitRecovery kills the daemon and changes the folder under a container.
func TestSplitRecovery(t *testing.T) {
	skipOnPeer(t, "it cannot")
	disk := secondDisk(t)
	root := filepath.Join(disk, "layers")
	n := configured(t, fmt.Sprintf("[images]\ncontainer_root = %q\n", root))
	_, err := n.Pull("registry.test/busybox:1")
	must(t, err)
	p := n.RunPod(t)
	c := p.Run(t, "sleep 1000")
	c.Shell(t, "echo kept > /file")
	n.Kill()
	for _, junk := range []string{"containers/nobodys/upper/f", "trash/old/upper/f"} {
		must(t, os.MkdirAll(filepath.Join(root, junk), 0o700))
	}
	must(t, n.WriteDropIn("")) // from now on with the images
	must(t, n.Launch())
	if got := c.Shell(t, "cat /file; echo again > /file"); got != "kept\n" {
		t.Errorf("file after the restart: %q", got)
	}
	other := p.Run(t, "sleep 1000", func(c *cri.ContainerConfig) { c.Metadata.Name = "other" })
	if _, err := os.Stat(filepath.Join(root, "containers", other.ID)); err == nil {
		t.Error("a new container is in the old folder")
	}
	must(t, c.Remove())
	must(t, other.Remove())
	node.Eventually(t, "nothing is left", 10*time.Second, func() bool {
		left, _ := filepath.Glob(filepath.Join(root, "*", "*"))
		return len(left) == 0
	})
	n.Kill()
	must(t, n.Launch())
	if data, err := os.ReadFile(filepath.Join(n.Root, "images/container-roots.json")); err != nil || strings.Contains(string(data), root) {
		t.Errorf("the old folder is still known: %s, %v", data, err)
	}
}
