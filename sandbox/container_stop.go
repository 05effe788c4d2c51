package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"noded.dev/noded/internal/kind"
	"noded.dev/noded/internal/steps"
	"noded.dev/noded/runtime"
)

// maxGrace bounds StopContainer's timeout; beyond it the request is a mistake
// (and seconds would overflow a time.Duration).
const maxGrace = 10 * 365 * 24 * time.Hour

// killPatience is how long a SIGKILLed container may take to be gone before
// the stop gives up and says so; a process in D state outlives every signal.
const killPatience = 30 * time.Second

// StopContainer asks the container to end with its stop signal and kills its
// whole cgroup after grace. Unknown ids are no error. Calls may overlap: the
// shortest grace counts.
func (m *Manager) StopContainer(ctx context.Context, id string, grace time.Duration) error {
	if grace < 0 || grace > maxGrace {
		return kind.Errorf(kind.Invalid, "timeout is %v, between 0 and %v is possible", grace, maxGrace)
	}
	c, err := m.container(id)
	if kind.Is(err, kind.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return c.stop(ctx, grace)
}

func (c *Container) stop(ctx context.Context, grace time.Duration) error {
	if c.view.Load().state == stateCreating {
		// Its process may not be in its cgroup yet; the making has limits.
		if err := acquire(ctx, c.busy); err != nil {
			return fmt.Errorf("stop %s: it is being created: %w", c.name(), err)
		}
		<-c.busy
	}
	if !c.view.Load().state.alive() {
		return nil
	}
	if grace > 0 && c.view.Load().state == stateRunning {
		ended, err := c.terminate(ctx, grace)
		if err != nil {
			return err
		}
		if ended {
			// Without a PID namespace of its own, what the init started lives on.
			return c.m.cgroups.Kill(ctx, c.m.cgroups.Dir(c.record().Cgroup))
		}
	}
	if err := c.kill(ctx); err != nil {
		return fmt.Errorf("stop %s: %w", c.name(), err)
	}
	return nil
}

// terminate sends the stop signal and waits for the end, as long as grace.
func (c *Container) terminate(ctx context.Context, grace time.Duration) (ended bool, err error) {
	// Once: many programs take a second signal for impatience and end at once.
	if c.asked.CompareAndSwap(false, true) {
		if err := c.m.runtime.Signal(ctx, c.id, c.record().StopSignal); err != nil && !kind.Is(err, kind.NotFound) {
			c.asked.Store(false)
			c.log.WithError(err).Warn("stop signal was not delivered, killing")
			return false, nil
		}
	}
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-c.ended:
		return true, nil
	case <-timer.C:
		return false, nil
	case <-ctx.Done():
		return false, fmt.Errorf("stop %s: waiting for it to end: %w", c.name(), ctx.Err())
	}
}

// kill kills the container's whole cgroup and waits until its exit is known.
func (c *Container) kill(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, killPatience)
	defer cancel()
	rec := c.record()
	switch {
	case rec.State == stateExited:
		return nil
	case rec.StartError != nil:
		c.refuse(*rec.StartError) // there is no process
		return nil
	case rec.Restore && rec.State == stateCreated: // nor here
		c.finish(runtime.Exit{ID: c.id, Code: 128 + int(unix.SIGKILL), At: time.Now()}, reasonError, "it was stopped before it was restored")
		return nil
	}
	c.noteOOMKills()
	// The init first and by itself: a privileged container may have moved it
	// out of its cgroup.
	if err := c.m.runtime.Signal(ctx, c.id, int(unix.SIGKILL)); err != nil && !kind.Is(err, kind.NotFound) {
		c.log.WithError(err).Warn("SIGKILL was not delivered to the init, killing its cgroup")
	}
	if err := c.m.cgroups.Kill(ctx, c.m.cgroups.Dir(rec.Cgroup)); err != nil {
		return err
	}
	select {
	case <-c.ended:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for the exit of pid %d after SIGKILL: %w", rec.Process.Pid, ctx.Err())
	}
}

// RemoveContainer destroys a container, whatever its state. Unknown ids are no
// error.
func (m *Manager) RemoveContainer(ctx context.Context, id string) error {
	c, err := m.container(id)
	if kind.Is(err, kind.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = m.flights.do(ctx, "remove "+c.id, destroyLimit, func(ctx context.Context, _ func(string)) (string, error) {
		return "", c.remove(ctx)
	})
	return err
}

func (c *Container) remove(ctx context.Context) error {
	if c.record().State.alive() {
		if err := c.stop(ctx, 0); err != nil {
			return err
		}
	}
	if err := acquire(ctx, c.busy); err != nil {
		return fmt.Errorf("remove %s: an operation on it is under way: %w", c.name(), err)
	}
	defer func() { <-c.busy }()
	if !c.isKnown() {
		return nil // somebody else was first
	}
	return c.destroy(ctx)
}

// destroy undoes all that was ever done for the container; the record goes
// last. It needs c.busy and can be repeated.
func (c *Container) destroy(ctx context.Context) error {
	was := c.record()
	if _, err := c.on(eventRemove, nil); err != nil && !errors.Is(err, os.ErrNotExist) {
		c.log.WithError(err).Warn("removing without a saved record")
	}
	c.stats.close()
	err := steps.RunAll(ctx, "remove container", nil,
		steps.Step{Name: "release runtime", Do: c.releaseRuntime},
		steps.Step{Name: "unmount root filesystem", Do: func(ctx context.Context) error { return c.m.images.Unmount(ctx, c.id) }},
	)
	if err != nil {
		if was.State.listed() {
			c.relist(was.State)
		}
		return fmt.Errorf("remove %s: %w", c.name(), err)
	}
	if err := os.RemoveAll(c.paths.root); err != nil {
		return fmt.Errorf("remove record of %s: %w", c.name(), err)
	}
	c.forget(was.State.listed())
	c.mu.Lock()
	c.markEnded()
	c.mu.Unlock()
	return nil
}

// relist shows a container again whose removal failed, for the kubelet to
// retry. One that ended on the way, or that the runtime holds no more, is
// exited: its end will not be told again.
func (c *Container) relist(state containerState) {
	err := c.note(func(r *containerRecord) {
		r.State = state
		if r.RuntimeGone && r.FinishedAt.IsZero() {
			r.FinishedAt, r.ExitCode, r.Reason = time.Now(), 128+int(unix.SIGKILL), reasonError
			c.markEnded()
		}
		if !r.FinishedAt.IsZero() {
			r.State = stateExited
		}
	})
	if err != nil {
		c.log.WithError(err).Warn("record is not saved")
	}
}
