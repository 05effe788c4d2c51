package sandbox

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"noded.dev/noded/internal/kind"
	"noded.dev/noded/internal/namespace"
	"noded.dev/noded/internal/steps"
	"noded.dev/noded/runtime"
	"noded.dev/noded/sandbox/checkpoint"
)

// settleLimit bounds what start-up does for one pod or container. What is not
// finished then goes on in the background or is left to the kubelet.
const settleLimit = 20 * time.Second

// tidyLimit bounds the start's wait for what a crash left half-made to be
// destroyed. None of it is listed, so the kubelet need not wait for the rest:
// a process that is gone but not collected yet, or a plugin, can take long.
const tidyLimit = time.Second

// recover brings the manager to where the last one was: records, loaded by the
// ordinary constructors, are matched with what the shim holds, and what was
// half-made is destroyed by the ordinary destroy.
func (m *Manager) recover(ctx context.Context) error {
	held, err := m.held(ctx)
	if err != nil {
		return fmt.Errorf("ask the shim for its containers: %w", err)
	}
	return steps.Run(ctx, "recover", nil,
		steps.Step{Name: "undo checkpoints", Do: m.undoCaptures},
		steps.Step{Name: "settle containers", Do: func(ctx context.Context) error { return m.settleContainers(ctx, held) }},
		steps.Step{Name: "settle pods", Do: func(ctx context.Context) error { return m.settlePods(ctx, held) }},
		steps.Step{Name: "remove ownerless", Do: func(ctx context.Context) error {
			m.flights.begin("remove ownerless", func(ctx context.Context) { m.removeOwnerless(ctx, held) })
			return nil
		}},
		steps.Step{Name: "await destroyed", Do: func(ctx context.Context) error {
			m.flights.await(ctx, tidyLimit)
			return nil
		}},
	)
}

// load reads all records. Unreadable ones, and containers without a pod, are
// set aside for the operator.
func (m *Manager) load() error {
	aside := func(what string) func(string, error) {
		return func(id string, err error) {
			m.log.WithError(err).WithField("id", id).Errorf("%s record cannot be read, moved to %s", what, m.quarantine())
		}
	}
	pods, containers := filepath.Join(m.opts.Root, "pods"), filepath.Join(m.opts.Root, "containers")
	for _, dir := range []string{pods, containers, m.captures()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("make records folder: %w", err)
		}
	}
	if m.runtime.Criu() != "" {
		if _, err := checkpoint.Key(m.keyFile()); err != nil {
			return err
		}
	}
	err := loadRecords(pods, m.quarantine(), func(id string, b []byte) error {
		rec, config, err := decodePodRecord(id, b)
		if err == nil {
			m.pods[id] = m.newPod(rec, config)
		}
		return err
	}, aside("pod"))
	if err != nil {
		return err
	}
	return loadRecords(containers, m.quarantine(), func(id string, b []byte) error {
		rec, config, err := decodeContainerRecord(id, b)
		if err != nil {
			return err
		}
		p := m.pods[rec.PodID]
		if p == nil {
			return fmt.Errorf("its pod %.64q is unknown", rec.PodID)
		}
		c := m.newContainer(p, rec, config)
		p.containers[id], m.containers[id] = c, c
		return nil
	}, aside("container"))
}

func (m *Manager) held(ctx context.Context) (map[string]runtime.State, error) {
	ctx, cancel := context.WithTimeout(ctx, settleLimit)
	defer cancel()
	list, err := m.runtime.Containers(ctx)
	if err != nil {
		return nil, err
	}
	held := make(map[string]runtime.State, len(list))
	for _, s := range list {
		held[s.ID] = s
	}
	return held, nil
}

// settleContainers makes every record true again. One container that cannot be
// settled is logged and left for the kubelet; it stops no other.
func (m *Manager) settleContainers(ctx context.Context, held map[string]runtime.State) error {
	return each(m.listContainers(), func(c *Container) error {
		ctx, cancel := context.WithTimeout(ctx, settleLimit)
		defer cancel()
		state, ok := held[c.id]
		if err := c.settle(ctx, state, ok); err != nil {
			c.log.WithError(err).Error("container is not recovered")
		}
		return nil
	})
}

func (c *Container) settle(ctx context.Context, state runtime.State, held bool) error {
	rec := c.record()
	switch {
	case rec.State == stateCreating || rec.State == stateRemoving:
		c.m.destroyAfter(0, c.id, c.log, c.busy, c.destroy)
		return nil
	case rec.State == stateExited:
		c.letGo()
		return nil
	case rec.StartError != nil:
		return nil
	case rec.BootID != c.m.opts.BootID:
		// Nothing lives across a boot, and its pids are strangers' now.
		c.finish(runtime.Exit{ID: c.id, Code: 255, At: time.Now()}, reasonNodeBoot, "the node was restarted")
		return nil
	case rec.Restore && rec.State == stateCreated:
		return nil // the runtime makes it when it is started
	case !held && !(rec.Restore && rec.State == stateStarting):
		c.finish(runtime.Exit{ID: c.id, Code: 255, At: time.Now(), Lost: true}, reasonLost, "the shim does not know the container")
		return nil
	case state.Exit != nil:
		c.exited(*state.Exit)
		return nil
	case rec.State == stateStarting:
		// A StartContainer that comes meanwhile joins.
		_, err := c.m.flights.join(ctx, "start "+c.id, startLimit, func(ctx context.Context, _ func(string)) (string, error) {
			return "", exclusively(ctx, c.busy, c.startAgain)
		})
		return err
	}
	if rec.Resize != nil {
		// In the background: the runtime may hang, as it may have then.
		c.m.flights.begin("undo update of "+c.id, func(ctx context.Context) {
			if err := exclusively(ctx, c.busy, c.restore); err != nil {
				c.log.WithError(err).Error("limits of an update that was cut off are not put back")
			}
		})
	}
	return nil
}

// startAgain finishes a start that a crash cut off. The runtime may or may not
// have been told to start, and may be told again.
func (c *Container) startAgain(ctx context.Context) error {
	err := c.startProcess(ctx)
	switch {
	case err == nil:
		return c.started()
	case kind.Is(err, kind.Unavailable), ctx.Err() != nil:
		c.log.WithError(err).Error("container is not recovered") // nobody knows whether it runs, so it must not be killed
		return err
	}
	c.log.WithError(err).Error("container could not be started")
	return errors.Join(err, c.startFailed(ctx, err))
}

func (m *Manager) settlePods(ctx context.Context, held map[string]runtime.State) error {
	return each(m.listPods(), func(p *Pod) error {
		ctx, cancel := context.WithTimeout(ctx, settleLimit)
		defer cancel()
		if err := p.settle(ctx, held); err != nil {
			p.log.WithError(err).Error("pod is not recovered")
		}
		return nil
	})
}

func (p *Pod) settle(ctx context.Context, held map[string]runtime.State) error {
	rec := p.record()
	switch {
	case rec.State == podCreating || rec.State == podRemoving || rec.Restoring:
		p.m.destroyAfter(0, p.id, p.log, p.busy, p.destroy)
		return nil
	case rec.State == podStopped:
		// Its stop may have been cut off, and a kubelet that saw the pod
		// stopped does not repeat it.
		p.finishStop()
		return nil
	case rec.BootID != p.m.opts.BootID:
		p.finishStop()
		return p.markStopped()
	}
	if err := p.intact(held); err != nil {
		p.log.WithError(err).Error("pod is stopped")
		return p.markStopped()
	}
	return p.restoreLimits()
}

// finishStop begins to free what a stopped pod may still hold.
func (p *Pod) finishStop() {
	p.m.flights.begin("finish stop of "+p.id, func(ctx context.Context) {
		release := func(ctx context.Context) error { return p.release(ctx, nil) }
		if err := exclusively(ctx, p.busy, release); err != nil {
			p.log.WithError(err).Warn("stopped pod still holds something, removing it will free that")
		}
	})
}

// intact returns what of a ready pod was lost while noded was not there.
func (p *Pod) intact(held map[string]runtime.State) error {
	rec := p.record()
	if sharedNetwork(p.config) && !namespace.Pinned(namespace.Path(p.paths.ns, "net")) {
		return errors.New("its network namespace is gone")
	}
	if sharedIPC(p.config) && !namespace.Pinned(namespace.Path(p.paths.ns, "ipc")) {
		return errors.New("its IPC namespace is gone")
	}
	if users := p.userNS(); users != nil && !namespace.Pinned(users.Path) {
		return errors.New("its user namespace is gone")
	}
	if rec.Init.Pid != 0 {
		if s, ok := held[p.id]; !ok || s.Exit != nil {
			return errors.New("the init of its PID namespace has ended")
		}
	}
	return nil
}

// removeOwnerless frees what a crash left without a record. It logs what it
// cannot free; the next start tries again.
func (m *Manager) removeOwnerless(ctx context.Context, held map[string]runtime.State) {
	err := steps.RunAll(ctx, "remove ownerless", nil,
		steps.Step{Name: "runtime containers", Do: func(ctx context.Context) error { return m.ownerlessContainers(ctx, held) }},
		steps.Step{Name: "root filesystems", Do: m.ownerlessMounts},
		steps.Step{Name: "folders", Do: m.ownerlessFolders},
		steps.Step{Name: "networks", Do: func(ctx context.Context) error { return m.network.GC(ctx, m.podIDs()) }},
		steps.Step{Name: "cgroups", Do: m.ownerlessCgroups},
	)
	if err != nil {
		m.log.WithError(err).Warn("not everything without an owner could be removed")
	}
}

func (m *Manager) podIDs() []string {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return slices.Collect(maps.Keys(m.pods))
}

func (m *Manager) known(id string) bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.containers[id] != nil || m.pods[id] != nil
}

func (m *Manager) ownerlessContainers(ctx context.Context, held map[string]runtime.State) error {
	handler, err := m.runtime.Handler("")
	if err != nil && !kind.Is(err, kind.NotFound) {
		return err
	}
	var errs []error
	for id := range held {
		if !m.known(id) {
			errs = append(errs, m.runtime.Delete(ctx, runtime.CreateRequest{ID: id, Runtime: handler.Handler}))
		}
	}
	return errors.Join(errs...)
}

func (m *Manager) ownerlessMounts(ctx context.Context) error {
	var errs []error
	for _, id := range m.images.Mounts() {
		if !m.known(id) {
			errs = append(errs, m.images.Unmount(ctx, id))
		}
	}
	return errors.Join(errs...)
}

// ownerlessFolders removes the folders, with the mounts in them, of pods and
// containers that have no record (any more).
func (m *Manager) ownerlessFolders(context.Context) error {
	var errs []error
	sweep := func(dir string, remove func(path string) error) {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
		for _, e := range entries {
			path := filepath.Join(dir, e.Name())
			if !m.known(e.Name()) {
				errs = append(errs, remove(path))
			}
		}
	}
	sweep(filepath.Join(m.opts.State, "ns"), namespace.Remove)
	sweep(filepath.Join(m.opts.State, "pods"), func(path string) error {
		return errors.Join(unmountShm(filepath.Join(path, "shm")), os.RemoveAll(path))
	})
	sweep(filepath.Join(m.opts.Root, "pods"), os.RemoveAll)
	sweep(filepath.Join(m.opts.Root, "containers"), os.RemoveAll)
	return errors.Join(errs...)
}

// ownerlessCgroups removes pod cgroups of noded's own that no pod names.
func (m *Manager) ownerlessCgroups(ctx context.Context) error {
	if m.opts.SystemdCgroup {
		return nil // systemd removes empty slices
	}
	names, err := m.cgroups.Children(m.opts.CgroupParent)
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range names {
		// Only what looks like a pod id of noded's can be one.
		if len(name) == 64 && !m.known(name) {
			dir := filepath.Join(m.opts.CgroupParent, name)
			errs = append(errs, m.cgroups.Kill(ctx, dir), m.cgroups.Remove(ctx, dir))
		}
	}
	return errors.Join(errs...)
}
