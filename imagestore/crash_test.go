package imagestore

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"golang.org/x/sys/unix"

	"noded.dev/noded/test/testimage"
)

const (
	childRoot = "NODED_IMAGESTORE_TEST_ROOT"
	childRef  = "NODED_IMAGESTORE_TEST_REF"
)

// TestCrashChild is the process that TestCrash kills; it does nothing on its own.
func TestCrashChild(t *testing.T) {
	root, ref := os.Getenv(childRoot), os.Getenv(childRef)
	if root == "" {
		t.Skip("is started by TestCrash")
	}
	ctx := context.Background()
	s := must[*Store](t)(Open(ctx, Options{Root: root, Log: quiet()}))
	for i := 0; ; i++ {
		img, err := s.Pull(ctx, ref, PullOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for k := range 20 {
			id := fmt.Sprintf("c%d-%d-%d", os.Getpid(), i, k)
			must[string](t)(s.Mount(ctx, MountRequest{ID: id, ImageID: img.ID}))
			for n := range 2 {
				must[string](t)(s.MountVolume(ctx, VolumeRequest{ID: id, Index: n, ImageID: img.ID, SubPath: "l0"}))
			}
			if err := s.Unmount(ctx, id); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Remove(ctx, img.ID); err != nil {
			t.Fatal(err)
		}
	}
}

// TestCrash kills a process again and again while it pulls, mounts and
// removes, and looks each time at what is left.
func TestCrash(t *testing.T) {
	needRoot(t)
	f := newFake(t)
	var layers []testimage.Layer
	for i := range 4 {
		var entries []testimage.Entry
		for n := range 150 {
			entries = append(entries, testimage.Entry{Name: fmt.Sprintf("l%d/d%d/f%d", i, n/20, n), Body: fmt.Sprintf("%d %d %0*d", i, n, 3000, n)})
		}
		layers = append(layers, must[testimage.Layer](t)(testimage.NewLayer(testimage.Gzip, entries...)))
	}
	img := image(t, layers...)
	f.add("v1", img)
	ref := f.host() + "/a:v1"
	root := filepath.Join(t.TempDir(), "images")
	t.Cleanup(func() { unmountBelow(root) })
	ctx := context.Background()
	seed := time.Now().UnixNano()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewSource(seed))
	listed := 0
	for round := range 25 {
		killChild(t, root, ref, time.Duration(20+random.Intn(700))*time.Millisecond)
		s := must[*Store](t)(Open(ctx, Options{Root: root, Log: quiet()}))
		if left := must[[]os.DirEntry](t)(os.ReadDir(filepath.Join(root, stagingDir))); len(left) != 0 {
			t.Errorf("round %d: %d left in staging", round, len(left))
		}
		if left := must[[]os.DirEntry](t)(os.ReadDir(filepath.Join(root, quarantineDir))); len(left) != 0 {
			t.Errorf("round %d: %d set aside", round, len(left))
		}
		for _, id := range s.Mounts() {
			if err := s.Unmount(ctx, id); err != nil {
				t.Errorf("round %d: %v", round, err)
			}
		}
		if len(s.List()) > 0 {
			listed++
			whole(t, s, img)
		}
		if round%5 == 4 {
			must[Image](t)(s.Pull(ctx, ref, PullOptions{}))
			whole(t, s, img)
			if err := s.Remove(ctx, ref); err != nil {
				t.Error(err)
			}
			clean(t, s)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	t.Logf("image was listed after %d of 25 kills", listed)
}

func killChild(t *testing.T, root, ref string, after time.Duration) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestCrashChild$")
	cmd.Env = append(os.Environ(), childRoot+"="+root, childRef+"="+ref)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(after) // the moment is what is random here
	cmd.Process.Kill()
	if err := cmd.Wait(); cmd.ProcessState.Exited() {
		t.Fatalf("child ended by itself: %v\n%s", err, out.String())
	}
}

// whole mounts an image and compares every file with the layers' tars.
func whole(t *testing.T, s *Store, img testimage.Image) {
	t.Helper()
	ctx := context.Background()
	got := must[Image](t)(s.Lookup(img.ID()))
	dir := must[string](t)(s.Mount(ctx, MountRequest{ID: "check", ImageID: got.ID}))
	for _, l := range img.Layers {
		z := must[*gzip.Reader](t)(gzip.NewReader(bytes.NewReader(l.Blob)))
		tr := tar.NewReader(z)
		for h, err := tr.Next(); err == nil; h, err = tr.Next() {
			want := must[[]byte](t)(io.ReadAll(tr))
			have, err := os.ReadFile(filepath.Join(dir, h.Name))
			if err != nil || sha256.Sum256(have) != sha256.Sum256(want) {
				t.Fatalf("%s is not as it was packed: %v", h.Name, err)
			}
		}
	}
	if err := s.Unmount(ctx, "check"); err != nil {
		t.Error(err)
	}
}

// unmountBelow is for a test that failed half way.
func unmountBelow(root string) {
	found, _ := filepath.Glob(filepath.Join(root, containersDir, "*", "rootfs"))
	volumes, _ := filepath.Glob(filepath.Join(root, containersDir, "*", "volumes", "*", "root"))
	found = append(found, volumes...)
	for _, m := range found {
		unix.Unmount(m, unix.MNT_DETACH)
	}
}

// TestDamage breaks a store's files and opens it again.
func TestDamage(t *testing.T) {
	ctx := context.Background()
	f := newFake(t)
	img := image(t, bigLayer(t, 100_000), must[testimage.Layer](t)(testimage.NewLayer(testimage.Gzip, testimage.Entry{Name: "etc/x", Body: "x"})))
	f.add("v1", img)
	other := image(t, must[testimage.Layer](t)(testimage.NewLayer(testimage.Gzip, testimage.Entry{Name: "other", Body: "x"})))
	f.add("v2", other)
	root := filepath.Join(t.TempDir(), "images")
	reopen := func() *Store {
		t.Helper()
		return must[*Store](t)(Open(ctx, Options{Root: root, Log: quiet()}))
	}
	pull := func(s *Store, tag string) {
		t.Helper()
		must[Image](t)(s.Pull(ctx, f.host()+"/a:"+tag, PullOptions{}))
	}
	needRoot(t)
	s := reopen()
	pull(s, "v1")
	pull(s, "v2")
	s.Close()
	record := filepath.Join(root, imagesDir, hexOf(img.ID())+".json")
	intact := must[[]byte](t)(os.ReadFile(record))
	for cut := 0; cut < len(intact); cut += 41 {
		if err := os.WriteFile(record, intact[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		s := reopen()
		if list := s.List(); len(list) != 1 || list[0].ID != other.ID() {
			t.Fatalf("record cut at %d: %d images listed", cut, len(list))
		}
		if aside := must[[]os.DirEntry](t)(os.ReadDir(filepath.Join(root, quarantineDir))); len(aside) == 0 {
			t.Error("nothing was set aside")
		}
		if cut%410 == 0 {
			pull(s, "v1")
			whole(t, s, img)
		}
		s.Close()
	}
	s = reopen()
	pull(s, "v1")
	s.Close()
	// A lost layer: the image is not listed, and a pull fetches that layer only.
	big := img.Layers[0].Descriptor().Digest
	if err := os.RemoveAll(filepath.Join(root, layersDir, img.Layers[1].DiffID.Encoded())); err != nil {
		t.Fatal(err)
	}
	s = reopen()
	if list := s.List(); len(list) != 1 || list[0].ID != other.ID() {
		t.Errorf("%d images listed without a layer", len(list))
	}
	before := len(f.asked(big.String()))
	pull(s, "v1")
	whole(t, s, img)
	if n := len(f.asked(big.String())) - before; n != 0 {
		t.Errorf("the layer that was there was fetched %d times", n)
	}
	s.Close()
	// A layer without its mark, a torn mark, junk: dropped.
	for _, broken := range [][]byte{nil, []byte(`{"version":`)} {
		meta := filepath.Join(root, layersDir, img.Layers[0].DiffID.Encoded(), "meta.json")
		if err := os.Remove(meta); err != nil {
			t.Fatal(err)
		}
		if broken != nil {
			if err := os.WriteFile(meta, broken, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		for _, junk := range []string{layersDir + "/junk", stagingDir + "/junk/fs", containersDir + "/junk", blobsDir + "/junk"} {
			if err := os.MkdirAll(filepath.Join(root, junk), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		s = reopen()
		if len(s.List()) != 1 || len(s.Mounts()) != 0 {
			t.Errorf("%d images listed, mounts %v", len(s.List()), s.Mounts())
		}
		pull(s, "v1")
		whole(t, s, img)
		s.Close()
	}
}

// TestReboot: the mount is gone, the record is there.
func TestReboot(t *testing.T) {
	ctx := context.Background()
	f := newFake(t)
	img := smallImage(t)
	f.add("v1", img)
	needRoot(t)
	root := filepath.Join(t.TempDir(), "images")
	s := must[*Store](t)(Open(ctx, Options{Root: root, Log: quiet()}))
	got := must[Image](t)(s.Pull(ctx, f.host()+"/a:v1", PullOptions{}))
	dir := must[string](t)(s.Mount(ctx, MountRequest{ID: "c", ImageID: got.ID}))
	if err := os.WriteFile(filepath.Join(dir, "kept"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(ctx, Options{Root: root, Log: quiet()}); err == nil {
		t.Error("a second store opened the same folder")
	}
	if err := s.Remove(ctx, got.ID); err != nil {
		t.Error(err)
	}
	s.Close()
	s = must[*Store](t)(Open(ctx, Options{Root: root, Log: quiet()}))
	if body, err := os.ReadFile(filepath.Join(dir, "f")); err != nil || string(body) != "x" {
		t.Errorf("restart broke a running root filesystem: %v", err)
	}
	s.Close()
	if err := unix.Unmount(dir, 0); err != nil {
		t.Fatal(err)
	}
	s = must[*Store](t)(Open(ctx, Options{Root: root, Log: quiet()}))
	defer s.Close()
	if ids := s.Mounts(); len(ids) != 1 || ids[0] != "c" {
		t.Errorf("mounts are %v", ids)
	}
	if again := must[string](t)(s.Mount(ctx, MountRequest{ID: "c", ImageID: got.ID})); again != dir {
		t.Errorf("mounted at %s", again)
	}
	for _, name := range []string{"f", "kept"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
	if err := s.Unmount(ctx, "c"); err != nil {
		t.Error(err)
	}
	clean(t, s)
}

// TestManyLayers stacks as many layers as overlayfs takes.
func TestManyLayers(t *testing.T) {
	ctx := context.Background()
	f := newFake(t)
	layers := make([]testimage.Layer, 500)
	for i := range layers {
		layers[i] = must[testimage.Layer](t)(testimage.NewLayer(testimage.Gzip, testimage.Entry{Name: "d/"}, testimage.Entry{Name: fmt.Sprint("d/f", i)}, testimage.Entry{Name: "last", Body: fmt.Sprint(i)}))
	}
	f.add("v1", image(t, layers...))
	same := make([]testimage.Layer, 500)
	for i := range same {
		same[i] = layers[i%2]
	}
	f.add("same", image(t, same...))
	s := openWith(t, nil)
	for tag, want := range map[string]int{"v1": 500, "same": 2} {
		img := must[Image](t)(s.Pull(ctx, f.host()+"/a:"+tag, PullOptions{}))
		dir := must[string](t)(s.Mount(ctx, MountRequest{ID: tag, ImageID: img.ID}))
		if files := must[[]os.DirEntry](t)(os.ReadDir(filepath.Join(dir, "d"))); len(files) != want {
			t.Errorf("%s: %d files", tag, len(files))
		}
		last := "499"
		if tag == "same" {
			last = "1"
		}
		if body, _ := os.ReadFile(filepath.Join(dir, "last")); string(body) != last {
			t.Errorf("%s: last is %q", tag, body)
		}
		if err := s.Unmount(ctx, tag); err != nil {
			t.Error(err)
		}
	}
}
