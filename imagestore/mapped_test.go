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

	"noded.dev/noded/imagestore/overlay"
	"noded.dev/noded/internal/idmap"
	"noded.dev/noded/internal/kind"
	"noded.dev/noded/internal/namespace"
	"noded.dev/noded/test/testimage"
)

// testUsers is a pod's user namespace.
func testUsers(t *testing.T) *UserNS {
	t.Helper()
	ids := idmap.Mapping{Users: idmap.Range{Host: 1 << 20, Length: 65536}, Groups: idmap.Range{Host: 3 << 20, Length: 65536}}
	dir := filepath.Join(t.TempDir(), "ns")
	if err := namespace.Create(context.Background(), namespace.Request{Dir: dir, IDs: &ids}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := namespace.Remove(dir); err != nil {
			t.Error(err)
		}
	})
	return &UserNS{Path: namespace.Path(dir, namespace.User), IDs: ids}
}

func ownerOf(t *testing.T, path string) string {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Error(err)
		return ""
	}
	st := info.Sys().(*syscall.Stat_t)
	return fmt.Sprintf("%d:%d", st.Uid, st.Gid)
}

func TestMountMapped(t *testing.T) {
	needRoot(t)
	ctx := context.Background()
	reg := startRegistry(t)
	base := must[testimage.Layer](t)(testimage.NewLayer(testimage.Gzip,
		testimage.Entry{Name: "./", Mode: 0o750, UID: 3, GID: 4}, testimage.Entry{Name: "home/", UID: 1000, GID: 1000},
		testimage.Entry{Name: "home/file", Body: "x", UID: 1000, GID: 2000}, testimage.Entry{Name: "gone", Body: "x"},
		testimage.Entry{Name: "beyond", UID: 70000, GID: 70000}))
	top := must[testimage.Layer](t)(testimage.NewLayer(testimage.Plain, testimage.Entry{Name: ".wh.gone"}, testimage.Entry{Name: "home/more", Body: "y", UID: 1}))
	img := must[testimage.Image](t)(testimage.New(nil, base, top))
	if err := testimage.Push(reg.Address, "a/b", "v1", img); err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(t.TempDir(), "images")
	s := openStore(t, root)
	if err := s.Mapped(); err != nil {
		t.Fatal(err)
	}
	got := must[Image](t)(s.Pull(ctx, reg.Address+"/a/b:v1", PullOptions{}))
	users := testUsers(t)
	req := MountRequest{ID: "mapped", ImageID: got.ID, UserNS: users}
	fs := must[string](t)(s.Mount(ctx, req))
	plain := must[string](t)(s.Mount(ctx, MountRequest{ID: "plain", ImageID: got.ID}))
	check := func() {
		t.Helper()
		for name, want := range map[string][2]string{
			"": {"1048579:3145732", "3:4"}, "home": {"1049576:3146728", "1000:1000"}, "home/file": {"1049576:3147728", "1000:2000"},
			"home/more": {"1048577:3145728", "1:0"}, "beyond": {"65534:65534", "70000:70000"},
		} {
			if a, b := ownerOf(t, filepath.Join(fs, name)), ownerOf(t, filepath.Join(plain, name)); a != want[0] || b != want[1] {
				t.Errorf("/%s belongs to %s mapped and %s plain, want %v", name, a, b, want)
			}
		}
		if _, err := os.Lstat(filepath.Join(fs, "gone")); !os.IsNotExist(err) {
			t.Errorf("a deleted file is there: %v", err)
		}
	}
	check()
	for what, other := range map[string]*UserNS{"none": nil, "another": {Path: users.Path, IDs: idmap.Mapping{Users: users.IDs.Users, Groups: users.IDs.Users}}} {
		if _, err := s.Mount(ctx, MountRequest{ID: "mapped", ImageID: got.ID, UserNS: other}); !kind.Is(err, kind.Exists) {
			t.Errorf("the same with %s user namespace: %v", what, err)
		}
	}

	// A crash that took the mount: the map is remembered.
	if err := os.WriteFile(filepath.Join(fs, "kept"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := overlay.Unmount(fs); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, root)
	if _, err := s.Mount(ctx, MountRequest{ID: "mapped", ImageID: got.ID}); !kind.Is(err, kind.Exists) {
		t.Errorf("without its user namespace: %v", err)
	}
	if again := must[string](t)(s.Mount(ctx, req)); again != fs {
		t.Errorf("mounted at %s, was %s", again, fs)
	}
	check()
	if _, err := os.Lstat(filepath.Join(fs, "kept")); err != nil {
		t.Error(err)
	}
}

// TestMappedPassage: the root inside comes to its own root filesystem, past
// folders that it cannot read; others do not, and nobody else to any image.
func TestMappedPassage(t *testing.T) {
	needRoot(t)
	ctx := context.Background()
	reg := startRegistry(t)
	layer := must[testimage.Layer](t)(testimage.NewLayer(testimage.Gzip, testimage.Entry{Name: "tool", Body: "x", Mode: 0o4755}))
	img := must[testimage.Image](t)(testimage.New(nil, layer))
	if err := testimage.Push(reg.Address, "a/b", "v1", img); err != nil {
		t.Fatal(err)
	}
	dir := must[string](t)(os.MkdirTemp("", "noded-passage-"))
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(dir, "images")
	s := openStore(t, root)
	got := must[Image](t)(s.Pull(ctx, reg.Address+"/a/b:v1", PullOptions{}))
	if mode := must[os.FileInfo](t)(os.Stat(root)).Mode().Perm(); mode != 0o700 {
		t.Errorf("mode %#o before the first user namespace", mode)
	}
	users := testUsers(t)
	mapped := must[string](t)(s.Mount(ctx, MountRequest{ID: "mapped", ImageID: got.ID, UserNS: users}))
	plain := must[string](t)(s.Mount(ctx, MountRequest{ID: "plain", ImageID: got.ID}))
	layers := must[[]string](t)(filepath.Glob(filepath.Join(root, "layers", "*", "fs", "tool")))
	for _, c := range []struct {
		uid, gid uint32
		path     string
		ok       bool
	}{
		{1 << 20, 3 << 20, filepath.Join(mapped, "tool"), true},
		{1 << 20, 3 << 20, filepath.Join(plain, "tool"), false},
		{1 << 20, 3 << 20, layers[0], false},
		{1 << 20, 3 << 20, filepath.Join(root, "containers", "mapped", "mount.json"), true}, // seen, and not more
		{65534, 65534, filepath.Join(mapped, "tool"), false},
		{1 << 20, 65534, filepath.Join(mapped, "tool"), false},
	} {
		cmd := exec.Command("/usr/bin/stat", c.path)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: c.uid, Gid: c.gid}}
		if out, err := cmd.CombinedOutput(); (err == nil) != c.ok {
			t.Errorf("%d:%d at %s: %v %s", c.uid, c.gid, strings.TrimPrefix(c.path, dir), err, out)
		}
	}
	if mode := must[os.FileInfo](t)(os.Stat(filepath.Join(root, "containers", "mapped", "mount.json"))).Mode().Perm(); mode != 0o600 {
		t.Errorf("record has mode %#o", mode)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	openStore(t, root)
	if mode := must[os.FileInfo](t)(os.Stat(root)).Mode().Perm(); mode != 0o711 {
		t.Errorf("mode %#o after a restart", mode)
	}
}

// TestMappedNot opens a store where nothing can be mapped.
func TestMappedNot(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	for _, d := range []string{"lower", "upper", "work", "root"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	target := filepath.Join(dir, "root")
	if err := overlay.Mount(overlay.Request{Lower: []string{filepath.Join(dir, "lower")}, Upper: filepath.Join(dir, "upper"), Work: filepath.Join(dir, "work"), Target: target}); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(target, unix.MNT_DETACH)
	s := openStore(t, filepath.Join(target, "images"))
	if err := s.Mapped(); !kind.Is(err, kind.Precondition) || !strings.Contains(err.Error(), "overlay") {
		t.Errorf("%v, want kind Precondition and the file system's name", err)
	}
	if entries := must[[]os.DirEntry](t)(os.ReadDir(filepath.Join(target, "images", "staging"))); len(entries) != 0 {
		t.Errorf("the try left %v", entries)
	}
}
