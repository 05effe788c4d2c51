package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"noded.dev/noded/internal/atomicfile"
	"noded.dev/noded/internal/kind"
	"noded.dev/noded/internal/namespace"
	"noded.dev/noded/internal/steps"
	"noded.dev/noded/runtime"
)

// recover brings the manager to where the last one was: records are loaded by
// the ordinary constructors, matched with what the shim holds, and what was
// half-made is destroyed by the ordinary destroy.
func (m *Manager) recover(ctx context.Context) error {
	if err := m.load(); err != nil {
		return err
	}
	held, err := m.held(ctx)
	if err != nil {
		return fmt.Errorf("ask the shim for its containers: %w", err)
	}
	return steps.Run(ctx, "recover", nil,
		steps.Step{Name: "settle containers", Do: func(ctx context.Context) error { return m.settleContainers(ctx, held) }},
		steps.Step{Name: "settle pods", Do: func(ctx context.Context) error { return m.settlePods(ctx, held) }},
		steps.Step{Name: "remove ownerless", Do: func(ctx context.Context) error { return m.removeOwnerless(ctx, held) }},
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
	for _, dir := range []string{pods, containers} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("make records folder: %w", err)
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
	for _, c := range m.listContainers() {
		state, ok := held[c.id]
		if err := c.settle(ctx, state, ok); err != nil {
			c.log.WithError(err).Error("container is not recovered")
		}
	}
	return nil
}

func (c *Container) settle(ctx context.Context, state runtime.State, held bool) error {
	rec := c.record()
	switch {
	case rec.State == stateCreating || rec.State == stateRemoving:
		if err := c.destroy(ctx); err != nil {
			c.m.destroyLater(c.id, c.log, c.busy, c.destroy)
			return err
		}
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
	case !held:
		c.finish(runtime.Exit{ID: c.id, Code: 255, At: time.Now(), Lost: true}, reasonLost, "the shim does not know the container")
		return nil
	case state.Exit != nil:
		if rec.State == stateStarting {
			if err := c.started(); err != nil {
				return err
			}
		}
		c.exited(*state.Exit)
		return nil
	case rec.State == stateStarting:
		// The runtime may or may not have been told to start; telling it again
		// is refused if it was, and the process is alive either way.
		if err := c.m.runtime.Start(ctx, c.id); err != nil {
			c.log.WithError(err).Debug("start repeated after a restart")
		}
		return c.started()
	}
	return nil
}

func (m *Manager) settlePods(ctx context.Context, held map[string]runtime.State) error {
	for _, p := range m.listPods() {
		if err := p.settle(ctx, held); err != nil {
			p.log.WithError(err).Error("pod is not recovered")
		}
	}
	return nil
}

func (p *Pod) settle(ctx context.Context, held map[string]runtime.State) error {
	rec := p.record()
	switch {
	case rec.State == podCreating || rec.State == podRemoving:
		if err := p.destroy(ctx); err != nil {
			p.m.destroyLater(p.id, p.log, p.busy, p.destroy)
			return err
		}
		return nil
	case rec.State == podStopped:
		return nil
	case rec.BootID != p.m.opts.BootID:
		return p.update(func(r *podRecord) { r.State = podStopped })
	}
	if err := p.intact(held); err != nil {
		p.log.WithError(err).Error("pod is stopped")
		return p.update(func(r *podRecord) { r.State = podStopped })
	}
	return nil
}

// intact returns what of a ready pod was lost while noded was not there.
func (p *Pod) intact(held map[string]runtime.State) error {
	rec := p.record()
	if !hostNetwork(p.config) && !namespace.Pinned(namespace.Path(p.paths.ns, "net")) {
		return errors.New("its network namespace is gone")
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
func (m *Manager) removeOwnerless(ctx context.Context, held map[string]runtime.State) error {
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
	return nil
}

func (m *Manager) podIDs() []string {
	var ids []string
	for _, p := range m.listPods() {
		ids = append(ids, p.id)
	}
	return ids
}

func (m *Manager) known(id string) bool {
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
		if m.containers[id] == nil {
			errs = append(errs, m.images.Unmount(ctx, id))
		}
	}
	return errors.Join(errs...)
}

// ownerlessFolders removes the folders, with the mounts in them, of pods and
// containers that have no record (any more).
func (m *Manager) ownerlessFolders(context.Context) error {
	var errs []error
	each := func(dir string, remove func(id, path string) error) {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
		for _, e := range entries {
			path := filepath.Join(dir, e.Name())
			if !m.known(e.Name()) {
				errs = append(errs, remove(e.Name(), path))
			} else {
				removeTemps(path)
			}
		}
	}
	all := func(_, path string) error { return os.RemoveAll(path) }
	each(filepath.Join(m.opts.State, "ns"), func(_, path string) error { return namespace.Remove(path) })
	each(filepath.Join(m.opts.State, "pods"), func(_, path string) error {
		return errors.Join(unmountShm(filepath.Join(path, "shm")), os.RemoveAll(path))
	})
	each(filepath.Join(m.opts.Root, "pods"), all)
	each(filepath.Join(m.opts.Root, "containers"), all)
	return errors.Join(errs...)
}

// removeTemps deletes what a cut-off record write left; what stays is harmless.
func removeTemps(dir string) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if atomicfile.IsTemp(e.Name()) {
			os.Remove(filepath.Join(dir, e.Name()))
		}
	}
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
		if len(name) == 64 && m.pods[name] == nil {
			dir := filepath.Join(m.opts.CgroupParent, name)
			errs = append(errs, m.cgroups.Kill(ctx, dir), m.cgroups.Remove(ctx, dir))
		}
	}
	return errors.Join(errs...)
}
