package sandbox

import (
	"context"
	"fmt"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/internal/kind"
	"noded.dev/noded/spec"
)

// UpdateContainer changes a container's resource limits, all or nothing.
// Fields that are not set keep their value. A container that is only created
// is updated too, since its cgroup exists.
func (m *Manager) UpdateContainer(ctx context.Context, req *cri.UpdateContainerResourcesRequest) error {
	c, err := m.container(req.ContainerId)
	if err != nil {
		return err
	}
	if req.Linux == nil {
		return nil
	}
	if err := acquire(ctx, c.busy); err != nil {
		return fmt.Errorf("update %s: an operation on it is under way: %w", c.name(), err)
	}
	defer func() { <-c.busy }()
	if s := c.view.Load().state; s != stateCreated && s != stateRunning {
		return kind.Errorf(kind.Precondition, "container %s (%s) is %s, its limits cannot be changed", c.id, c.name(), s)
	}
	resources, err := spec.Resources(req.Linux, m.opts.Facts)
	if err != nil {
		return err
	}
	if err := m.runtime.Update(ctx, c.request(), resources); err != nil {
		return fmt.Errorf("update %s: %w", c.name(), err)
	}
	raw, err := encodeMessage(spec.MergeResources(c.view.Load().status.GetResources().GetLinux(), req.Linux))
	if err != nil {
		return err
	}
	return c.note(func(r *containerRecord) { r.Resources = raw })
}
