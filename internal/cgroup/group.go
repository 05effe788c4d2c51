package cgroup

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"noded.dev/noded/internal/kind"
)

// Group reads one cgroup again and again. It opens each file once and reads it
// with pread(2) from then on, which costs no path look-up. It is safe for
// concurrent use.
type Group struct {
	host *Host
	dir  string

	mu     sync.Mutex
	files  map[string]*os.File // nil: the kernel has no such file
	buf    []byte
	closed bool
}

// Open returns a reader of the cgroup; nothing is opened before it is needed.
func (h *Host) Open(dir string) *Group {
	return &Group{host: h, dir: clean(dir), files: map[string]*os.File{}}
}

// Close releases the descriptors. Reading afterwards is an error.
func (g *Group) Close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, f := range g.files {
		if f != nil {
			f.Close()
		}
	}
	g.files, g.closed = nil, true
}

// errAbsent is a file that this kernel or hierarchy does not have.
var errAbsent = errors.New("no such cgroup file")

// read returns the content of a file of the controller's hierarchy; it is
// valid until the next read. The caller holds mu.
func (g *Group) read(controller, file string) ([]byte, error) {
	if g.closed {
		return nil, os.ErrClosed
	}
	f, known := g.files[file]
	if !known {
		var err error
		if f, err = g.open(controller, file); err != nil {
			return nil, err
		}
		g.files[file] = f
	}
	if f == nil {
		return nil, errAbsent
	}
	if g.buf == nil {
		g.buf = make([]byte, 8<<10)
	}
	for n := 0; ; {
		m, err := f.ReadAt(g.buf[n:], int64(n))
		n += m
		switch {
		case errors.Is(err, io.EOF):
			return g.buf[:n], nil
		case errors.Is(err, unix.ENODEV):
			return nil, kind.Errorf(kind.NotFound, "cgroup %s is gone", g.dir)
		case errors.Is(err, unix.EOPNOTSUPP):
			return nil, errAbsent // PSI compiled in but switched off
		case err != nil:
			return nil, err
		}
		if n == len(g.buf) {
			g.buf = append(g.buf, make([]byte, len(g.buf))...)
		}
	}
}

// open returns nil without an error where the cgroup exists without the file.
func (g *Group) open(controller, file string) (*os.File, error) {
	root, _ := g.host.controller(controller)
	if root == "" {
		return nil, nil
	}
	dir := filepath.Join(root, g.dir)
	f, err := os.Open(filepath.Join(dir, file))
	if !errors.Is(err, os.ErrNotExist) {
		return f, err
	}
	if _, err := os.Stat(dir); err != nil {
		return nil, kind.Errorf(kind.NotFound, "cgroup %s: %w", g.dir, err)
	}
	return nil, nil
}

// v2 reports whether the controller's files are those of cgroup v2.
func (g *Group) v2(controller string) bool {
	_, v2 := g.host.controller(controller)
	return v2
}

// number reads a file of one number. "max" is Unlimited, and so is the largest
// value that a v1 limit can have (LONG_MAX in whole pages).
func (g *Group) number(controller, file string) (uint64, error) {
	b, err := g.read(controller, file)
	if err != nil {
		return 0, err
	}
	return parseLimit(string(b), controller+" "+file)
}

// Unlimited is the value of a limit that is not set.
const Unlimited = ^uint64(0)

func parseLimit(s, what string) (uint64, error) {
	s = strings.TrimSpace(s)
	if s == "max" {
		return Unlimited, nil
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("parse %s: %w", what, err)
	}
	// PAGE_COUNTER_MAX in bytes: 2^63 rounded down to a page of up to 64 KiB.
	if n >= 1<<63-1<<16 {
		return Unlimited, nil
	}
	return n, nil
}

// optional makes the absence of a file no error: the value stays as it is.
func optional(err error) error {
	if errors.Is(err, errAbsent) {
		return nil
	}
	return err
}

// keyed calls f for each line of the form "key value" (flat keyed files, also
// memory.stat and oom_control of v1). Other lines are skipped.
func keyed(b []byte, f func(key string, value uint64)) {
	for line := range strings.Lines(string(b)) {
		key, value, ok := strings.Cut(strings.TrimSpace(line), " ")
		if !ok {
			continue
		}
		if n, err := strconv.ParseUint(value, 10, 64); err == nil {
			f(key, n)
		}
	}
}
