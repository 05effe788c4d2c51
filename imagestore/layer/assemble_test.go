package layer

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestCorrections stacks layers, topmost first, and compares what is found to
// be corrected: "path mode" of each folder but the root.
func TestCorrections(t *testing.T) {
	needRoot(t)
	dir := func(name string, mode int64) entry { return entry{Name: name + "/", Mode: mode} }
	file := func(name string) entry { return entry{Name: name} }
	cases := []struct {
		name   string
		layers [][]entry
		want   string
		root   os.FileMode
	}{
		{"nothing", [][]entry{{file("a")}}, "", 0o755},
		{"root below", [][]entry{{file("a")}, {dir(".", 0o711)}}, "", 0o711},
		{"own entry wins", [][]entry{{dir("tmp", 0o700), file("tmp/x")}, {dir("tmp", 0o1777)}}, "", 0o755},
		{"entry after its content", [][]entry{{file("tmp/x"), dir("tmp", 0o700)}, {dir("tmp", 0o1777)}}, "", 0o755},
		{"taken from below", [][]entry{{file("tmp/x")}, {dir("tmp", 0o1777)}}, "tmp 1777", 0o755},
		{"taken from far below", [][]entry{{file("tmp/x")}, {file("tmp/y")}, {file("other")}, {dir("tmp", 0o1777)}, {dir("tmp", 0o700)}}, "tmp 1777", 0o755},
		{"with parents", [][]entry{{file("a/b/c/x")}, {dir("a", 0o701), dir("a/b", 0o702), dir("a/b/c", 0o703)}}, "a 701, a/b 702, a/b/c 703", 0o755},
		{"parents that need nothing", [][]entry{{dir("a", 0o701), file("a/b/x")}, {dir("a", 0o777), dir("a/b", 0o702)}}, "a 701, a/b 702", 0o755},
		{"hidden by a file", [][]entry{{file("tmp/x")}, {file("tmp")}, {dir("tmp", 0o1777)}}, "", 0o755},
		{"hidden by a whiteout", [][]entry{{file("tmp/x")}, {file(".wh.tmp")}, {dir("tmp", 0o1777)}}, "", 0o755},
		{"parent hidden", [][]entry{{file("a/b/x")}, {file(".wh.a")}, {dir("a", 0o700), dir("a/b", 0o701)}}, "", 0o755},
		{"removed above", [][]entry{{file(".wh.tmp")}, {file("tmp/x")}, {dir("tmp", 0o1777)}}, "", 0o755},
		{"opaque itself", [][]entry{{file("a/.wh..wh..opq"), file("a/x")}, {dir("a", 0o700)}}, "a 700", 0o755},
		{"opaque parent", [][]entry{{file("a/.wh..wh..opq"), file("a/b/x")}, {dir("a", 0o700), dir("a/b", 0o701)}}, "a 700", 0o755},
		{"opaque parent above", [][]entry{{dir("a", 0o711), file("a/.wh..wh..opq")}, {file("a/b/x")}, {dir("a/b", 0o701)}}, "", 0o755},
		{"same names", [][]entry{{file("a/a/x")}, {dir("a", 0o700), dir("a/a", 0o701)}}, "a 700, a/a 701", 0o755},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			var stack []Stacked
			for _, entries := range c.layers {
				root := t.TempDir()
				meta, err := untarEntries(t, root, entries...)
				if err != nil {
					t.Fatal(err)
				}
				stack = append(stack, Stacked{Dir: root, Meta: meta})
			}
			list, err := Corrections(stack)
			if err != nil {
				t.Fatal(err)
			}
			if len(list) == 0 || list[0].Path != "" || os.FileMode(list[0].Mode) != c.root {
				t.Fatalf("root is not first or wrong: %+v", list)
			}
			var got []string
			built := t.TempDir()
			if err := Build(built, list); err != nil {
				t.Fatal(err)
			}
			for _, f := range list[1:] {
				info, err := os.Lstat(filepath.Join(built, f.Path))
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, f.Path+" "+octal(info))
			}
			if text := strings.Join(got, ", "); text != c.want {
				t.Errorf("corrected %q, want %q", text, c.want)
			}
		})
	}
}

func octal(info os.FileInfo) string {
	text := ""
	if info.Mode()&os.ModeSticky != 0 {
		text = "1"
	}
	for shift := 6; shift >= 0; shift -= 3 {
		text += string(rune('0' + info.Mode().Perm()>>shift&7))
	}
	return text
}
