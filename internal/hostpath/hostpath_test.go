package hostpath

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"noded.dev/noded/internal/kind"
)

const role = "NODED_HOSTPATH_TEST_ROLE"

// TestMain is the helper too, as the daemon's own binary is.
func TestMain(m *testing.M) {
	switch os.Getenv(role) {
	case "helper":
		if err := Serve(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	case "hanging":
		time.Sleep(time.Hour)
	}
	os.Exit(m.Run())
}

func resolver(t *testing.T, as string, create bool) *Resolver {
	t.Helper()
	t.Setenv(role, as)
	r := New([]string{os.Args[0]}, create)
	t.Cleanup(r.Close)
	return r
}

func nothing(string) {}

// TestFromMemory finds what was just made without a helper.
func TestFromMemory(t *testing.T) {
	dir := t.TempDir()
	if _, ok := fromMemory(dir, &mountTable{}); !ok {
		t.Skip("this kernel or file system does not answer from memory")
	}
	r := New([]string{"/no/such/helper"}, false)
	got, err := r.Resolve(context.Background(), []string{dir + "/../" + filepath.Base(dir), "", "/"}, nothing)
	if err != nil || !slices.Equal(got, []string{dir, "", "/"}) {
		t.Errorf("got %q, %v", got, err)
	}
}

// TestAsked has a helper find paths that nobody has looked at before.
func TestAsked(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "a/b"), 0o755); err != nil {
		t.Fatal(err)
	}
	for link, to := range map[string]string{"dangling": "nothing", "loop": "loop"} {
		if err := os.Symlink(to, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range map[string]struct {
		create bool
		path   string
		kind   kind.Kind
	}{
		"missing":          {false, "missing/deep", kind.Precondition},
		"made":             {true, "made/deep", -1},
		"dangling":         {false, "dangling", kind.Precondition},
		"dangling, create": {true, "dangling", kind.Precondition},
		"loop":             {true, "loop", kind.Precondition},
		"below a device":   {false, "../../../../../dev/null/x", kind.Precondition},
	} {
		t.Run(name, func(t *testing.T) {
			path := dir + "/" + c.path
			got, err := resolver(t, "helper", c.create).Resolve(context.Background(), []string{dir, path}, nothing)
			if c.kind == -1 && (err != nil || got[1] != path) || c.kind != -1 && !kind.Is(err, c.kind) {
				t.Errorf("got %q, %v", got, err)
			}
			if err != nil && !strings.Contains(err.Error(), path) {
				t.Errorf("the error does not name the path: %v", err)
			}
		})
	}
}

// TestHangingHelper gives up with its caller, says where it hung, and kills.
func TestHangingHelper(t *testing.T) {
	r := resolver(t, "hanging", false)
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	var told string
	missing := filepath.Join(t.TempDir(), "missing")
	_, err := r.Resolve(ctx, []string{missing}, func(s string) { told = s })
	if !kind.Is(err, kind.Deadline) || !strings.Contains(err.Error(), missing+" does not answer") || !strings.Contains(told, missing+" on ") {
		t.Errorf("told %q; %v", told, err)
	}
	done := make(chan struct{})
	go func() { r.Close(); close(done) }()
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		t.Error("the helper still lives")
	}
	if len(r.slots) != 0 {
		t.Errorf("%d places are taken", len(r.slots))
	}
}

// TestManyHanging takes no more helpers than there may be; who gets none is
// told so and does not wait for longer than its own deadline.
func TestManyHanging(t *testing.T) {
	r := resolver(t, "hanging", false)
	r.slots = make(chan struct{}, 2)
	missing := filepath.Join(t.TempDir(), "missing")
	first, stop := context.WithCancel(context.Background())
	defer stop()
	for range 2 {
		go r.Resolve(first, []string{missing}, nothing)
	}
	for len(r.slots) < 2 {
		time.Sleep(time.Millisecond) // a place taken tells nobody
	}
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	_, err := r.Resolve(ctx, []string{missing}, nothing)
	if !kind.Is(err, kind.Unavailable) || !strings.Contains(err.Error(), "2 look-ups") {
		t.Errorf("kind %v: %v", kind.Of(err), err)
	}
}

// TestNoHelper tells of a helper that cannot be started, or ends early.
func TestNoHelper(t *testing.T) {
	for _, command := range []string{"/no/such/helper", "/bin/false"} {
		r := New([]string{command}, false)
		if _, err := r.Resolve(context.Background(), []string{filepath.Join(t.TempDir(), "missing")}, nothing); err == nil || kind.Of(err) != kind.Internal {
			t.Errorf("%s: %v", command, err)
		}
		r.Close()
	}
}

// TestBehind names the file system of what cannot be looked at.
func TestBehind(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounts")
	}
	dir := t.TempDir()
	if err := unix.Mount("the source", dir, "tmpfs", 0, ""); err != nil {
		t.Skip(err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	for _, path := range []string{dir, dir + "/x/y", dir + "/../" + filepath.Base(dir) + "/x"} {
		if got := behind(path); got != "tmpfs from the source, mounted at "+dir {
			t.Errorf("%s: %s", path, got)
		}
	}
}
