package overlay

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"noded.dev/noded/internal/idmap"
	"noded.dev/noded/internal/kind"
	"noded.dev/noded/internal/namespace"
)

const host = 1 << 20

// request is of many layers, each with a file of the user of its number.
func request(t *testing.T, layers int) Request {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir := t.TempDir()
	r := Request{Upper: filepath.Join(dir, "upper"), Work: filepath.Join(dir, "work"), Target: filepath.Join(dir, "root")}
	for i := range layers {
		l := filepath.Join(dir, fmt.Sprintf("layer-%d", i))
		r.Lower = append(r.Lower, l)
		file := filepath.Join(l, fmt.Sprintf("file-%d", i))
		if err := os.MkdirAll(l, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(file, i, i); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{r.Upper, r.Work, r.Target} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	span := idmap.Range{Host: host, Length: 65536}
	ns, err := namespace.NewUser(idmap.Mapping{Users: span, Groups: span})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	r.UserNS = ns
	return r
}

func mounts(t *testing.T) []string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	var points []string
	for _, line := range strings.Split(strings.TrimSpace(string(b)), "\n") {
		points = append(points, strings.Fields(line)[4])
	}
	return points
}

// TestMapped mounts in both ways: this kernel's, and that of older ones.
func TestMapped(t *testing.T) {
	for name, mount := range map[string]func(Request) error{"detached layers": Mount, "aside": mountAside} {
		for _, layers := range []int{1, 3, 150} {
			t.Run(fmt.Sprint(name, " ", layers), func(t *testing.T) {
				r := request(t, layers)
				before := mounts(t)
				if err := mount(r); err != nil {
					t.Fatal(err)
				}
				defer Unmount(r.Target)
				if after := mounts(t); len(after) != len(before)+1 || after[len(after)-1] != r.Target {
					t.Errorf("mounts: %d before, now %d", len(before), len(after))
				}
				if !Mounted(r.Target) {
					t.Error("nothing is mounted")
				}
				for i := range layers {
					path := filepath.Join(r.Target, fmt.Sprintf("file-%d", i))
					if i == 0 {
						if err := os.Chmod(path, 0o600); err != nil { // copied up
							t.Fatal(err)
						}
					}
					var st unix.Stat_t
					if err := unix.Stat(path, &st); err != nil || st.Uid != uint32(host+i) || st.Gid != uint32(host+i) {
						t.Errorf("file %d belongs to %d:%d (%v)", i, st.Uid, st.Gid, err)
					}
				}
				var st unix.Stat_t
				if err := unix.Stat(filepath.Join(r.Upper, "file-0"), &st); err != nil || st.Uid != host {
					t.Errorf("copied up: %d (%v)", st.Uid, err)
				}
				if err := unix.Stat(filepath.Join(r.Lower[0], "file-0"), &st); err != nil || st.Uid != 0 || st.Mode&0o777 != 0o644 {
					t.Errorf("the layer's own file: %d, %#o (%v)", st.Uid, st.Mode, err)
				}
			})
		}
	}
}

// TestMappedNot: layers on a file system without id maps, which overlayfs is.
func TestMappedNot(t *testing.T) {
	r := request(t, 1)
	if err := Mount(r); err != nil {
		t.Fatal(err)
	}
	defer Unmount(r.Target)
	upon := request(t, 1)
	upon.Lower = []string{r.Target}
	before := mounts(t)
	if err := Mount(upon); !kind.Is(err, kind.Precondition) || !strings.Contains(err.Error(), "overlay") {
		t.Errorf("%v, want kind Precondition and the file system's name", err)
	}
	if after := mounts(t); len(after) != len(before) {
		t.Error("a mount is left")
	}
}
