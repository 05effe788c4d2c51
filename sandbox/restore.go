package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	goruntime "runtime"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/imagestore/layer"
	"noded.dev/noded/imagestore/limit"
	"noded.dev/noded/internal/kind"
	"noded.dev/noded/internal/steps"
	"noded.dev/noded/runtime"
	"noded.dev/noded/sandbox/checkpoint"
	"noded.dev/noded/spec"
)

// RestorePod makes a pod and its containers, whose processes go on from a
// checkpoint when they are started. All that decides what a container may do
// comes from the request, never from the checkpoint. If it fails, or ctx ends,
// nothing is left. Repeated after a success it returns the same pod.
func (m *Manager) RestorePod(ctx context.Context, req *cri.RestorePodRequest) (*cri.RestorePodResponse, error) {
	handler, err := m.runtime.Handler(req.RuntimeHandler)
	if err != nil {
		return nil, err
	}
	if err := m.runtime.CanCheckpoint(ctx, handler); err != nil {
		return nil, err
	}
	if err := checkRestore(req); err != nil {
		return nil, err
	}
	if sharedNetwork(req.Config) {
		if err := m.network.Ready(); err != nil {
			return nil, kind.Errorf(kind.Unavailable, "network is not ready: %w", err)
		}
	}
	var p *Pod
	err = m.flights.bounded(ctx, "run "+podKey(req.Config.Metadata), runPodLimit, func(ctx context.Context, at func(string)) (err error) {
		if p = m.findPod(req.Config.Metadata); p != nil {
			return p.restoredBefore(req)
		}
		p, err = m.restorePod(ctx, req, handler.Handler, at)
		return err
	})
	if err != nil {
		return nil, err
	}
	if p == nil { // it joined another call
		if p = m.findPod(req.Config.Metadata); p == nil {
			return nil, kind.Errorf(kind.Aborted, "the restored pod is gone")
		}
		if err := p.restoredBefore(req); err != nil {
			return nil, err
		}
	}
	return p.restored(), nil
}

func checkRestore(req *cri.RestorePodRequest) error {
	if err := absolute("checkpoint_path", req.CheckpointPath); err != nil {
		return err
	}
	if err := noOptions(req.Options); err != nil {
		return err
	}
	if err := spec.ValidatePod(req.Config); err != nil {
		return err
	}
	if err := restorable(req.Config); err != nil {
		return err
	}
	if len(req.ContainerConfigs) == 0 {
		return kind.Errorf(kind.Invalid, "container_configs is empty")
	}
	names := map[string]bool{}
	for _, c := range req.ContainerConfigs {
		name := c.GetMetadata().GetName()
		if name == "" || names[name] {
			return kind.Errorf(kind.Invalid, "container_configs has a name that is empty or there twice: %q", name)
		}
		names[name] = true
		if err := spec.ValidateContainer(req.Config, c); err != nil {
			return fmt.Errorf("container %s: %w", name, err)
		}
	}
	return nil
}

// restoredBefore answers a request for a pod that exists: the very same one,
// none of whose containers was started yet, is done.
func (p *Pod) restoredBefore(req *cri.RestorePodRequest) error {
	if _, err := p.again(req.Config, req.RuntimeHandler); err != nil {
		return err
	}
	for _, config := range req.ContainerConfigs {
		c := p.find(config.Metadata)
		if c == nil || !c.record().Restore {
			return kind.Errorf(kind.Exists, "pod %s exists as %s and was not restored with a container %s", p.name(), p.id, config.Metadata.GetName())
		}
		if _, err := c.again(config); err != nil {
			return err
		}
	}
	return nil
}

func (p *Pod) restored() *cri.RestorePodResponse {
	out := &cri.RestorePodResponse{PodSandboxId: p.id}
	for _, c := range p.list() {
		if c.record().Restore {
			out.RestoredContainers = append(out.RestoredContainers, &cri.RestoredContainer{Name: c.config.Metadata.GetName(), ContainerId: c.id})
		}
	}
	return out
}

// restorePod makes the pod. Its record says until the end that a start finding
// it destroys it: nobody was told of it.
func (m *Manager) restorePod(ctx context.Context, req *cri.RestorePodRequest, handler runtime.Handler, at func(string)) (*Pod, error) {
	key, err := checkpoint.Key(m.keyFile())
	if err != nil {
		return nil, err
	}
	from, err := checkpoint.Open(req.CheckpointPath, key)
	if err != nil {
		return nil, err
	}
	defer from.Close()
	entries, err := matching(from, req)
	if err != nil {
		return nil, err
	}
	p, err := m.addPod(req.Config, req.RuntimeHandler, handler)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	p.rec.Restoring = true
	p.mu.Unlock()
	if err := p.run(ctx, at); err != nil {
		return nil, err // it has undone itself
	}
	list := []steps.Step{{Name: "restore shm", Do: func(ctx context.Context) error { return p.restoreShm(ctx, from) }}}
	for i, config := range req.ContainerConfigs {
		list = append(list, steps.Step{Name: "restore container", Do: func(ctx context.Context) error {
			return p.restoreContainer(ctx, config, restoration{from: from, entry: entries[i], at: at})
		}})
	}
	list = append(list, steps.Step{Name: "record restored", Do: func(context.Context) error {
		return p.update(func(r *podRecord) { r.Restoring = false })
	}})
	if err := steps.Run(ctx, "restore pod", at, list...); err != nil {
		clean, cancel := steps.CleanUp(ctx, destroyLimit)
		defer cancel()
		return nil, fmt.Errorf("restore pod %s: %w", p.name(), errors.Join(err, p.giveUp(clean)))
	}
	p.log.Info("pod is restored")
	return p, nil
}

// giveUp is abandon for a pod that others can find already.
func (p *Pod) giveUp(ctx context.Context) error {
	if err := acquire(ctx, p.busy); err != nil {
		p.m.destroyAfter(retryFirst, p.id, p.log, p.busy, p.destroy)
		return err
	}
	defer func() { <-p.busy }()
	if !p.isKnown() {
		return nil // somebody else was first
	}
	return p.abandon(ctx)
}

// matching finds the checkpoint's containers of a request, which must be all
// of them, in the request's order.
func matching(from *checkpoint.Checkpoint, req *cri.RestorePodRequest) ([]checkpoint.Container, error) {
	if from.Arch != goruntime.GOARCH {
		return nil, kind.Errorf(kind.Precondition, "the checkpoint is of a machine of type %s, this is %s", from.Arch, goruntime.GOARCH)
	}
	byName := map[string]checkpoint.Container{}
	for _, c := range from.Containers {
		byName[c.Name] = c
	}
	var list []checkpoint.Container
	for _, config := range req.ContainerConfigs {
		c, ok := byName[config.Metadata.GetName()]
		if !ok {
			return nil, kind.Errorf(kind.Invalid, "the checkpoint has no container %q", config.Metadata.GetName())
		}
		delete(byName, config.Metadata.GetName())
		list = append(list, c)
	}
	for name := range byName {
		return nil, kind.Errorf(kind.Invalid, "the checkpoint has a container %q, container_configs has not", name)
	}
	return list, nil
}

// restoreShm fills the pod's new /dev/shm with what the old one had.
func (p *Pod) restoreShm(ctx context.Context, from *checkpoint.Checkpoint) error {
	if !from.Has(checkpoint.ShmFile) || !sharedIPC(p.config) {
		return nil
	}
	return from.Read(ctx, checkpoint.ShmFile, func(r io.Reader) error {
		_, err := layer.Untar(ctx, p.paths.shm(), r, limit.Default())
		return err
	})
}
