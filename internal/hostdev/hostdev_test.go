package hostdev

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	rspec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"noded.dev/noded/internal/kind"
)

func paths(list []rspec.LinuxDevice) []string {
	var p []string
	for _, d := range list {
		p = append(p, d.Path)
	}
	return p
}

func TestResolveOne(t *testing.T) {
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink("/dev/null", link); err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{"/dev/null", link} {
		got, err := Resolve(host, "/dev/other")
		if err != nil || len(got) != 1 {
			t.Fatalf("%s: %v, %v", host, got, err)
		}
		if d := got[0]; d.Path != "/dev/other" || d.Type != "c" || d.Major != 1 || d.Minor != 3 || d.FileMode.Perm() != 0o666 {
			t.Errorf("%s: %+v", host, d)
		}
	}
}

// TestRefused: B31. What is missing and what is no device.
func TestRefused(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o644); err != nil {
		t.Fatal(err)
	}
	for host, want := range map[string]kind.Kind{
		filepath.Join(dir, "none"): kind.NotFound,
		file + "/below":            kind.NotFound,
		file:                       kind.Invalid,
		fifo:                       kind.Invalid,
	} {
		if got, err := Resolve(host, "/dev/x"); !kind.Is(err, want) {
			t.Errorf("%s: %v, %v; want kind %v", host, got, err, want)
		}
	}
}

// TestFolder: nodes below a folder, at their places; links and files are left
// out, and depth has a limit.
func TestFolder(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to make device nodes")
	}
	dir := t.TempDir()
	for _, step := range []func() error{
		func() error { return os.MkdirAll(filepath.Join(dir, "bus/001"), 0o755) },
		func() error {
			return unix.Mknod(filepath.Join(dir, "bus/001/002"), unix.S_IFCHR|0o600, int(unix.Mkdev(189, 1)))
		},
		func() error { return unix.Mknod(filepath.Join(dir, "disk"), unix.S_IFBLK|0o660, int(unix.Mkdev(8, 0))) },
		func() error { return os.Symlink("/dev/null", filepath.Join(dir, "link")) },
		func() error { return os.WriteFile(filepath.Join(dir, "file"), nil, 0o644) },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	got, err := Resolve(dir, "/dev/mine")
	if err != nil || !slices.Equal(paths(got), []string{"/dev/mine/bus/001/002", "/dev/mine/disk"}) {
		t.Fatalf("%v, %v", paths(got), err)
	}
	if d := got[0]; d.Type != "c" || d.Major != 189 || d.Minor != 1 || d.FileMode.Perm() != 0o600 || *d.UID != 0 {
		t.Errorf("%+v", d)
	}
	if got[1].Type != "b" {
		t.Errorf("%+v", got[1])
	}
	deep := dir
	for range maxDepth + 2 {
		deep = filepath.Join(deep, "d")
	}
	if err := os.MkdirAll(deep, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := Resolve(dir, "/dev/mine"); !kind.Is(err, kind.Exhausted) {
		t.Errorf("a deep folder: %v", err)
	}
}

func TestAll(t *testing.T) {
	got, err := All()
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(paths(got), "/dev/null") {
		t.Errorf("no /dev/null in %v", paths(got))
	}
	for _, p := range paths(got) {
		if slices.Contains(notShared, p) || filepath.Dir(p) == "/dev/pts" {
			t.Errorf("%s is a container's own", p)
		}
	}
}
