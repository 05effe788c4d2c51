package imagestore

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"noded.dev/noded/internal/kind"
	"noded.dev/noded/test/testimage"
)

// TestFullDisk pulls into a file system that is too small, by bytes and by
// inodes, and then something that fits.
func TestFullDisk(t *testing.T) {
	needRoot(t)
	ctx := context.Background()
	var many []testimage.Entry
	for i := range 3000 {
		many = append(many, testimage.Entry{Name: fmt.Sprint("f", i)})
	}
	f := newFake(t)
	f.add("large", image(t, smallImage(t).Layers[0], bigLayer(t, 24<<20)))
	f.add("many", image(t, must[testimage.Layer](t)(testimage.NewLayer(testimage.Gzip, many...))))
	small := smallImage(t)
	f.add("small", small)
	for what, tag := range map[string]string{"size=16m": "large", "size=64m,nr_inodes=2000": "many"} {
		dir := t.TempDir()
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, what); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
		s := openWith(t, func(o *Options) { o.Root = filepath.Join(dir, "s") })
		_, err := s.Pull(ctx, f.host()+"/a:"+tag, PullOptions{})
		if !kind.Is(err, kind.Exhausted) {
			t.Errorf("%s: kind %v: %v", what, kind.Of(err), err)
		}
		clean(t, s)
		img := must[Image](t)(s.Pull(ctx, f.host()+"/a:small", PullOptions{}))
		must[string](t)(s.Mount(ctx, MountRequest{ID: "c", ImageID: img.ID}))
		// Stopping and removing work on a full disk.
		fill := exec.Command("dd", "if=/dev/zero", "of="+filepath.Join(dir, "fill"), "bs=1M")
		fill.Run()
		if err := s.Unmount(ctx, "c"); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if err := s.Remove(ctx, img.ID); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if err := os.Remove(filepath.Join(dir, "fill")); err != nil {
			t.Error(err)
		}
		clean(t, s)
	}
}

// TestPrivate: a user of this machine finds nothing of what images hold.
func TestPrivate(t *testing.T) {
	needRoot(t)
	ctx := context.Background()
	f := newFake(t)
	f.add("v1", image(t, must[testimage.Layer](t)(testimage.NewLayer(testimage.Gzip, testimage.Entry{Name: "./", Mode: 0o777}, testimage.Entry{Name: "su", Body: "x", Mode: 0o4777}))))
	parent := t.TempDir()
	for dir := parent; len(dir) > len(os.TempDir()); dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	s := openWith(t, func(o *Options) { o.Root = filepath.Join(parent, "s") })
	img := must[Image](t)(s.Pull(ctx, f.host()+"/a:v1", PullOptions{}))
	dir := must[string](t)(s.Mount(ctx, MountRequest{ID: "c", ImageID: img.ID}))
	defer s.Unmount(ctx, "c")
	for _, p := range []string{filepath.Join(dir, "su"), s.path(layersDir), s.path(imagesDir), s.path(containersDir, "c")} {
		cmd := exec.Command("stat", p)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "ermission") {
			t.Errorf("stat %s: %v %s", p, err, out)
		}
	}
}
