package cgroup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Folders lists the existing folder of the cgroup in every hierarchy, the v2
// tree first.
func (h *Host) Folders(dir string) []string {
	var list []string
	for _, root := range h.roots() {
		p := filepath.Join(root, clean(dir))
		if st, err := os.Stat(p); err == nil && st.IsDir() {
			list = append(list, p)
		}
	}
	return list
}

// V1Folders lists the folder that the cgroup would have in every v1 hierarchy,
// whether it exists or not.
func (h *Host) V1Folders(dir string) []string {
	dir = clean(dir)
	list := make([]string, len(h.v1))
	for i, t := range h.v1 {
		list[i] = filepath.Join(t.dir, dir)
	}
	return list
}

// Unified gives the cgroup's folder in the v2 tree; "" if the host has none.
func (h *Host) Unified(dir string) string {
	if h.unified == "" {
		return ""
	}
	return filepath.Join(h.unified, clean(dir))
}

// Make creates the cgroup and its ancestors in every hierarchy, usable by
// processes at once. It is idempotent.
func (h *Host) Make(dir string) error {
	dir, err := checkDir(dir)
	if err != nil {
		return fmt.Errorf("make cgroup: %w", err)
	}
	for _, root := range h.roots() {
		if err := h.makeIn(root, dir); err != nil {
			return fmt.Errorf("make cgroup: %w", err)
		}
	}
	return nil
}

func (h *Host) makeIn(root, dir string) error {
	cpuset, v2 := h.controller("cpuset")
	parent := root
	for name := range strings.SplitSeq(dir, "/") {
		if h.mode == V2 {
			enableControllers(parent)
		}
		p := filepath.Join(parent, name)
		if err := os.Mkdir(p, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		if root == cpuset && !v2 {
			if err := inheritCpuset(parent, p); err != nil {
				return err
			}
		}
		parent = p
	}
	return nil
}

// enableControllers gives the children of a v2 cgroup all controllers that it
// has. One that cannot be enabled (it is in use by processes of this cgroup,
// or only works in the root) is left out: setting a limit that needs it fails
// later with the name of the missing file.
func enableControllers(dir string) {
	b, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return
	}
	for _, c := range strings.Fields(string(b)) {
		_ = os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+c), 0)
	}
}

// inheritCpuset copies the parent's cpus and memory nodes: a new v1 cpuset has
// none, and no process can enter it so (cpuset(7), "Not assigning ... ENOSPC").
func inheritCpuset(parent, child string) error {
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		have, err := os.ReadFile(filepath.Join(child, file))
		if err != nil {
			return err
		}
		if len(bytes.TrimSpace(have)) > 0 {
			continue
		}
		b, err := os.ReadFile(filepath.Join(parent, file))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(child, file), bytes.TrimSpace(b), 0); err != nil {
			return err
		}
	}
	return nil
}

// removeLimit bounds Remove where the caller's context has no deadline.
const removeLimit = 10 * time.Second

// Remove deletes the cgroup with everything below it in every hierarchy. It is
// nil if the cgroup is gone already. It does not kill: a cgroup that still has
// processes is an error once ctx or ten seconds end.
func (h *Host) Remove(ctx context.Context, dir string) error {
	dir, err := checkDir(dir)
	if err != nil {
		return fmt.Errorf("remove cgroup: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, removeLimit)
	defer cancel()
	var errs []error
	for _, root := range h.roots() {
		if err := removeTree(ctx, filepath.Join(root, dir)); err != nil {
			errs = append(errs, fmt.Errorf("remove cgroup: %w", err))
		}
	}
	return errors.Join(errs...)
}

// removeTree deletes one folder bottom-up. The kernel answers EBUSY for a
// moment after the last process has exited, because a task leaves its cgroup
// only when it is released; nothing tells when (cgroup.events counts
// differently), so this is tried again with growing pauses.
func removeTree(ctx context.Context, dir string) error {
	wait := newBackoff()
	for {
		err := removeOnce(dir)
		if !errors.Is(err, unix.EBUSY) {
			return err
		}
		if wait.sleep(ctx) != nil {
			return fmt.Errorf("%w after %v", err, wait.waited.Round(time.Millisecond))
		}
	}
}

func removeOnce(dir string) error {
	// Optimistic: mostly there are no children.
	err := unix.Rmdir(dir)
	if err == nil || err == unix.ENOENT {
		return nil
	}
	if err != unix.EBUSY {
		return &fs.PathError{Op: "rmdir", Path: dir, Err: err}
	}
	dirs, err := subfolders(dir)
	if err != nil {
		return err
	}
	for _, d := range slices.Backward(dirs) {
		if err := unix.Rmdir(d); err != nil && err != unix.ENOENT {
			return &fs.PathError{Op: "rmdir", Path: d, Err: err}
		}
	}
	return nil
}

// subfolders lists dir and all folders below it, parents before children.
// None is no error: cgroups vanish while they are walked.
func subfolders(dir string) ([]string, error) {
	var list []string
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
				return nil
			}
			return err
		}
		if d.IsDir() {
			list = append(list, p)
		}
		return nil
	})
	return list, err
}

// Pids lists all processes in the cgroup and below it, each once, in every
// hierarchy that holds processes apart from the others. Threads of a process
// may sit elsewhere.
func (h *Host) Pids(dir string) ([]int, error) {
	dir, err := checkDir(dir)
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var all []int
	for _, root := range h.trackers() {
		pids, err := pidsBelow(filepath.Join(root, dir))
		if err != nil {
			return nil, fmt.Errorf("list processes: %w", err)
		}
		all = append(all, pids...)
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}

// trackers are the hierarchies whose membership counts: the v2 tree and one v1
// tree. A runtime puts a process into all v1 trees or none, but some runtimes
// leave the v2 tree of a hybrid host out.
func (h *Host) trackers() []string {
	var list []string
	if h.unified != "" {
		list = append(list, h.unified)
	}
	if d := h.v1Tracker(); d != "" {
		list = append(list, d)
	}
	return list
}

// v1Tracker prefers the freezer, which killing needs.
func (h *Host) v1Tracker() string {
	for _, c := range []string{"freezer", "pids", "memory", "cpu", "name=systemd"} {
		if d, v2 := h.controller(c); d != "" && !v2 {
			return d
		}
	}
	return ""
}

func pidsBelow(dir string) ([]int, error) {
	dirs, err := subfolders(dir)
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, d := range dirs {
		b, err := os.ReadFile(filepath.Join(d, "cgroup.procs"))
		switch {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENODEV):
			continue // removed meanwhile
		case errors.Is(err, unix.EOPNOTSUPP):
			continue // a threaded v2 cgroup: its processes are listed in the domain above
		case err != nil:
			return nil, err
		}
		for f := range strings.FieldsSeq(string(b)) {
			// 0 is a process of a pid namespace that is not ours to see.
			if pid, err := strconv.Atoi(f); err == nil && pid > 0 {
				pids = append(pids, pid)
			}
		}
	}
	return pids, nil
}

// backoff pauses for facts that the kernel does not announce.
type backoff struct {
	next   time.Duration
	waited time.Duration
}

func newBackoff() *backoff { return &backoff{next: time.Millisecond} }

// sleep pauses 1 ms, then 2, up to 50; its error is the context's.
func (b *backoff) sleep(ctx context.Context) error {
	t := time.NewTimer(b.next)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
	}
	b.waited += b.next
	b.next = min(2*b.next, 50*time.Millisecond)
	return nil
}
