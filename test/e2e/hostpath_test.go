package e2e

import (
	"bytes"
	"context"
	bytesof "encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/test/node"
)

// deadFileSystem mounts a FUSE file system whose server says hello and never
// again anything, as NFS is without its server. It answers when the test ends.
func deadFileSystem(t *testing.T, dir string) {
	t.Helper()
	fuse, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skip("no FUSE here: ", err)
	}
	must(t, unix.Mount("server:/export", dir, "fuse.dead", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", fuse)))
	t.Cleanup(func() {
		unix.Unmount(dir, unix.MNT_DETACH)
		unix.Close(fuse) // whoever still waits gets ENOTCONN
	})
	// The kernel's greeting (FUSE_INIT), and what a server of protocol 7.31 says to it.
	request := make([]byte, 1<<20)
	n, err := unix.Read(fuse, request)
	must(t, err)
	if n < 40 {
		t.Fatalf("greeting of %d bytes", n)
	}
	reply := make([]byte, 16+64)
	bytesof.NativeEndian.PutUint32(reply, uint32(len(reply)))
	copy(reply[8:16], request[8:16]) // the greeting's number
	bytesof.NativeEndian.PutUint32(reply[16:], 7)
	bytesof.NativeEndian.PutUint32(reply[20:], 31)
	_, err = unix.Write(fuse, reply)
	must(t, err)
}

// helpers counts the daemon's look-ups that run as processes of their own.
func helpers(n *node.Node) (count int) {
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		line, _ := os.ReadFile("/proc/" + e.Name() + "/cmdline")
		env, _ := os.ReadFile("/proc/" + e.Name() + "/environ")
		if args := bytes.Split(line, []byte{0}); len(args) > 1 && string(args[1]) == "hostpath" && bytes.Contains(env, []byte("NODED_TEST_NODE="+n.Tag)) {
			count++
		}
	}
	return count
}

func threads(t *testing.T, n *node.Node) int {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", n.Pid()))
	must(t, err)
	return len(entries)
}

// TestDeadHostPath mounts what never answers: one request waits until its
// deadline and the next joins it; nothing else waits, nothing is left.
func TestDeadHostPath(t *testing.T) {
	skipOnPeer(t, "it hangs")
	n := start(t)
	dir := t.TempDir()
	dead := filepath.Join(dir, "dead")
	must(t, os.Mkdir(dead, 0o755))
	deadFileSystem(t, dead)
	p, other := n.RunPod(t), n.RunPod(t, func(c *cri.PodSandboxConfig) { c.Metadata.Name += "-other" })
	for i, path := range []string{dead, filepath.Join(dead, "volume")} { // the mount itself, and a name in it
		config := node.ContainerConfig(fmt.Sprintf("c%d", i), "true")
		config.Mounts = []*cri.Mount{{HostPath: path, ContainerPath: "/m"}}
		create := func(limit time.Duration) error {
			ctx, cancel := context.WithTimeout(context.Background(), limit)
			defer cancel()
			_, err := n.Runtime.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: p.ID, Config: config, SandboxConfig: p.Config})
			return err
		}
		before := threads(t, n)
		for range 8 {
			begin := time.Now()
			wantCode(t, create(300*time.Millisecond), codes.DeadlineExceeded)
			if took := time.Since(begin); took > 2*time.Second {
				t.Errorf("a deadline of 0.3 s took %v", took)
			}
		}
		if got := helpers(n); got != 1 {
			t.Errorf("%d look-ups are under way for one path", got)
		}
		if after := threads(t, n); after > before+6 {
			t.Errorf("the daemon had %d threads and has %d", before, after)
		}
		if got := other.Output(t, "echo fine"); got != "fine\n" {
			t.Errorf("another pod's container: %q", got)
		}
		err := create(time.Minute)
		wantCode(t, err, codes.DeadlineExceeded)
		for _, part := range []string{path, "fuse.dead from server:/export, mounted at " + dead, "umount"} {
			if !strings.Contains(status.Convert(err).Message(), part) {
				t.Errorf("%q is not in the error: %v", part, err)
			}
		}
		node.Eventually(t, "the look-up ends", 5*time.Second, func() bool { return helpers(n) == 0 })
	}
	if list := containers(t, n, &cri.ContainerFilter{PodSandboxId: p.ID}); len(list) != 0 {
		t.Errorf("containers are left: %v", list)
	}
	must(t, p.Remove())
}

// TestDeadBelow runs and removes a container below whose mount a file system
// dies, as node agents have the whole host mounted.
func TestDeadBelow(t *testing.T) {
	n := start(t)
	dir := sharedMount(t)
	deadFileSystem(t, filepath.Join(dir, "in"))
	p := n.RunPod(t)
	c := p.Run(t, "sleep 1000", func(c *cri.ContainerConfig) {
		c.Mounts = []*cri.Mount{{HostPath: dir, ContainerPath: "/host", Propagation: cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER}}
	})
	deadFileSystem(t, filepath.Join(dir, "out"))
	if got := c.Shell(t, "grep -c fuse.dead /proc/mounts"); got != "2\n" {
		t.Errorf("dead mounts in the container: %q", got)
	}
	begin := time.Now()
	must(t, c.Stop(0))
	must(t, c.Remove())
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("removal took %v", took)
	}
}

// TestHostPaths follows links, and refuses what is not there: the CRI wants an
// error, other runtimes make a folder.
func TestHostPaths(t *testing.T) {
	skipOnPeer(t, "it makes what is missing")
	n := start(t)
	p := n.RunPod(t)
	dir := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(dir, "real/sub"), 0o755))
	must(t, os.WriteFile(filepath.Join(dir, "real/sub/file"), []byte("yes\n"), 0o644))
	for link, to := range map[string]string{"link": "real", "loop": "loop", "dangling": "nothing/here"} {
		must(t, os.Symlink(to, filepath.Join(dir, link)))
	}
	for path, script := range map[string]string{"link/sub": "cat /m/file", "link/sub/file": "cat /m", "real/../link/sub/../sub": "cat /m/file"} {
		if got := p.Output(t, script, func(c *cri.ContainerConfig) {
			c.Mounts = []*cri.Mount{{HostPath: dir + "/" + path, ContainerPath: "/m"}}
		}); got != "yes\n" {
			t.Errorf("%s: %q", path, got)
		}
	}
	for path, want := range map[string]string{
		"missing": "does not exist", "dangling": "is a link to what does not exist", "loop": "too many levels", "real/sub/file/x": "not a directory",
	} {
		config := node.ContainerConfig("c", "true")
		config.Mounts = []*cri.Mount{{HostPath: filepath.Join(dir, path), ContainerPath: "/m"}}
		_, err := p.TryCreate(config)
		wantCode(t, err, codes.FailedPrecondition)
		if text := status.Convert(err).Message(); !strings.Contains(text, want) || !strings.Contains(text, filepath.Join(dir, path)) {
			t.Errorf("%s: %s", path, text)
		}
	}
	if _, err := os.Lstat(filepath.Join(dir, "missing")); !os.IsNotExist(err) {
		t.Errorf("the missing folder was made: %v", err)
	}
}

// TestMissingMade makes missing folders where the configuration says so, and
// nothing at the end of a link.
func TestMissingMade(t *testing.T) {
	skipOnPeer(t, "it has no such key")
	n := node.New(t, node.Options{Binary: binary, Registry: registry, Config: `runtime.missing_host_path = "create"`})
	must(t, n.Warm())
	p := n.RunPod(t)
	dir := t.TempDir()
	missing, dangling := filepath.Join(dir, "a/b"), filepath.Join(dir, "dangling")
	must(t, os.Symlink("nothing", dangling))
	p.Output(t, "touch /m/x", func(c *cri.ContainerConfig) { c.Mounts = []*cri.Mount{{HostPath: missing, ContainerPath: "/m"}} })
	if info, err := os.Lstat(missing); err != nil || !info.IsDir() || info.Mode().Perm() != 0o755 {
		t.Errorf("missing folder: %v, %v", info, err)
	}
	config := node.ContainerConfig("d", "true")
	config.Mounts = []*cri.Mount{{HostPath: dangling, ContainerPath: "/m"}}
	_, err := p.TryCreate(config)
	wantCode(t, err, codes.FailedPrecondition)
}
