package sandbox

import (
	"context"
	"crypto/sha256"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/internal/kind"
	"noded.dev/noded/internal/steps"
	"noded.dev/noded/spec"
)

// Limits of an update: of all of it, of the OCI runtime's part, and of putting
// back what was changed before a failure. A kubelet waits two minutes.
const (
	updateLimit        = 60 * time.Second
	runtimeUpdateLimit = 30 * time.Second
	restoreLimit       = 20 * time.Second
)

// UpdateContainer changes a container's resource limits, all or nothing: if a
// part cannot be changed, those before it are put back. Fields that are not set
// keep their value. A container that is only created is updated too, since its
// cgroup exists.
func (m *Manager) UpdateContainer(ctx context.Context, req *cri.UpdateContainerResourcesRequest) error {
	c, err := m.container(req.ContainerId)
	if err != nil {
		return err
	}
	if req.Linux == nil {
		return nil
	}
	key, err := requestKey("update "+c.id, req)
	if err != nil {
		return err
	}
	_, err = m.flights.do(ctx, key, updateLimit, func(ctx context.Context, at func(string)) (string, error) {
		if err := acquire(ctx, c.busy); err != nil {
			return "", fmt.Errorf("update %s: an operation on it is under way: %w", c.name(), err)
		}
		defer func() { <-c.busy }()
		return "", c.update(ctx, req, at)
	})
	return err
}

// requestKey names an operation by all of its request: two different updates
// of one container are two operations.
func requestKey(what string, req proto.Message) (string, error) {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(req)
	if err != nil {
		return "", kind.Wrap(kind.Invalid, fmt.Errorf("encode request: %w", err))
	}
	return fmt.Sprintf("%s %x", what, sha256.Sum256(b)), nil
}

func (c *Container) update(ctx context.Context, req *cri.UpdateContainerResourcesRequest, at func(string)) error {
	if s := c.view.Load().state; s != stateCreated && s != stateRunning {
		return kind.Errorf(kind.Precondition, "container %s (%s) is %s, its limits cannot be changed", c.id, c.name(), s)
	}
	if rec := c.record(); rec.Restore && rec.State == stateCreated {
		return kind.Errorf(kind.Precondition, "container %s (%s) has no cgroup before it is restored by its start", c.id, c.name())
	}
	if c.record().Resize != nil {
		// A restore that failed comes first: what is in force now is half of
		// another update.
		if err := c.restore(ctx); err != nil {
			return fmt.Errorf("update %s: %w", c.name(), err)
		}
	}
	r := &resize{Container: c, asked: req.Linux, annotations: req.Annotations}
	err := steps.Run(ctx, "update", at,
		steps.Step{Name: "check limits", Do: r.check},
		steps.Step{Name: "record limits in force", Do: r.begin},
		steps.Step{Name: "set oom score", Do: r.setOOMScore},
		steps.Step{Name: "update in runtime", Do: r.updateInRuntime},
		steps.Step{Name: "keep the rest", Do: r.keepRest},
		steps.Step{Name: "record", Do: r.done},
	)
	if err == nil {
		return nil
	}
	if c.record().Resize != nil {
		clean, cancel := steps.CleanUp(ctx, restoreLimit)
		defer cancel()
		if e := c.restore(clean); e != nil {
			c.log.WithError(e).Error("limits are not put back, the next update or start of noded tries again")
			err = fmt.Errorf("%w; undo: %w", err, e)
		}
	}
	return fmt.Errorf("update %s: %w", c.name(), err)
}

// requested are the limits last asked for, in all.
func (c *Container) requested() *cri.LinuxContainerResources {
	if raw := c.record().Resources; len(raw) > 0 {
		r := new(cri.LinuxContainerResources)
		if decodeMessage(raw, r) == nil {
			return r
		}
	}
	return c.config.GetLinux().GetResources()
}

func (r *resize) merged() *cri.LinuxContainerResources {
	return spec.MergeResources(r.requested(), r.asked)
}
