package main

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"noded.dev/noded/config"
)

// What check says of OCI runtimes, which are scripts here.
func TestCheckRuntimes(t *testing.T) {
	dir := t.TempDir()
	script := func(name, version string) string {
		path := filepath.Join(dir, name)
		text := fmt.Sprintf("#!/bin/sh\ncase \"$*\" in *--version*) %s;; *features*) echo '{\"ociVersionMax\":\"1.2.0\"}';; esac\n", version)
		if err := os.WriteFile(path, []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for name, c := range map[string]struct {
		path string
		want level
	}{
		"good":    {script("good", "echo runc version 1.5.2"), levelOK},
		"old":     {script("old", "echo runc version 1.1.5+ds1"), levelWarn},
		"silent":  {script("silent", "true"), levelWarn},
		"broken":  {script("broken", "exit 1"), levelFail},
		"missing": {filepath.Join(dir, "missing"), levelFail},
	} {
		for _, usual := range []bool{true, false} {
			cfg := config.Default()
			cfg.Runtime.Handlers = map[string]config.Handler{name: {Path: c.path}}
			want := min(c.want, levelWarn)
			if usual {
				cfg.Runtime.Default, want = name, c.want
			}
			i := &inspector{report: &report{}, cfg: cfg}
			i.runtimes(t.Context())
			if len(i.findings) != 1 || i.worst() != want {
				t.Errorf("%s (default: %v): %+v, want %v", name, usual, i.findings, want)
			}
		}
	}
}
