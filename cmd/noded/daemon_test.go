package main

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"sync"
	"testing"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"noded.dev/noded/config"
	"noded.dev/noded/imagestore"
)

// Two daemons on one machine must not take each other's pods for ownerless.
func TestCgroupParentIsOneRoots(t *testing.T) {
	usual, a, b := cgroupParent("/var/lib/noded", false), cgroupParent("/tmp/a", false), cgroupParent("/tmp/b", false)
	if usual != "/noded" || a == usual || a == b || a != cgroupParent("/tmp/a", false) {
		t.Errorf("parents %q, %q and %q", usual, a, b)
	}
}

// A reload puts in force what can change, keeps the rest, and is seen whole by
// those who ask meanwhile.
func TestReload(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("an image store needs root")
	}
	log := logrus.New()
	log.SetOutput(io.Discard)
	images, err := imagestore.Open(t.Context(), imagestore.Options{Root: t.TempDir(), Log: log})
	if err != nil {
		t.Fatal(err)
	}
	defer images.Close()
	d := &daemon{cfg: config.Default(), log: logrus.NewEntry(log), images: images}
	var asking sync.WaitGroup
	stop := make(chan struct{})
	asking.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				d.info()
			}
		}
	})
	next := config.Default()
	next.Log.Level, next.Images.Pinned, next.Root = "debug", []string{"*"}, "/elsewhere"
	d.reload(func() (config.Config, error) { return next, nil })
	d.reload(func() (config.Config, error) { return config.Config{}, errors.New("broken") })
	close(stop)
	asking.Wait()
	cfg := d.info()["config"].(config.Config)
	if log.Level != logrus.DebugLevel || cfg.Log.Level != "debug" || len(cfg.Images.Pinned) != 1 || cfg.Root != config.Default().Root {
		t.Errorf("in force: %+v", cfg)
	}
	for _, change := range config.Diff(config.Default(), cfg) {
		if !change.Reload {
			t.Errorf("%s was changed", change.Key)
		}
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

// The socket is never open to others, whatever umask the daemon was started
// with, and takes the place of a dead daemon's.
func TestListenCRI(t *testing.T) {
	old := unix.Umask(0)
	defer unix.Umask(old)
	path := filepath.Join(t.TempDir(), "new", "noded.sock")
	for range 2 {
		l, err := listenCRI(t.Context(), "unix://"+path)
		if err != nil {
			t.Fatal(err)
		}
		l.(*net.UnixListener).SetUnlinkOnClose(false) // as a killed daemon leaves it
		defer l.Close()
		for file, want := range map[string]os.FileMode{path: 0o600, filepath.Dir(path): 0o700} {
			if info, err := os.Stat(file); err != nil || info.Mode().Perm() != want {
				t.Errorf("%s: %v, %v, want mode %o", file, info.Mode(), err, want)
			}
		}
	}
}
