package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"noded.dev/noded/config"
)

// What check says of CRIU, which is a script here.
func TestCheckCheckpoints(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	cfg := config.Default()
	i := &inspector{report: &report{}, cfg: cfg}
	if i.checkpoints(t.Context()); len(i.findings) != 0 {
		t.Errorf("switched off: %+v", i.findings)
	}
	cfg.Runtime.Checkpoint = true
	cfg.Runtime.Handlers = map[string]config.Handler{"runc": {Path: filepath.Join(dir, "runc")}}
	for _, c := range []struct {
		criu, features string
		want           level
		text           string
	}{
		{"echo Version: 4.2", `{"annotations":{"org.opencontainers.runc.checkpoint.enabled":"true"}}`, levelOK, "criu 4.2 at " + dir},
		{"echo Version: 4.2", `{}`, levelWarn, "built without"},
		{"echo Version: 4.1.1", `{}`, levelWarn, "too old"},
		{"echo Version: 4.2; [ $1 = --version ] || { echo 'Error (criu/x.c:1): no such thing'; exit 1; }", `{}`, levelWarn, "no such thing"},
		{"exit 1", `{}`, levelWarn, "--version"},
	} {
		for name, text := range map[string]string{"criu": c.criu, "runc": "case \"$*\" in *--version*) echo runc version 1.5.2;; *) echo '" + c.features + "';; esac"} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+text+"\n"), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		i := &inspector{report: &report{}, cfg: cfg}
		i.checkpoints(t.Context())
		if len(i.findings) != 1 || i.worst() != c.want || !strings.Contains(i.findings[0].Text, c.text) {
			t.Errorf("%s: %+v, want %v with %q", c.criu, i.findings, c.want, c.text)
		}
	}
}

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
