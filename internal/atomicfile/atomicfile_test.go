package atomicfile

import (
	"os"
	"path/filepath"
	"testing"
)

func TestWrite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	for _, write := range []func(string, []byte, os.FileMode) error{Write, WriteDurable} {
		for _, text := range []string{"one", ""} {
			if err := write(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			if b, err := os.ReadFile(path); err != nil || string(b) != text {
				t.Errorf("read %q, %v; want %q", b, err, text)
			}
		}
	}
	if entries, _ := os.ReadDir(filepath.Dir(path)); len(entries) != 1 {
		t.Errorf("%d files are left, want 1", len(entries))
	}
	if err := Write(filepath.Join(path, "below"), nil, 0o600); err == nil {
		t.Error("a file was taken for a folder")
	}
}

func TestRemoveTemps(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"f", ".tmp-f-123", ".tmp-f-9", ".tmp-g-1"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := RemoveTemps(filepath.Join(dir, "f")); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 2 || entries[0].Name() != ".tmp-g-1" || !IsTemp(entries[0].Name()) || entries[1].Name() != "f" {
		t.Errorf("left: %v, %v", entries, err)
	}
}
