package cgroup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"noded.dev/noded/internal/kind"
)

// killLimit bounds Kill where the caller's context has no deadline.
const killLimit = time.Minute

// Kill sends SIGKILL to every process in the cgroup and below it, including
// those that are being forked meanwhile, and returns when none is left. A
// frozen (paused) cgroup is thawed for it. An unknown cgroup is nil. When ctx
// or a minute ends first (a process waits in the kernel for a device or a file
// server), the error is of kind Deadline and names processes that are left.
func (h *Host) Kill(ctx context.Context, dir string) error {
	dir, err := checkDir(dir)
	if err != nil {
		return fmt.Errorf("kill cgroup: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, killLimit)
	defer cancel()
	// On a hybrid host the runtime has put the processes into the v2 tree too,
	// whose cgroup.kill reaches frozen ones only once they are thawed in v1.
	if h.unified != "" {
		if err := h.killUnified(ctx, dir); err != nil {
			return h.killError(dir, err)
		}
	}
	if tree := h.v1Tracker(); tree != "" {
		f := freezer{dir: filepath.Join(tree, dir), file: "freezer.state", on: "FROZEN", off: "THAWED"}
		if err := f.kill(ctx); err != nil {
			return h.killError(dir, err)
		}
	}
	return nil
}

func (h *Host) killError(dir string, err error) error {
	if ctxErr := context.DeadlineExceeded; errors.Is(err, ctxErr) || errors.Is(err, context.Canceled) {
		pids, _ := h.Pids(dir)
		return kind.Errorf(kind.Deadline, "kill cgroup %s: %d processes left %v: %w", dir, len(pids), pids[:min(len(pids), 5)], err)
	}
	return fmt.Errorf("kill cgroup %s: %w", dir, err)
}

// killUnified empties the cgroup in the v2 tree.
func (h *Host) killUnified(ctx context.Context, dir string) error {
	p := filepath.Join(h.unified, dir)
	events, err := os.Open(filepath.Join(p, "cgroup.events"))
	if gone(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer events.Close()
	err = writeFile(filepath.Join(p, "cgroup.kill"), "1") // since Linux 5.14
	if errors.Is(err, fs.ErrNotExist) {
		f := freezer{dir: p, file: "cgroup.freeze", on: "1", off: "0"}
		return f.kill(ctx)
	}
	if err != nil && !gone(err) {
		return err
	}
	if freeze := h.v1Freezer(); freeze != "" {
		(&freezer{dir: filepath.Join(freeze, dir), file: "freezer.state"}).set("THAWED")
	}
	return waitEmpty(ctx, events)
}

func (h *Host) v1Freezer() string {
	d, v2 := h.controller("freezer")
	if v2 {
		return ""
	}
	return d
}

// waitEmpty waits for "populated 0" of cgroup.events. The kernel announces
// each change as a priority event of poll(2) (cgroup-v2.rst, "Un-populated
// Notification").
func waitEmpty(ctx context.Context, events *os.File) error {
	buf := make([]byte, 256)
	for {
		n, err := unix.Pread(int(events.Fd()), buf, 0)
		if err == unix.ENODEV {
			return nil // removed
		}
		if err != nil {
			return err
		}
		if !bytes.Contains(buf[:n], []byte("populated 1")) {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		// Woken four times a second to look at ctx: one killer in flight is
		// cheaper so than with a second descriptor to wake it.
		fds := []unix.PollFd{{Fd: int32(events.Fd()), Events: unix.POLLPRI}}
		if _, err := unix.Poll(fds, 250); err != nil && err != unix.EINTR {
			return err
		}
	}
}

// freezer kills without cgroup.kill. Frozen processes cannot fork, so that one
// pass over them sees all of them.
type freezer struct {
	dir     string
	file    string // freezer.state or cgroup.freeze
	on, off string
}

func (f *freezer) kill(ctx context.Context) error {
	wait := newBackoff()
	for {
		pids, err := pidsBelow(f.dir)
		if err != nil || len(pids) == 0 {
			return err
		}
		if err := f.round(ctx); err != nil {
			return err
		}
		// v1 has no event for an empty cgroup (release_agent runs a program of
		// the host), hence the pause.
		if err := wait.sleep(ctx); err != nil {
			return err
		}
	}
}

// round freezes, kills all and thaws. Where freezing does not finish, because
// a process is in the kernel uninterruptibly, killing goes on without it: the
// next round meets those that were forked meanwhile.
func (f *freezer) round(ctx context.Context) error {
	f.set(f.on)
	defer f.set(f.off) // v1 delivers the signal only then
	f.waitFrozen(ctx)
	pids, err := pidsBelow(f.dir)
	if err != nil {
		return err
	}
	for _, pid := range pids {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && err != unix.ESRCH {
			return fmt.Errorf("kill process %d: %w", pid, err)
		}
	}
	return nil
}

// waitFrozen gives the v1 freezer up to 20 ms; it has no event, and reading
// its state is what completes the change (cgroup-v1/freezer-subsystem.rst).
func (f *freezer) waitFrozen(ctx context.Context) {
	if f.file != "freezer.state" {
		return // v2 kills frozen and freezing processes alike
	}
	wait := newBackoff()
	for wait.waited < 20*time.Millisecond {
		b, err := os.ReadFile(filepath.Join(f.dir, f.file))
		if err != nil || string(bytes.TrimSpace(b)) == f.on {
			return
		}
		if wait.sleep(ctx) != nil {
			return
		}
	}
}

// set writes the state to the cgroup; thawing reaches below it too, where a
// container may have frozen a cgroup of its own. A host without the freezer
// controller has no such file: killing then repeats until nothing is left.
func (f *freezer) set(state string) {
	dirs := []string{f.dir}
	if state != f.on {
		if below, err := subfolders(f.dir); err == nil {
			dirs = below
		}
	}
	for _, d := range dirs {
		_ = writeFile(filepath.Join(d, f.file), state)
	}
}

// gone reports that a cgroup does not exist, or ceased to under a descriptor.
func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV)
}

// writeFile writes without creating: a missing file must stay an error where
// the folder is an ordinary one. It goes around os.File, which takes EAGAIN
// (memory.reclaim: less could be reclaimed) for a call to wait until the file
// can be written, and then waits for ever.
func writeFile(name, value string) error {
	fd, err := unix.Open(name, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: name, Err: err}
	}
	defer unix.Close(fd)
	for {
		_, err := unix.Write(fd, []byte(value))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return &fs.PathError{Op: "write", Path: name, Err: err}
		}
		return nil
	}
}
