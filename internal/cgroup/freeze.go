package cgroup

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"

	"noded.dev/noded/internal/kind"
)

// Freeze stops every process of the cgroup and below, and returns when all of
// them have stopped. If they do not before ctx ends (a process waits in the
// kernel for a device or a file server), they are thawed again. An unknown
// cgroup is of kind NotFound, a kernel without a freezer Precondition.
func (h *Host) Freeze(ctx context.Context, dir string) error {
	f, err := h.freezerOf(dir)
	if err != nil {
		return fmt.Errorf("freeze cgroup %s: %w", dir, err)
	}
	if err := writeFile(filepath.Join(f.dir, f.file), f.on); err != nil {
		if gone(err) {
			err = kind.Wrap(kind.NotFound, err)
		}
		return fmt.Errorf("freeze cgroup %s: %w", dir, err)
	}
	if err := f.await(ctx); err != nil {
		f.set(f.off)
		return fmt.Errorf("freeze cgroup %s: not all of its processes stop: %w", dir, err)
	}
	return nil
}

// Thaw lets the processes of the cgroup and below go on. An unknown cgroup is nil.
func (h *Host) Thaw(dir string) error {
	f, err := h.freezerOf(dir)
	if err != nil {
		return fmt.Errorf("thaw cgroup %s: %w", dir, err)
	}
	if err := writeFile(filepath.Join(f.dir, f.file), f.off); err != nil && !gone(err) {
		return fmt.Errorf("thaw cgroup %s: %w", dir, err)
	}
	return nil
}

func (h *Host) freezerOf(dir string) (*freezer, error) {
	dir, err := checkDir(dir)
	if err != nil {
		return nil, err
	}
	root, v2 := h.controller("freezer")
	switch {
	case root == "":
		return nil, kind.Errorf(kind.Precondition, "this kernel has no freezer")
	case v2:
		return &freezer{dir: filepath.Join(root, dir), file: "cgroup.freeze", on: "1", off: "0"}, nil
	}
	return &freezer{dir: filepath.Join(root, dir), file: "freezer.state", on: "FROZEN", off: "THAWED"}, nil
}

// await looks until all is frozen. The v1 freezer has no event, and reading
// its state is what completes the change (cgroup-v1/freezer-subsystem.rst).
func (f *freezer) await(ctx context.Context) error {
	file, frozen := "freezer.state", []byte("FROZEN")
	if f.file == "cgroup.freeze" {
		file, frozen = "cgroup.events", []byte("frozen 1")
	}
	for wait := newBackoff(); ; {
		b, err := os.ReadFile(filepath.Join(f.dir, file))
		if err != nil {
			return err
		}
		if bytes.Contains(b, frozen) {
			return nil
		}
		if err := wait.sleep(ctx); err != nil {
			return err
		}
	}
}
