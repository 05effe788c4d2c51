package sandbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"noded.dev/noded/internal/kind"
	"noded.dev/noded/internal/steps"
	"noded.dev/noded/runtime"
)

// Reasons that the kubelet and its users look for in a container's status.
const (
	reasonCompleted  = "Completed"
	reasonError      = "Error"
	reasonOOMKilled  = "OOMKilled"
	reasonStartError = "StartError"
	reasonLost       = "ContainerStatusUnknown"
	reasonNodeBoot   = "NodeRestart"
)

// StartContainer lets a created container execute its command.
func (m *Manager) StartContainer(ctx context.Context, id string) error {
	c, err := m.container(id)
	if err != nil {
		return err
	}
	_, err = m.flights.do(ctx, "start "+c.id, startLimit, func(ctx context.Context, at func(string)) (string, error) {
		if err := acquire(ctx, c.busy); err != nil {
			return "", err
		}
		defer func() { <-c.busy }()
		return "", c.start(ctx, at)
	})
	return err
}

func (c *Container) start(ctx context.Context, at func(string)) error {
	// The time is taken before the process can have ended.
	if _, err := c.on(eventStart, func(r *containerRecord) { r.StartedAt = time.Now() }); err != nil {
		return err
	}
	if refused := c.record().StartError; refused != nil {
		c.refuse(*refused)
		return kind.Errorf(kind.Aborted, "start %s: %s", c.name(), refused.Message)
	}
	err := steps.Run(ctx, "start container", at,
		steps.Step{Name: "start", Do: c.startProcess},
	)
	if err != nil {
		return fmt.Errorf("start %s: %w", c.name(), errors.Join(err, c.startFailed(ctx, err)))
	}
	return c.started()
}

// startProcess may be repeated.
func (c *Container) startProcess(ctx context.Context) error {
	if c.record().Restore {
		return c.restoreProcess(ctx)
	}
	return c.m.runtime.Start(ctx, c.id)
}

func (c *Container) started() error {
	figures := c.figures(c.requested(), c.record().Process.Pid)
	moved, err := c.on(eventStarted, func(r *containerRecord) {
		if figures != nil {
			r.Figures = figures
		}
	})
	if moved {
		c.log.Info("container is running")
	}
	if err != nil {
		return fmt.Errorf("start %s: %w", c.name(), err)
	}
	return nil
}

// startFailed ends a container whose start did not succeed: a command that
// cannot be executed never can, and one that hangs must not run unseen.
func (c *Container) startFailed(ctx context.Context, cause error) error {
	if errors.Is(ctx.Err(), context.Canceled) {
		return nil // noded is stopping, which ends no container: the next start settles it
	}
	var start *runtime.StartError
	if errors.As(cause, &start) {
		c.refuse(startError{Code: start.Code, Message: start.Error()})
		return nil
	}
	clean, cancel := steps.CleanUp(ctx, destroyLimit)
	defer cancel()
	return c.kill(clean)
}

// refuse ends a container whose command cannot be executed, in the form in
// which kubelets show it: exited, StartError, 126 to 128.
func (c *Container) refuse(why startError) {
	c.finish(runtime.Exit{ID: c.id, Code: why.Code, At: time.Now()}, reasonStartError, why.Message)
}

// exited notes how the container's process ended. It may be told twice, and
// before the creation of the container is written down.
func (c *Container) exited(exit runtime.Exit) {
	c.mu.Lock()
	if c.rec.State == stateCreating {
		c.early = &exit
		c.mu.Unlock()
		return
	}
	c.mu.Unlock()
	reason, message := c.explain(exit)
	c.finish(exit, reason, message)
}

func (c *Container) finish(exit runtime.Exit, reason, message string) {
	if reason != reasonStartError && c.view.Load().state == stateStarting {
		// It ended before its start was written down. That it ran is told first.
		if err := c.started(); err != nil {
			c.log.WithError(err).Warn("start is not noted")
		}
	}
	moved, err := c.on(eventExit, func(r *containerRecord) {
		r.FinishedAt, r.ExitCode, r.Reason, r.Message = exit.At, exit.Code, reason, message
		if reason == reasonStartError {
			r.StartedAt = time.Time{} // it never ran
		}
	})
	if !moved {
		if err != nil {
			c.log.WithError(err).Warn("exit is not noted")
		}
		return
	}
	c.stats.close()
	c.log.WithFields(map[string]any{"exit_code": exit.Code, "reason": reason}).Info("container has exited")
	if err != nil {
		// The shim's copy must stay: without it a crash now would lose the exit.
		c.log.WithError(err).Warn("exit is not saved, the container is released when it is removed or noded starts again")
		return
	}
	c.letGo()
}

// letGo begins to free what the runtime, the shim and the kernel hold of a
// container that has exited, so that dead containers cost only their record
// and files.
func (c *Container) letGo() {
	c.m.flights.begin("release "+c.id, func(ctx context.Context) {
		if err := exclusively(ctx, c.busy, c.releaseRuntime); err != nil {
			c.log.WithError(err).Warn("exited container is not released yet, removing it will")
		}
	})
}

// releaseRuntime makes the OCI runtime and the shim forget the container and
// ends whatever is left in its cgroup. It needs c.busy and can be repeated.
func (c *Container) releaseRuntime(ctx context.Context) error {
	rec := c.record()
	if rec.RuntimeGone || rec.Cgroup == "" {
		return nil
	}
	dir := c.m.cgroups.Dir(rec.Cgroup)
	return steps.Run(ctx, "release container", nil,
		// With a shared PID namespace, what the container's init leaves behind
		// lives on in its cgroup.
		steps.Step{Name: "kill cgroup", Do: func(ctx context.Context) error { return c.m.cgroups.Kill(ctx, dir) }},
		steps.Step{Name: "delete from runtime", Do: func(ctx context.Context) error { return c.m.runtime.Delete(ctx, c.request()) }},
		steps.Step{Name: "remove cgroup", Do: func(ctx context.Context) error { return c.m.cgroups.Remove(ctx, dir) }},
		steps.Step{Name: "record released", Do: func(context.Context) error {
			return c.note(func(r *containerRecord) { r.RuntimeGone = true })
		}},
	)
}
