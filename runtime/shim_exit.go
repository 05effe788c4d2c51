package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"noded.dev/noded/internal/atomicfile"
	"noded.dev/noded/internal/kind"
	"noded.dev/noded/internal/steps"
	"noded.dev/noded/runtime/containerlog"
	"noded.dev/noded/runtime/pidfd"
)

const (
	cleanUpLimit = 30 * time.Second

	// drainLimit bounds how long an exit waits for output that something the
	// container left behind goes on producing, or for a log on a stuck disk.
	drainLimit = 2 * time.Second

	// statusLimit bounds the wait for another parent (the daemon, or pid 1) to
	// collect a status, before which the kernel does not give it to us.
	statusLimit = 15 * time.Second
)

func cleanUp(ctx context.Context) (context.Context, context.CancelFunc) {
	return steps.CleanUp(ctx, cleanUpLimit)
}

// run starts what goes on for as long as the container is held: its streams
// and the wait for its end.
func (c *container) run() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, st := range c.streams {
		c.running.Go(func() {
			if err := st.Run(); err != nil {
				c.s.log.WithError(err).WithField("container", c.id).Error("container output stopped")
			}
		})
	}
	c.running.Go(c.awaitExit)
}

func (c *container) awaitExit() {
	e, err := loadExit(c.s.dir, c.id)
	if err != nil {
		if e, err = c.collect(); err != nil {
			return // deleted
		}
	}
	if e, err = saveExit(c.s.dir, e); err != nil {
		c.s.log.WithError(err).WithField("container", c.id).Error("exit is kept in memory only")
	}
	c.reap()
	c.drain()
	c.mu.Lock()
	c.exit = &e
	c.mu.Unlock()
	close(c.exited)
	c.s.tellExit(e)
}

// reap lets the kernel forget the process; not before the record is written.
func (c *container) reap() {
	c.mu.Lock()
	f := c.files[filePidfd]
	c.mu.Unlock()
	if f != nil {
		pidfd.Reap(f) // it may be another's child
	}
	c.s.reaper.forget(c.record.Process.Pid)
}

// collect waits for the process and its status.
func (c *container) collect() (Exit, error) {
	e := Exit{ID: c.id, Code: lostCode, Lost: true}
	c.mu.Lock()
	f := c.files[filePidfd]
	c.mu.Unlock()
	if f == nil { // it ended while nobody held it
		e.At = time.Now()
		return e, nil
	}
	if err := pidfd.Wait(f); err != nil {
		return e, err
	}
	e.At = time.Now()
	for until := time.Now().Add(statusLimit); ; {
		code, err := pidfd.Code(f)
		if err == nil {
			e.Code, e.Lost = code, false
			return e, nil
		}
		// The daemon may have been the parent, and written the record.
		if have, loadErr := loadExit(c.s.dir, c.id); loadErr == nil {
			return have, nil
		}
		lost := errors.Is(err, pidfd.ErrLost) && time.Since(e.At) > time.Second
		if lost || time.Now().After(until) || errors.Is(err, os.ErrClosed) {
			return e, nil
		}
		// No event tells that another parent has collected the status.
		time.Sleep(10 * time.Millisecond)
	}
}

func (c *container) drain() {
	ctx, cancel := context.WithTimeout(context.Background(), drainLimit)
	defer cancel()
	c.mu.Lock()
	streams := append([]*containerlog.Stream(nil), c.streams...)
	c.mu.Unlock()
	for _, st := range streams {
		st.Drain(ctx) // the limit is not an error: what is there later is logged later
	}
}

// delete is repeatable and works without the shim knowing the container.
func (s *shim) delete(ctx context.Context, req *CreateRequest) error {
	if req == nil {
		return kind.Errorf(kind.Invalid, "delete without a request")
	}
	if err := checkID(req.ID); err != nil {
		return err
	}
	c := s.find(req.ID, true)
	if err := c.acquire(ctx); err != nil {
		return err
	}
	defer c.release()
	if c.record.Created {
		req = &c.record.Request // the runtime as it was then
	}
	return c.destroy(ctx, *req)
}

// destroy undoes create at whatever point it is; the exit record goes last.
func (c *container) destroy(ctx context.Context, req CreateRequest) error {
	c.mu.Lock()
	c.deleting = true
	c.mu.Unlock()
	err := steps.RunAll(ctx, "delete container", nil,
		steps.Step{Name: "kill process", Do: func(context.Context) error { return c.kill() }},
		steps.Step{Name: "runtime delete", Do: func(ctx context.Context) error { return c.s.runtimeDelete(ctx, req, c.collected()) }},
	)
	if err != nil {
		c.mu.Lock()
		c.deleting = false
		c.mu.Unlock()
		return err
	}
	c.closeAll()
	select {
	case <-c.gone:
	default:
		close(c.gone)
	}
	c.s.tellDrop(c.id)
	err = removeAll(c.dir)
	if err == nil {
		// With what was left by a writer that was killed.
		path := c.s.dir.exitRecord(c.id)
		err = errors.Join(removeFile(path), atomicfile.RemoveTemps(path))
	}
	if err == nil {
		c.s.forget(c)
	}
	return err
}

// kill ends the init process, so that its status is collected by us and the
// runtime's delete finds nothing to wait for.
func (c *container) kill() error {
	c.mu.Lock()
	f, created := c.files[filePidfd], c.record.Created
	c.mu.Unlock()
	if f == nil {
		return nil
	}
	if err := pidfd.Signal(f, int(unix.SIGKILL)); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill: %w", err)
	}
	if !created {
		return nil // nobody waits for it yet
	}
	select {
	case <-c.exited:
		return nil
	case <-time.After(5 * time.Second):
		return kind.Errorf(kind.Unavailable, "process %d of container %s does not end", c.record.Process.Pid, c.id)
	}
}

// collected reports whether the container's process has ended and nothing is
// left of it.
func (c *container) collected() bool {
	select {
	case <-c.exited:
		return true
	default:
		return false
	}
}

// runtimeDelete removes the runtime's own state. Without any, it is not called.
// With ended, the runtime is not told to kill: runc would wait 100 ms for it.
func (s *shim) runtimeDelete(ctx context.Context, req CreateRequest, ended bool) error {
	if !hasRuntimeState(req) {
		return nil
	}
	logDir := s.dir.container(req.ID)
	if _, err := os.Lstat(logDir); err != nil {
		logDir = s.dir.shim()
	}
	tries := [][]string{{"delete", req.ID}, {"delete", "--force", req.ID}}
	if !ended {
		tries = tries[1:]
	}
	var err error
	for _, args := range tries {
		err = s.reaper.spawn(func() error {
			return s.run(ctx, command{handler: req.Runtime, dir: logDir, args: args})
		})
		if err == nil || !hasRuntimeState(req) {
			return nil
		}
	}
	return err
}

func hasRuntimeState(req CreateRequest) bool {
	_, err := os.Lstat(filepath.Join(req.Runtime.Root, req.ID))
	return !os.IsNotExist(err)
}

// closeAll ends the container's goroutines and gives its descriptors back.
func (c *container) closeAll() {
	c.mu.Lock()
	streams, files, log, entries := c.streams, c.files, c.log, c.record.Entries
	pid := c.record.Process.Pid
	c.streams, c.files, c.log, c.record.Entries = nil, map[string]*os.File{}, nil, nil
	if c.template != nil {
		c.templateEnd.Stop()
		c.template = nil
	}
	started := c.record.Created
	c.mu.Unlock()
	if f := files[filePidfd]; f != nil {
		if !started {
			pidfd.Wait(f)
			pidfd.Reap(f)
		}
		f.Close()
	}
	if pid > 0 {
		c.s.reaper.forget(pid)
	}
	for _, st := range streams {
		if started {
			st.Close()
		}
	}
	c.running.Wait()
	for _, f := range files {
		f.Close() // some are closed with their stream already
	}
	if log != nil {
		log.Close()
	}
	for _, e := range entries {
		c.s.table.Free(e)
	}
}

func removeFile(path string) error {
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("remove %s: %w", filepath.Base(path), err)
	}
	return nil
}
