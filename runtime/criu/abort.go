package criu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"noded.dev/noded/internal/kind"
)

// A dump that is killed leaves its victims with criu's code in them, which
// then ends them. It has to fail by itself instead: criu takes its code out and
// lets the processes go when it cannot write its images. So the limit of a
// file's size is lowered to nothing under it; the signal that comes with that
// must have been blocked when it was started (see BlockSignal).

// BlockSignal blocks the signal of the limit in the calling thread, which must
// be locked, and its children; restore undoes it.
func BlockSignal() (restore func(), err error) {
	var set, before unix.Sigset_t
	set.Val[(unix.SIGXFSZ-1)/64] |= 1 << ((unix.SIGXFSZ - 1) % 64)
	if err := unix.PthreadSigmask(unix.SIG_BLOCK, &set, &before); err != nil {
		return nil, fmt.Errorf("block SIGXFSZ: %w", err)
	}
	return func() { unix.PthreadSigmask(unix.SIG_SETMASK, &before, nil) }, nil
}

// Abort makes every criu that writes into a folder below dir give up.
func Abort(dir string) error {
	var errs []error
	for _, pid := range writers(dir) {
		err := unix.Prlimit(pid, unix.RLIMIT_FSIZE, &unix.Rlimit{}, nil)
		if err != nil && err != unix.ESRCH {
			errs = append(errs, fmt.Errorf("limit criu %d: %w", pid, err))
		}
	}
	return errors.Join(errs...)
}

// Patience is how long a criu may take to give up before it is killed.
const Patience = 15 * time.Second

// AwaitEnd makes every criu that writes below dir give up and waits until
// there is none: what it has frozen is its own until then. One that does not
// within Patience is killed, which is an error: its victims may not survive.
func AwaitEnd(ctx context.Context, dir string) error {
	var killed error
	for begin := time.Now(); ; {
		pids := writers(dir)
		if len(pids) == 0 {
			return killed
		}
		if err := Abort(dir); err != nil {
			return err
		}
		if time.Since(begin) > Patience {
			for _, pid := range pids {
				unix.Kill(pid, unix.SIGKILL)
			}
			killed = kind.Errorf(kind.Internal, "criu did not give up in %v and was killed; the container may be damaged", Patience)
		}
		select { // it is nobody's child here, and no pidfd says when it lets go
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return kind.Errorf(kind.Deadline, "criu in %s does not end: %w", dir, ctx.Err())
		}
	}
}

// writers are the criu processes that hold a folder or file below dir open.
func writers(dir string) []int {
	dir, err := filepath.EvalSymlinks(dir) // as /proc shows it
	if err != nil {
		return nil // there is no such folder
	}
	names, err := filepath.Glob("/proc/[0-9]*/comm")
	if err != nil {
		return nil
	}
	var pids []int
	for _, name := range names {
		comm, err := os.ReadFile(name)
		if err != nil || string(bytes.TrimSpace(comm)) != "criu" {
			continue
		}
		if holds(filepath.Dir(name), dir) {
			if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name))); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

func holds(proc, dir string) bool {
	fds, err := os.ReadDir(filepath.Join(proc, "fd"))
	if err != nil {
		return false
	}
	for _, fd := range fds {
		target, err := os.Readlink(filepath.Join(proc, "fd", fd.Name()))
		if err == nil && (target == dir || strings.HasPrefix(target, dir+"/")) {
			return true
		}
	}
	return false
}
