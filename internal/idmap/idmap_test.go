package idmap

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"noded.dev/noded/internal/kind"
)

var ids = Mapping{Users: Range{Host: 100000, Length: 65536}, Groups: Range{Host: 200000, Length: 65536}}

func TestRange(t *testing.T) {
	r := Range{Container: 10, Host: 4294967290, Length: 6}
	for id, want := range map[uint32]uint32{9: 0, 10: 4294967290, 15: 4294967295, 16: 0, 0: 0, 4294967295: 0} {
		got, ok := r.ToHost(id)
		if got != want || ok != (want != 0) {
			t.Errorf("%d is %d, %v", id, got, ok)
		}
	}
	if r.String() != "10-15" {
		t.Error(r)
	}
	if _, _, err := (Mapping{Users: r, Groups: r}).Root(); !kind.Is(err, kind.Invalid) {
		t.Errorf("root without an id: %v", err)
	}
	if uid, gid, err := ids.Root(); uid != 100000 || gid != 200000 || err != nil {
		t.Error(uid, gid, err)
	}
	if _, err := ids.Group(65536); err == nil || !strings.Contains(err.Error(), "0-65535") {
		t.Error(err)
	}
}

func TestACL(t *testing.T) {
	entry := func(tag byte, id string) string { return string([]byte{tag, 0, 7, 0}) + id }
	const head, none = "\x02\x00\x00\x00", "\xff\xff\xff\xff"
	list := head + entry(1, none) + entry(2, "\x07\x00\x00\x00") + entry(4, none) + entry(8, "\x09\x00\x00\x00") + entry(0x20, none)
	want := head + entry(1, none) + entry(2, "\xa7\x86\x01\x00") + entry(4, none) + entry(8, "\x49\x0d\x03\x00") + entry(0x20, none)
	got, err := ids.ACL([]byte(list))
	if err != nil || string(got) != want {
		t.Errorf("%x, want %x (%v)", got, want, err)
	}
	for name, bad := range map[string]string{"short": "\x02", "cut": head + "\x01", "unmapped": head + entry(2, "\x00\x00\x01\x00")} {
		if _, err := ids.ACL([]byte(bad)); !kind.Is(err, kind.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestPass(t *testing.T) {
	dir := t.TempDir()
	inner := filepath.Join(dir, "a", "b")
	if err := os.MkdirAll(inner, 0o700); err != nil {
		t.Fatal(err)
	}
	err := Passable(inner)
	if !kind.Is(err, kind.Precondition) || !strings.Contains(err.Error(), filepath.Join(dir, "a")+" has mode") {
		t.Errorf("closed: %v", err)
	}
	if err := Pass(filepath.Join(dir, "a")); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(filepath.Join(dir, "a")); err != nil || info.Mode().Perm() != 0o711 {
		t.Error(info.Mode(), err)
	}
	for mode, want := range map[os.FileMode]os.FileMode{0o777: 0o711, 0o755: 0o711, 0o711: 0o711, 0o700: 0o700, 0o550: 0o710} {
		if err := os.Chmod(inner, mode); err != nil {
			t.Fatal(err)
		}
		if err := Close(inner); err != nil {
			t.Fatal(err)
		}
		if info, err := os.Stat(inner); err != nil || info.Mode().Perm() != want {
			t.Errorf("%#o closed is %#o (%v)", mode, info.Mode().Perm(), err)
		}
	}
	// The folders above belong to the test's runner.
	if err := Passable(inner); err != nil && strings.Contains(err.Error(), filepath.Join(dir, "a")+" has mode") {
		t.Error(err)
	}
}
