package runtime

import (
	"context"
	"os"
	"os/exec"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"noded.dev/noded/runtime/pidfd"
)

// shims are those that this process has started and that live: they, too, are
// children with a session of their own.
type shims struct {
	pids    map[int]bool
	ended   chan struct{}    // has an element when one, or an orphan, has ended and been waited for
	orphans map[Process]bool // their children that are waited for
}

// startChild starts a shim and waits for its end in the background, for as long
// as it lives: it may outlive this process.
func (r *Runtime) startChild(cmd *exec.Cmd) error {
	r.mu.Lock()
	defer r.mu.Unlock() // collect must not see a child whose pid is not noted
	if err := cmd.Start(); err != nil {
		return err
	}
	pid := cmd.Process.Pid
	r.shims.pids[pid] = true
	go func() {
		cmd.Wait()
		r.mu.Lock()
		delete(r.shims.pids, pid)
		r.mu.Unlock()
		r.lookForOrphans()
	}()
	return nil
}

// lookForOrphans makes collectOrphans look (again). The children of an orphan
// are given to this process when that ends, and not before.
func (r *Runtime) lookForOrphans() {
	select {
	case r.shims.ended <- struct{}{}:
	default:
	}
}

// collectOrphans waits for the children of shims that died as this process's
// children: execs, what containers in the host's pid namespace have left
// behind, and what an OCI runtime was at. The kernel keeps an ended process
// until its parent asks, and with it the pid namespace that it is in.
func (r *Runtime) collectOrphans(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.shims.ended: // only now are all of its children given away
		}
		all, err := pidfd.All()
		if err != nil {
			r.log.WithError(err).Warn("cannot look for children of the shim that died")
			continue
		}
		for _, p := range all {
			if r.takeOrphan(p) {
				r.work.Go(func() { r.collect(ctx, p) })
			}
		}
	}
}

// takeOrphan tells a shim's child from this process's own, which are in its
// session: the shim makes a session, and what it starts is in that or in one
// of its own. It is true once for each.
func (r *Runtime) takeOrphan(p pidfd.Process) bool {
	session, err := unix.Getsid(0)
	if err != nil || p.Parent != os.Getpid() || p.Session == session {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	key := Process{Pid: p.Pid, StartTime: p.Start}
	if r.shims.pids[p.Pid] || r.shims.orphans[key] {
		return false
	}
	r.shims.orphans[key] = true
	return true
}

// collect waits for one orphan and collects its status, which is recorded if it
// is a container's first process.
func (r *Runtime) collect(ctx context.Context, p pidfd.Process) {
	key := Process{Pid: p.Pid, StartTime: p.Start}
	defer func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.shims.orphans, key)
	}()
	f, err := pidfd.OpenProcess(p.Pid, p.Start)
	if err != nil {
		return
	}
	defer f.Close()
	stop := context.AfterFunc(ctx, func() { f.Close() })
	defer stop()
	if pidfd.Wait(f) != nil {
		return // this process ends
	}
	for {
		states, err := r.Containers(ctx)
		if err == nil {
			if i := slices.IndexFunc(states, func(s State) bool { return s.Process == key }); i >= 0 {
				r.reapOrphan(states[i].ID, f)
			} else {
				pidfd.Reap(f)
			}
			r.lookForOrphans()
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(maxBackoff): // there is no shim; the supervisor has told
		}
	}
}
