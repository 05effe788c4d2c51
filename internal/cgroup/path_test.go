package cgroup

import (
	"path/filepath"
	"strings"
	"testing"

	"noded.dev/noded/internal/kind"
)

func TestOCIPath(t *testing.T) {
	h := &Host{}
	for _, c := range []struct {
		parent, id string
		systemd    bool
		want, dir  string
	}{
		{"/kubepods/pod1", "c1", false, "/kubepods/pod1/c1", "kubepods/pod1/c1"},
		{"kubepods//pod1/", "c1", false, "/kubepods/pod1/c1", "kubepods/pod1/c1"},
		{"", "c1", false, "/noded/c1", "noded/c1"},
		{"/", "c1", false, "/c1", "c1"},
		{"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podx_y.slice", "c1", true,
			"kubepods-burstable-podx_y.slice:noded:c1",
			"kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podx_y.slice/noded-c1.scope"},
		{"a-b.slice", "c1", true, "a-b.slice:noded:c1", "a.slice/a-b.slice/noded-c1.scope"},
		{"", "c1", true, "system.slice:noded:c1", "system.slice/noded-c1.scope"},
	} {
		got, err := h.OCIPath(c.parent, c.id, c.systemd)
		if err != nil || got != c.want {
			t.Errorf("OCIPath(%q, %q, %v) = %q, %v; want %q", c.parent, c.id, c.systemd, got, err, c.want)
		}
		if dir := h.Dir(got); dir != c.dir {
			t.Errorf("Dir(%q) = %q, want %q", got, dir, c.dir)
		}
	}
}

func TestOCIPathRefuses(t *testing.T) {
	h := &Host{}
	for _, c := range []struct {
		what, parent, id string
		systemd          bool
	}{
		{"leaves the root", "../../x", "c", false},
		{"leaves the root inside", "/a/../../b", "c", false},
		{"dots at the end", "/a/..", "c", false},
		{"NUL", "/a\x00b", "c", false},
		{"newline", "/a\nb", "c", false},
		{"4 KiB", "/" + strings.Repeat("a/", 2048), "c", false},
		{"4 KiB with the id", "/" + strings.Repeat("a/", 2040), strings.Repeat("c", 100), false},
		{"long name", "/" + strings.Repeat("a", 256), "c", false},
		{"systemd form for cgroupfs", "a.slice:b:c", "c", false},
		{"no slice", "/kubepods/pod1", "c", true},
		{"empty part", "a--b.slice", "c", true},
		{"lies elsewhere", "/x.slice/a-b.slice", "c", true},
		{"dots for systemd", "../a.slice", "c", true},
		{"no id", "/a", "", false},
		{"id with slash", "/a", "b/c", false},
		{"id of dots", "/a", "..", false},
		{"id with colon", "/a", "b:c", true},
	} {
		if got, err := h.OCIPath(c.parent, c.id, c.systemd); !kind.Is(err, kind.Invalid) {
			t.Errorf("%s: OCIPath = %q, %v; want an error of kind Invalid", c.what, got, err)
		}
	}
}

func TestDirStaysInside(t *testing.T) {
	h := &Host{}
	for _, p := range []string{"../../etc", "/../x", "..:..:..", "../..:a:../../../b", "a:b"} {
		if d := h.Dir(p); !filepath.IsLocal(d) {
			t.Errorf("Dir(%q) = %q leaves the root", p, d)
		}
	}
}
