package imagestore

import (
	"archive/tar"
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"noded.dev/noded/internal/kind"
	"noded.dev/noded/test/testimage"
)

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes devices, owners and mounts")
	}
}

func quiet() logrus.FieldLogger {
	l := logrus.New()
	l.SetLevel(logrus.ErrorLevel)
	return l
}

func must[T any](t testing.TB) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func openStore(t testing.TB, root string) *Store {
	t.Helper()
	s := must[*Store](t)(Open(context.Background(), Options{Root: root, Log: quiet(), StallWindow: 2 * time.Second}))
	t.Cleanup(func() {
		for _, id := range s.Mounts() {
			s.Unmount(context.Background(), id)
		}
		s.Close()
	})
	return s
}

func startRegistry(t testing.TB) *testimage.Registry {
	t.Helper()
	r := must[*testimage.Registry](t)(testimage.StartRegistry(context.Background(), t.TempDir()))
	t.Cleanup(func() { r.Stop() })
	return r
}

func TestPullMountRemove(t *testing.T) {
	needRoot(t)
	ctx := context.Background()
	reg := startRegistry(t)
	base := must[testimage.Layer](t)(testimage.NewLayer(testimage.Gzip,
		testimage.Entry{Name: "./", Mode: 0o750, UID: 3},
		testimage.Entry{Name: "tmp/", Mode: 0o1777},
		testimage.Entry{Name: "etc/", Mode: 0o755},
		testimage.Entry{Name: "etc/gone", Body: "x"},
		testimage.Entry{Name: "old/"}, testimage.Entry{Name: "old/file", Body: "old"},
	))
	second := must[testimage.Layer](t)(testimage.NewLayer(testimage.Zstd,
		testimage.Entry{Name: "tmp/deep/new", Body: "new"},
		testimage.Entry{Name: "etc/.wh.gone"},
		testimage.Entry{Name: "old/.wh..wh..opq"},
		testimage.Entry{Name: "old/young", Body: "young"},
		testimage.Entry{Name: "link", Type: tar.TypeSymlink, Link: "/etc"},
	))
	third := must[testimage.Layer](t)(testimage.NewLayer(testimage.Plain, testimage.Entry{Name: "third", Body: "3"}))
	img := must[testimage.Image](t)(testimage.New(nil, base, second, third))
	if err := testimage.Push(reg.Address, "a/b", "v1", img); err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(t.TempDir(), "images")
	s := openStore(t, root)
	ref := reg.Address + "/a/b:v1"
	got := must[Image](t)(s.Pull(ctx, ref, PullOptions{}))
	if got.ID != img.ID() || len(got.Tags) != 1 || got.Tags[0] != ref || got.Size <= 0 {
		t.Errorf("image is %+v", got)
	}
	for _, name := range []string{ref, got.ID, hexOf(got.ID), hexOf(got.ID)[:12], got.Digests[0]} {
		if found, err := s.Lookup(name); err != nil || found.ID != got.ID {
			t.Errorf("Lookup(%q) = %v, %v", name, found.ID, err)
		}
	}
	fs := must[string](t)(s.Mount(ctx, MountRequest{ID: "c1", ImageID: got.ID}))
	check := func(name string, mode os.FileMode, body string) {
		t.Helper()
		info, err := os.Lstat(filepath.Join(fs, name))
		if err != nil {
			t.Error(err)
			return
		}
		if info.Mode() != mode {
			t.Errorf("%s has mode %v, want %v", name, info.Mode(), mode)
		}
		if data, _ := os.ReadFile(filepath.Join(fs, name)); info.Mode().IsRegular() && string(data) != body {
			t.Errorf("%s holds %q, want %q", name, data, body)
		}
	}
	check("", os.ModeDir|0o750, "")
	check("tmp", os.ModeDir|os.ModeSticky|0o777, "")
	check("tmp/deep", os.ModeDir|0o755, "")
	check("tmp/deep/new", 0o644, "new")
	check("old/young", 0o644, "young")
	check("third", 0o644, "3")
	check("link", os.ModeSymlink|0o777, "")
	for _, gone := range []string{"etc/gone", "old/file"} {
		if _, err := os.Lstat(filepath.Join(fs, gone)); !os.IsNotExist(err) {
			t.Errorf("%s is still there: %v", gone, err)
		}
	}
	if again := must[string](t)(s.Mount(ctx, MountRequest{ID: "c1", ImageID: got.ID})); again != fs {
		t.Errorf("second Mount gives %s", again)
	}
	if err := os.WriteFile(filepath.Join(fs, "written"), make([]byte, 10_000), 0o600); err != nil {
		t.Error(err)
	}
	if u := must[Usage](t)(s.WritableUsage(ctx, "c1")); u.Bytes < 10_000 || u.Inodes != 2 {
		t.Errorf("writable usage is %+v", u)
	}
	if err := s.Remove(ctx, ref); err != nil {
		t.Error(err)
	}
	if len(s.List()) != 0 {
		t.Error("removed image is still listed")
	}
	if _, err := s.Lookup(ref); !kind.Is(err, kind.NotFound) {
		t.Errorf("Lookup after Remove: %v", err)
	}
	check("third", 0o644, "3")
	if err := s.Unmount(ctx, "c1"); err != nil {
		t.Error(err)
	}
	if err := s.Unmount(ctx, "c1"); err != nil {
		t.Error(err)
	}
	left := must[[]os.DirEntry](t)(os.ReadDir(filepath.Join(root, "layers")))
	if len(left) != 0 {
		t.Errorf("%d layers left", len(left))
	}
}
