package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/sirupsen/logrus"

	"noded.dev/noded/internal/kind"
	"noded.dev/noded/internal/namespace"
	"noded.dev/noded/internal/steps"
)

// StopPod ends a pod's containers and gives back its network. Unknown ids are
// no error: the kubelet repeats the call.
func (m *Manager) StopPod(ctx context.Context, id string) error {
	p, err := m.pod(id)
	if kind.Is(err, kind.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = m.flights.do(ctx, "stop pod "+p.id, destroyLimit, func(ctx context.Context, at func(string)) (string, error) {
		return "", p.stopAll(ctx, at)
	})
	return err
}

// RemovePod destroys a pod and its containers, whatever their state.
func (m *Manager) RemovePod(ctx context.Context, id string) error {
	p, err := m.pod(id)
	if kind.Is(err, kind.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = m.flights.do(ctx, "remove pod "+p.id, destroyLimit, func(ctx context.Context, at func(string)) (string, error) {
		if err := acquire(ctx, p.busy); err != nil {
			return "", err
		}
		defer func() { <-p.busy }()
		if !p.isKnown() {
			return "", nil // somebody else was first
		}
		return "", p.destroy(ctx)
	})
	return err
}

func (p *Pod) stopAll(ctx context.Context, at func(string)) error {
	if err := acquire(ctx, p.busy); err != nil {
		return err
	}
	defer func() { <-p.busy }()
	if !p.isKnown() {
		return nil // it was removed meanwhile
	}
	was := p.record().State
	if was != podStopped {
		// From here on no container can be created in it. A full disk must not
		// keep the pod alive, so an unsaved state only costs a second stop.
		if err := p.update(func(r *podRecord) { r.State = podStopped }); err != nil {
			p.log.WithError(err).Warn("stopping without a saved record")
		}
	}
	if err := p.release(ctx, at); err != nil {
		return fmt.Errorf("stop pod %s: %w", p.name(), err)
	}
	if was == podReady {
		p.log.Info("pod is stopped")
	}
	return nil
}

// release ends the processes and frees what is scarce: addresses, namespaces.
// It tries every step and can be repeated.
func (p *Pod) release(ctx context.Context, at func(string)) error {
	return steps.RunAll(ctx, "stop pod", at,
		steps.Step{Name: "stop containers", Do: p.stopContainers},
		steps.Step{Name: "stop init", Do: p.stopInit},
		steps.Step{Name: "disconnect network", Do: p.disconnect},
		steps.Step{Name: "remove namespaces", Do: func(context.Context) error { return namespace.Remove(p.paths.ns) }},
		steps.Step{Name: "unmount shm", Do: func(context.Context) error { return unmountShm(p.paths.shm()) }},
	)
}

// destroy undoes all that was ever done for the pod; the record goes last, so
// that it can be repeated until nothing is left. It needs p.busy.
func (p *Pod) destroy(ctx context.Context) error {
	was := p.record().State
	if err := p.update(func(r *podRecord) { r.State = podRemoving }); err != nil && !errors.Is(err, os.ErrNotExist) {
		p.log.WithError(err).Warn("removing without a saved record")
	}
	p.stats.close()
	err := steps.RunAll(ctx, "remove pod", nil,
		steps.Step{Name: "release", Do: func(ctx context.Context) error { return p.release(ctx, nil) }},
		steps.Step{Name: "remove containers", Do: p.removeContainers},
		steps.Step{Name: "remove cgroup", Do: p.removeCgroup},
		steps.Step{Name: "remove files", Do: func(context.Context) error { return os.RemoveAll(p.paths.state) }},
	)
	if err != nil {
		if was.listed() {
			// Listed again, as stopped: the kubelet sees what it must retry.
			if e := p.update(func(r *podRecord) { r.State = podStopped }); e != nil {
				err = errors.Join(err, e)
			}
		}
		return fmt.Errorf("remove pod %s: %w", p.name(), err)
	}
	if err := os.RemoveAll(p.paths.root); err != nil {
		return fmt.Errorf("remove record of pod %s: %w", p.name(), err)
	}
	p.forget(was.listed())
	return nil
}

func (p *Pod) stopContainers(ctx context.Context) error {
	return each(p.list(), func(c *Container) error { return c.stop(ctx, 0) })
}

func (p *Pod) removeContainers(ctx context.Context) error {
	return each(p.list(), func(c *Container) error { return c.remove(ctx) })
}

// each runs do for all of a list side by side and joins the errors.
func each[T any](list []T, do func(T) error) error {
	errs := make(chan error, len(list))
	for _, c := range list {
		go func() { errs <- do(c) }()
	}
	var all error
	for range list {
		all = errors.Join(all, <-errs)
	}
	return all
}

func (p *Pod) disconnect(ctx context.Context) error {
	if !p.record().NetworkOwe {
		return nil
	}
	pod, err := p.networkPod()
	if err != nil {
		return err
	}
	if err := p.m.network.Del(ctx, pod); err != nil {
		return err
	}
	if err := p.update(func(r *podRecord) { r.NetworkOwe = false }); err != nil {
		// The address is free; a repeated Del after a crash changes nothing.
		p.log.WithError(err).Warn("disconnected without a saved record")
	}
	return nil
}

func (p *Pod) removeCgroup(ctx context.Context) error {
	rec := p.record()
	if !rec.OwnCgroup {
		return nil
	}
	if err := p.m.cgroups.Kill(ctx, rec.Cgroup); err != nil {
		return err
	}
	return p.m.cgroups.Remove(ctx, rec.Cgroup)
}

// Retries of a destroy that failed begin after retryFirst and slow down to
// retryLast: a plugin that is missing may come back, a busy mount may end.
const (
	retryFirst = time.Second
	retryLast  = time.Minute
)

// destroyAfter destroys, after first and then as often as it takes, a pod or
// container that nobody will ask for again, because its making failed.
func (m *Manager) destroyAfter(first time.Duration, id string, log *logrus.Entry, busy chan struct{}, destroy func(context.Context) error) {
	m.flights.begin("destroy "+id, func(ctx context.Context) {
		for wait := first; ; wait = min(max(2*wait, retryFirst), retryLast) {
			select {
			case <-time.After(wait):
			case <-ctx.Done():
				return // the next start goes on
			}
			err := exclusively(ctx, busy, destroy)
			if err == nil {
				return
			}
			log.WithError(err).Warn("half-made and not destroyed yet, trying again")
		}
	})
}

// exclusively runs destroy as the object's one operation, within destroyLimit.
func exclusively(ctx context.Context, busy chan struct{}, destroy func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, destroyLimit)
	defer cancel()
	if err := acquire(ctx, busy); err != nil {
		return err
	}
	defer func() { <-busy }()
	return destroy(ctx)
}
