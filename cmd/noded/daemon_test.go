package main

import (
	"os"
	"reflect"
	"regexp"
	"testing"

	"noded.dev/noded/config"
)

// Two daemons on one machine must not take each other's pods for ownerless.
func TestCgroupParentIsOneRoots(t *testing.T) {
	usual, a, b := cgroupParent("/var/lib/noded", false), cgroupParent("/tmp/a", false), cgroupParent("/tmp/b", false)
	if usual != "/noded" || a == usual || a == b || a != cgroupParent("/tmp/a", false) {
		t.Errorf("parents %q, %q and %q", usual, a, b)
	}
}

// TestNoDeadKeys: a key that the daemon does not read must not be in the
// configuration, where people would trust it.
func TestNoDeadKeys(t *testing.T) {
	var source []byte
	for _, name := range []string{"daemon.go", "node.go", "serve.go", "listen.go"} {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		source = append(source, text...)
	}
	var walk func(of reflect.Type)
	walk = func(of reflect.Type) {
		for i := range of.NumField() {
			f := of.Field(i)
			if !regexp.MustCompile(`\.` + f.Name + `\b`).Match(source) {
				t.Errorf("the daemon does not read %s.%s", of.Name(), f.Name)
			}
			switch f.Type.Kind() {
			case reflect.Struct:
				walk(f.Type)
			case reflect.Map:
				walk(f.Type.Elem())
			}
		}
	}
	walk(reflect.TypeFor[config.Config]())
}
