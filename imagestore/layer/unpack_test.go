package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"noded.dev/noded/imagestore/limit"
	"noded.dev/noded/internal/kind"
	"noded.dev/noded/test/testimage"
)

type entry = testimage.Entry

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes devices and owners")
	}
}

// canary is a folder beside the layer that no layer may touch.
type canary struct {
	dir  string
	seen string
}

func newCanary(t testing.TB, parent string) *canary {
	t.Helper()
	c := &canary{dir: filepath.Join(parent, "canary")}
	if err := os.MkdirAll(filepath.Join(c.dir, "sub"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"f", "sub/f", "ptmx"} {
		if err := os.WriteFile(filepath.Join(c.dir, name), []byte("canary"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c.seen = c.look(t)
	return c
}

func (c *canary) look(t testing.TB) string {
	t.Helper()
	var all strings.Builder
	err := filepath.WalkDir(c.dir, func(p string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		body, _ := os.ReadFile(p)
		var names [256]byte
		n, _ := unix.Llistxattr(p, names[:])
		fmt.Fprintf(&all, "%s %d %o %d:%d %v %d %q %q\n", p, st.Ino, st.Mode, st.Uid, st.Gid, st.Mtim, st.Nlink, body, names[:n])
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all.String()
}

func (c *canary) check(t testing.TB) {
	t.Helper()
	if now := c.look(t); now != c.seen {
		t.Errorf("canary changed:\n%s\nwas\n%s", now, c.seen)
	}
}

func untarEntries(t testing.TB, dir string, entries ...entry) (Meta, error) {
	t.Helper()
	data, err := testimage.Tar(entries...)
	if err != nil {
		t.Fatal(err)
	}
	return Untar(context.Background(), dir, bytes.NewReader(data), limit.Default())
}

// TestBreakouts feeds layers that try to leave their folder. Each either fails
// as malformed or stays inside; {C} stands for the canary's path.
func TestBreakouts(t *testing.T) {
	needRoot(t)
	link := func(name, to string) entry { return entry{Name: name, Type: tar.TypeSymlink, Link: to} }
	hard := func(name, to string) entry { return entry{Name: name, Type: tar.TypeLink, Link: to} }
	file := func(name string) entry { return entry{Name: name, Body: "evil", Mode: 0o6777} }
	dir := func(name string) entry { return entry{Name: name + "/", Mode: 0o777} }
	var deep []entry
	for i := range 45 {
		deep = append(deep, link(fmt.Sprintf("l%d", i), fmt.Sprintf("l%d", i+1)))
	}
	deep = append(deep, link("l45", "{C}"), file("l0/f"))
	cases := []struct {
		name    string
		entries []entry
		fails   bool
	}{
		{"absolute link then file", []entry{link("x", "/"), file("x{C}/f")}, false},
		{"link to canary then file", []entry{link("x", "{C}"), file("x/f")}, true},
		{"relative link up", []entry{link("a", ".."), file("a/canary/f")}, false},
		{"many levels up", []entry{link("a", "../../../../../../../.."), file("a{C}/f")}, false},
		{"dots in the name", []entry{file("../canary/f")}, false},
		{"dots in the middle", []entry{dir("a"), file("a/../../canary/f")}, false},
		{"absolute name", []entry{file("{C}/f")}, false},
		{"hard link outside", []entry{hard("h", "../canary/f"), file("h")}, true},
		{"hard link absolute", []entry{hard("h", "{C}/f"), file("h")}, true},
		{"hard link through link", []entry{link("x", "{C}"), hard("h", "x/f"), file("h")}, true},
		{"hard link to link then write", []entry{link("x", "{C}/f"), hard("h", "x"), file("h")}, false},
		{"hard link to folder", []entry{dir("d"), hard("h", "d")}, true},
		{"hard link to root", []entry{hard("h", "/")}, true},
		{"hard link to nothing", []entry{hard("h", "missing")}, true},
		{"file over link", []entry{link("f", "{C}/f"), file("f")}, false},
		{"folder over link", []entry{link("d", "{C}"), dir("d"), file("d/f")}, false},
		{"folder over link without slash", []entry{link("d", "{C}/sub"), {Name: "d", Type: tar.TypeDir, Mode: 0o777}}, false},
		{"device over link", []entry{link("p", "{C}/ptmx"), {Name: "p", Type: tar.TypeChar, Major: 5, Minor: 2, Mode: 0o666}}, false},
		{"fifo over link", []entry{link("p", "{C}/ptmx"), {Name: "p", Type: tar.TypeFifo, Mode: 0o666}}, false},
		{"root as link", []entry{link("./", "{C}"), file("f")}, true},
		{"root as link by dot", []entry{link(".", "{C}"), file("f")}, true},
		{"root as file", []entry{file(".")}, true},
		{"root as device", []entry{{Name: ".", Type: tar.TypeChar, Major: 1, Minor: 3}}, true},
		{"root with no permission", []entry{{Name: "./", Mode: 0o1000, UID: 1000}, file("f")}, false},
		{"whiteout outside", []entry{{Name: "../canary/.wh.f"}}, false},
		{"whiteout through link", []entry{link("x", "{C}"), {Name: "x/.wh.f"}}, true},
		{"opaque through link", []entry{link("x", "{C}"), {Name: "x/.wh..wh..opq"}}, true},
		{"whiteout of dot", []entry{{Name: ".wh.."}}, true},
		{"whiteout of dots", []entry{{Name: ".wh..."}}, true},
		{"whiteout of nothing", []entry{{Name: "a/.wh."}}, true},
		{"chain of links", deep, true},
		{"loop of links", []entry{link("a", "b"), link("b", "a"), file("a/f")}, true},
		{"link to proc", []entry{link("p", "/proc/self/root"), file("p{C}/f")}, true},
		{"magic link", []entry{link("p", "/proc/self/cwd"), file("p/f")}, true},
		{"file as parent", []entry{file("f"), file("f/g")}, true},
		{"long component", []entry{file(strings.Repeat("a", 256))}, true},
		{"long path", []entry{file(strings.Repeat("a/", 2100) + "f")}, true},
		{"invalid text", []entry{file("\xff\xfe")}, false},
		{"backslashes", []entry{file(`..\..\canary\f`)}, false},
		{"owner too large", []entry{{Name: "f", UID: 1 << 31}}, true},
		{"bad capability", []entry{{Name: "f", PAX: map[string]string{"SCHILY.xattr.security.capability": "junk"}}}, true},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			parent := t.TempDir()
			can := newCanary(t, parent)
			root := filepath.Join(parent, "layer")
			if err := os.Mkdir(root, 0o700); err != nil {
				t.Fatal(err)
			}
			var entries []entry
			for _, e := range c.entries {
				e.Name, e.Link = strings.ReplaceAll(e.Name, "{C}", can.dir), strings.ReplaceAll(e.Link, "{C}", can.dir)
				entries = append(entries, e)
			}
			_, err := untarEntries(t, root, entries...)
			can.check(t)
			if c.fails != (err != nil) {
				t.Errorf("error is %v, want one: %v", err, c.fails)
			}
			if err != nil && !kind.Is(err, kind.Invalid) {
				t.Errorf("kind is %v, want Invalid: %v", kind.Of(err), err)
			}
			if left, err := os.ReadDir(parent); err != nil || len(left) != 2 {
				t.Errorf("%d entries beside the layer: %v", len(left), err)
			}
		})
	}
}

// TestSwappedLink unpacks while another process turns a folder into a link out
// of the layer and back.
func TestSwappedLink(t *testing.T) {
	needRoot(t)
	parent := t.TempDir()
	can := newCanary(t, parent)
	root := filepath.Join(parent, "layer")
	if err := os.MkdirAll(filepath.Join(root, "real"), 0o700); err != nil {
		t.Fatal(err)
	}
	var entries []entry
	for i := range 3000 {
		entries = append(entries, entry{Name: "d/f", Body: "evil"}, entry{Name: fmt.Sprintf("e/x%d", i), Body: "x"})
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		d := filepath.Join(root, "d")
		for {
			select {
			case <-stop:
				return
			default:
			}
			os.Symlink(can.dir, d)
			os.Remove(d)
			os.Mkdir(d, 0o700)
			os.RemoveAll(d)
		}
	}()
	for range 3 {
		untarEntries(t, root, entries...) // fails or not: only the canary counts
	}
	close(stop)
	<-stopped
	can.check(t)
}

func TestAttributes(t *testing.T) {
	needRoot(t)
	root := t.TempDir()
	old := time.Unix(1_000_000_000, 0)
	meta, err := untarEntries(t, root,
		entry{Name: "d/", Mode: 0o2755, UID: 7, GID: 8, Time: old},
		entry{Name: "d/su", Body: "x", Mode: 0o4755, UID: 7, GID: 8, Time: old, PAX: map[string]string{
			"SCHILY.xattr.user.kept":                "yes",
			"SCHILY.xattr.user.overlay.opaque":      "y",
			"SCHILY.xattr.trusted.overlay.redirect": "/etc",
			"SCHILY.xattr.trusted.other":            "z",
			"SCHILY.xattr.security.selinux":         "label",
		}},
		entry{Name: "d/hard", Type: tar.TypeLink, Link: "d/su"},
		entry{Name: "d/new/implied/f", Body: strings.Repeat("y", 5000)},
		entry{Name: "null", Type: tar.TypeChar, Major: 1, Minor: 3, Mode: 0o666},
		entry{Name: "fake whiteout", Type: tar.TypeChar},
		entry{Name: "later/f"}, entry{Name: "later/", Mode: 0o700},
	)
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	stat := func(name string) unix.Stat_t {
		t.Helper()
		if err := unix.Lstat(filepath.Join(root, name), &st); err != nil {
			t.Fatal(name, err)
		}
		return st
	}
	if st := stat("d"); st.Mode&0o7777 != 0o2755 || st.Uid != 7 || st.Gid != 8 || st.Mtim.Nano() != old.UnixNano() {
		t.Errorf("d is %o %d:%d %v", st.Mode, st.Uid, st.Gid, st.Mtim)
	}
	if st := stat("d/su"); st.Mode&0o7777 != 0o4755 || st.Nlink != 2 || st.Mtim.Nano() != old.UnixNano() {
		t.Errorf("d/su is %o, %d links, %v", st.Mode, st.Nlink, st.Mtim)
	}
	if st := stat("d/new/implied"); st.Mode&0o7777 != 0o755 || st.Gid != 0 {
		t.Errorf("implied folder is %o %d:%d", st.Mode, st.Uid, st.Gid)
	}
	if st := stat("null"); st.Rdev != unix.Mkdev(1, 3) || st.Mode&0o777 != 0o666 {
		t.Errorf("null is %x %o", st.Rdev, st.Mode)
	}
	if err := unix.Lstat(filepath.Join(root, "fake whiteout"), &st); err != unix.ENOENT {
		t.Errorf("an image made an overlayfs whiteout: %v", err)
	}
	var names [256]byte
	n, err := unix.Llistxattr(filepath.Join(root, "d/su"), names[:])
	if err != nil || string(names[:n]) != "user.kept\x00" {
		t.Errorf("extended attributes are %q, %v", names[:n], err)
	}
	want := map[string]bool{"": true, "d/new": true, "d/new/implied": true}
	if len(meta.Implied) != len(want) {
		t.Errorf("implied folders are %q", meta.Implied)
	}
	for _, p := range meta.Implied {
		if !want[p] {
			t.Errorf("folder %q is not implied", p)
		}
	}
	if meta.Inodes != 9 || meta.Bytes < 5*4096 {
		t.Errorf("counted %+v", meta)
	}
}

// TestReplace checks that of two entries of a name the later one counts.
func TestReplace(t *testing.T) {
	needRoot(t)
	link := entry{Name: "n", Type: tar.TypeSymlink, Link: "other"}
	file := entry{Name: "n", Body: "file"}
	folder := []entry{{Name: "n/"}, {Name: "n/deep/er/f"}}
	fifo := entry{Name: "n", Type: tar.TypeFifo}
	white := entry{Name: ".wh.n"}
	kinds := map[string][]entry{"link": {link}, "file": {file}, "folder": folder, "fifo": {fifo}, "whiteout": {white}}
	modes := map[string]uint32{"link": unix.S_IFLNK, "file": unix.S_IFREG, "folder": unix.S_IFDIR, "fifo": unix.S_IFIFO}
	for first := range kinds {
		for second := range kinds {
			root := t.TempDir()
			if _, err := untarEntries(t, root, append(append([]entry{}, kinds[first]...), kinds[second]...)...); err != nil {
				t.Errorf("%s, then %s: %v", first, second, err)
				continue
			}
			last := second
			if second == "whiteout" {
				last = first // a whiteout is about lower layers only
			}
			var st unix.Stat_t
			if err := unix.Lstat(filepath.Join(root, "n"), &st); err != nil {
				t.Errorf("%s, then %s: %v", first, second, err)
				continue
			}
			if last == "whiteout" {
				if !isWhiteout(&st) {
					t.Errorf("whiteouts only: mode %o", st.Mode)
				}
				continue
			}
			if st.Mode&unix.S_IFMT != modes[last] {
				t.Errorf("%s, then %s: mode %o", first, second, st.Mode)
			}
			var b [4]byte
			n, _ := unix.Lgetxattr(filepath.Join(root, "n"), opaqueXattr, b[:])
			if hides := n == 1; hides != (last == "folder" && (first == "whiteout" || second == "whiteout")) {
				t.Errorf("%s, then %s: opaque is %v", first, second, hides)
			}
		}
	}
}

func TestLimits(t *testing.T) {
	needRoot(t)
	l := limit.Default()
	l.LayerEntries, l.LayerBytes, l.ImpliedDirs, l.XattrBytes = 5, 1<<20, 3, 100
	many := make([]entry, 6)
	for i := range many {
		many[i] = entry{Name: fmt.Sprint("f", i)}
	}
	cases := []struct {
		name    string
		entries []entry
		kind    kind.Kind
		text    string
	}{
		{"entries", many, kind.Exhausted, "layer_entries = 5"},
		{"bytes", []entry{{Name: "a", Body: strings.Repeat("x", 600<<10)}, {Name: "b", Body: strings.Repeat("x", 600<<10)}}, kind.Exhausted, "layer_bytes = 1048576"},
		{"implied folders", []entry{{Name: "a/b/c/d"}}, kind.Exhausted, "implied_dirs = 3"},
		{"xattrs", []entry{{Name: "a", PAX: map[string]string{"SCHILY.xattr.user.a": strings.Repeat("x", 100)}}}, kind.Invalid, "xattr_bytes = 100"},
	}
	for _, c := range cases {
		data, err := testimage.Tar(c.entries...)
		if err != nil {
			t.Fatal(err)
		}
		_, err = Untar(context.Background(), t.TempDir(), bytes.NewReader(data), l)
		if !kind.Is(err, c.kind) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func FuzzUntar(f *testing.F) {
	needRoot(f)
	seeds := [][]entry{
		{{Name: "a/", Mode: 0o700}, {Name: "a/b", Body: "x"}, {Name: "a/c", Type: tar.TypeLink, Link: "a/b"}},
		{{Name: "l", Type: tar.TypeSymlink, Link: ".."}, {Name: "l/f"}, {Name: ".wh.l"}},
		{{Name: "x", PAX: map[string]string{"SCHILY.xattr.user.a": "b", "GNU.sparse.major": "1"}}},
		{{Name: "d/.wh..wh..opq"}, {Name: "./"}},
	}
	for _, s := range seeds {
		data, err := testimage.Tar(s...)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	l := limit.Default()
	l.LayerBytes, l.LayerEntries = 1<<20, 1000
	parent := f.TempDir()
	can := newCanary(f, parent)
	f.Fuzz(func(t *testing.T, data []byte) {
		root, err := os.MkdirTemp(parent, "layer")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(root)
		_, err = Untar(context.Background(), root, bytes.NewReader(data), l)
		if kind.Is(err, kind.Internal) {
			t.Errorf("error without a kind: %v", err)
		}
		can.check(t)
	})
}
