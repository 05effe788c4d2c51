package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"

	rspec "github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/imagestore"
	"noded.dev/noded/internal/kind"
	"noded.dev/noded/internal/steps"
	"noded.dev/noded/runtime"
	"noded.dev/noded/runtime/criu"
	"noded.dev/noded/sandbox/checkpoint"
)

// restoration is where a container's state comes from.
type restoration struct {
	from  *checkpoint.Checkpoint
	entry checkpoint.Container
	at    func(step string) // told where it is
}

func (r restoration) path(name string) string { return path.Join(r.entry.Dir(), name) }

// restoreContainer makes a container that goes on from the checkpoint when it
// is started. What of it is made when that fails goes with the pod.
func (p *Pod) restoreContainer(ctx context.Context, config *cri.ContainerConfig, r restoration) error {
	image, err := p.m.images.Lookup(config.Image.GetImage())
	if err != nil {
		return fmt.Errorf("image %q: %w", config.Image.GetImage(), err)
	}
	if image.ID != r.entry.ImageID {
		return kind.Errorf(kind.Precondition, "container %s was checkpointed with image %s, %s is %s", r.entry.Name, r.entry.ImageID, config.Image.GetImage(), image.ID)
	}
	rec, err := p.newContainerRecord(config, image)
	if err != nil {
		return err
	}
	rec.Restore = true
	c := p.m.newContainer(p, rec, config)
	c.busy <- struct{}{} // as in create
	defer func() { <-c.busy }()
	if err := c.add(); err != nil {
		return err
	}
	made := &creation{Container: c, image: image, at: r.at}
	err = steps.Run(ctx, "restore container", nil,
		steps.Step{Name: "record", Do: made.recordFirst},
		steps.Step{Name: "mount root filesystem", Do: func(ctx context.Context) error { return made.mountChanged(ctx, r) }},
		steps.Step{Name: "mount images", Do: made.mountImages},
		steps.Step{Name: "resolve user", Do: made.resolveUser},
		steps.Step{Name: "write bundle", Do: made.writeBundle},
		steps.Step{Name: "take process images", Do: func(ctx context.Context) error {
			return r.from.Copy(ctx, r.path(checkpoint.ImagesDir), c.paths.restore())
		}},
		steps.Step{Name: "compare", Do: func(ctx context.Context) error { return made.compare(ctx, r) }},
		steps.Step{Name: "record created", Do: func(context.Context) error {
			_, err := c.on(eventCreated, func(rec *containerRecord) { rec.User = made.user })
			return err
		}},
	)
	if err != nil {
		return fmt.Errorf("container %s: %w", c.name(), err)
	}
	c.log.Info("container is created from a checkpoint")
	return nil
}

// mountChanged mounts the root filesystem with what the container had changed.
func (c *creation) mountChanged(ctx context.Context, r restoration) error {
	return r.from.Read(ctx, r.path(checkpoint.RootFSFile), func(diff io.Reader) (err error) {
		c.rootfs, err = c.m.images.Mount(ctx, imagestore.MountRequest{
			ID: c.id, ImageID: c.image.ID, Name: c.record().ImageName, ReadOnly: c.config.GetLinux().GetSecurityContext().GetReadonlyRootfs(), Diff: diff,
		})
		return err
	})
}

// compare refuses a checkpoint whose processes would have more than the
// container's own spec, built from the request alone, gives them, or other
// things than it promises.
func (c *creation) compare(ctx context.Context, r restoration) error {
	text, err := r.from.ReadFile(ctx, r.path(checkpoint.SpecFile))
	if err != nil {
		return err
	}
	var then rspec.Spec
	if err := json.Unmarshal(text, &then); err != nil {
		return kind.Errorf(kind.Precondition, "decode the checkpoint's spec: %w", err)
	}
	if err := sameProcess(&then, c.spec); err != nil {
		return kind.Wrap(kind.Precondition, err)
	}
	process := c.spec.Process
	return criu.Check(c.paths.restore(), criu.Permitted{
		Capabilities: process.Capabilities.Bounding, NoNewPrivileges: process.NoNewPrivileges,
		Seccomp: c.spec.Linux.Seccomp != nil, LSMProfile: process.ApparmorProfile + process.SelinuxLabel,
	})
}

// restoreProcess lets a container's processes go on from the checkpoint; it
// may be repeated.
func (c *Container) restoreProcess(ctx context.Context) error {
	process, err := c.m.runtime.Create(ctx, c.request())
	if err != nil {
		return err
	}
	return errors.Join(c.note(func(r *containerRecord) { r.Process = process }), os.RemoveAll(c.paths.restore()))
}

// fromCheckpoint is the part of a request that makes a container go on.
func (c *Container) fromCheckpoint(rec containerRecord) runtime.Restore {
	if !rec.Restore {
		return runtime.Restore{}
	}
	return runtime.Restore{Images: c.paths.restore(), Criu: c.m.runtime.Criu()}
}
