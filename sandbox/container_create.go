package sandbox

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	rspec "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"

	"noded.dev/noded/imagestore"
	"noded.dev/noded/internal/atomicfile"
	"noded.dev/noded/internal/idmap"
	"noded.dev/noded/internal/kind"
	"noded.dev/noded/internal/steps"
	"noded.dev/noded/internal/userdb"
	"noded.dev/noded/runtime"
	"noded.dev/noded/spec"
)

// CreateContainer makes a container whose process waits for StartContainer,
// and returns its id. A request that is under way is joined; one that is done
// gives the same id again.
func (m *Manager) CreateContainer(ctx context.Context, podID string, config *cri.ContainerConfig) (string, error) {
	p, err := m.pod(podID)
	if err != nil {
		return "", err
	}
	if err := spec.ValidateContainer(p.config, config); err != nil {
		return "", err
	}
	if _, err := deviceNames(config); err != nil {
		return "", err
	}
	meta := config.Metadata
	key := fmt.Sprintf("create %s %q %d", p.id, meta.GetName(), meta.GetAttempt())
	return m.flights.do(ctx, key, createLimit, func(ctx context.Context, at func(string)) (string, error) {
		if c := p.find(meta); c != nil {
			return c.again(config)
		}
		return p.create(ctx, config, at)
	})
}

func (p *Pod) find(meta *cri.ContainerMetadata) *Container {
	for _, c := range p.list() {
		if c.view.Load().state.listed() && proto.Equal(c.config.Metadata, meta) {
			return c
		}
	}
	return nil
}

// again answers a request for a container that exists: the very same one, not
// started yet, is done.
func (c *Container) again(config *cri.ContainerConfig) (string, error) {
	if state := c.view.Load().state; state != stateCreated || !proto.Equal(c.config, config) {
		return "", kind.Errorf(kind.Exists, "container %s (attempt %d) exists as %s (%s); remove it or use another attempt",
			c.name(), config.Metadata.GetAttempt(), c.id, state)
	}
	return c.id, nil
}

// creation carries what one step of creating a container hands to the next.
type creation struct {
	*Container
	at     func(step string) // tells a request that gives up what is waited for
	image  imagestore.Image
	rootfs string
	images []string // by the index of the mount: paths of images; "" for others
	user   userdb.User
	spec   *rspec.Spec
}

func (p *Pod) create(ctx context.Context, config *cri.ContainerConfig, at func(string)) (string, error) {
	image, err := p.m.images.Lookup(config.Image.GetImage())
	if err != nil {
		return "", fmt.Errorf("image %q: %w", config.Image.GetImage(), err)
	}
	if image.Artifact != "" {
		return "", kind.Errorf(kind.Invalid, "image %q is an OCI artifact (%s): it can be mounted as a volume, but no container runs it", config.Image.GetImage(), image.Artifact)
	}
	rec, err := p.newContainerRecord(config, image)
	if err != nil {
		return "", err
	}
	c := p.m.newContainer(p, rec, config)
	// Taken before anybody can find the container: a stop of the pod that comes
	// now waits for the end of this, and stops what came of it.
	c.busy <- struct{}{}
	defer func() { <-c.busy }()
	if err := c.add(); err != nil {
		return "", err
	}
	made := &creation{Container: c, image: image, at: at}
	err = steps.Run(ctx, "create container", at,
		steps.Step{Name: "record", Do: made.recordFirst},
		steps.Step{Name: "mount root filesystem", Do: made.mountRootfs},
		steps.Step{Name: "mount images", Do: made.mountImages},
		steps.Step{Name: "resolve user", Do: made.resolveUser},
		steps.Step{Name: "write bundle", Do: made.writeBundle},
		steps.Step{Name: "create in runtime", Do: made.createInRuntime},
	)
	if err != nil {
		clean, cancel := steps.CleanUp(ctx, destroyLimit)
		defer cancel()
		if e := c.destroy(clean); e != nil {
			p.m.destroyAfter(retryFirst, c.id, c.log, c.busy, c.destroy)
			err = errors.Join(err, fmt.Errorf("undo: %w", e))
		}
		return "", fmt.Errorf("create container %s: %w", c.name(), err)
	}
	c.log.Info("container is created")
	return c.id, nil
}

func (p *Pod) newContainerRecord(config *cri.ContainerConfig, image imagestore.Image) (containerRecord, error) {
	raw, err := encodeMessage(config)
	if err != nil {
		return containerRecord{}, kind.Wrap(kind.Invalid, err)
	}
	pod := p.record()
	id := newID()
	cgroupPath, err := p.m.cgroups.OCIPath(pod.Cgroup, id, p.m.opts.SystemdCgroup)
	if err != nil {
		return containerRecord{}, err
	}
	signal := spec.StopSignal(config, image.Config.Config)
	logPath := ""
	if p.config.LogDirectory != "" && config.LogPath != "" {
		logPath = filepath.Join(p.config.LogDirectory, config.LogPath)
	}
	return containerRecord{
		Version: recordVersion, ID: id, PodID: p.id, State: stateCreating, BootID: p.m.opts.BootID,
		Handler: pod.Handler, Config: raw, ImageID: image.ID, ImageName: imageName(config.Image),
		Cgroup: cgroupPath, LogPath: logPath, CreatedAt: time.Now(),
		StopSignal: signal, StopSignalName: criSignal(signal),
	}, nil
}

// imageName is what the user called the image: the kubelet resolves that to an
// id and sends both.
func imageName(image *cri.ImageSpec) string {
	return cmp.Or(image.GetUserSpecifiedImage(), image.GetImage())
}

func (c *creation) recordFirst(context.Context) error {
	if err := os.MkdirAll(c.paths.bundle(), 0o700); err != nil {
		return err
	}
	return c.note(func(*containerRecord) {})
}

func (c *creation) mountRootfs(ctx context.Context) (err error) {
	if c.pod.userNS() != nil {
		if err := idmap.Pass(c.m.opts.Root); err != nil {
			return err
		}
	}
	c.rootfs, err = c.m.images.Mount(ctx, imagestore.MountRequest{
		ID: c.id, ImageID: c.image.ID, Name: c.record().ImageName, ReadOnly: c.config.GetLinux().GetSecurityContext().GetReadonlyRootfs(),
		UserNS: c.pod.userNS(),
	})
	return err
}

// mountImages mounts the images that are volumes. The kubelet has pulled them;
// it looks for the error's text to tell its users what failed.
func (c *creation) mountImages(ctx context.Context) error {
	c.images = make([]string, len(c.config.Mounts))
	for i, m := range c.config.Mounts {
		name := m.GetImage().GetImage()
		if name == "" {
			continue
		}
		image, err := c.m.images.Lookup(name)
		if err == nil {
			c.images[i], err = c.m.images.MountVolume(ctx, imagestore.VolumeRequest{ID: c.id, Index: i, ImageID: image.ID, Name: imageName(m.Image),
				SubPath: m.ImageSubPath, UserNS: c.pod.userNS()})
		}
		if err != nil {
			return fmt.Errorf("mount %s: %w: %w", m.ContainerPath, crierrors.ErrImageVolumeMountFailed, err)
		}
	}
	return nil
}

func (c *creation) resolveUser(context.Context) (err error) {
	sec := c.config.GetLinux().GetSecurityContext()
	req := userdb.Request{
		RootFS: c.rootfs, ImageUser: c.image.Config.Config.User, RunAsUsername: sec.GetRunAsUsername(),
		SupplementalGroups: sec.GetSupplementalGroups(),
		StrictGroups:       sec.GetSupplementalGroupsPolicy() == cri.SupplementalGroupsPolicy_Strict,
	}
	if u := sec.GetRunAsUser(); u != nil {
		req.RunAsUser = &u.Value
	}
	if g := sec.GetRunAsGroup(); g != nil {
		req.RunAsGroup = &g.Value
	}
	c.user, err = userdb.Resolve(req)
	return err
}

func (c *creation) writeBundle(ctx context.Context) error {
	in, err := c.specInput(ctx)
	if err != nil {
		return err
	}
	if c.spec, err = spec.Container(in); err != nil {
		return err
	}
	if err := c.injectDevices(in); err != nil {
		return err
	}
	c.m.warnOnce(c.log, spec.Warnings(in))
	b, err := json.Marshal(c.spec)
	if err != nil {
		return fmt.Errorf("encode spec: %w", err)
	}
	if err := c.makeLogFolder(); err != nil {
		return err
	}
	return atomicfile.Write(filepath.Join(c.paths.bundle(), "config.json"), b, 0o600)
}

// makeLogFolder makes the folders between the pod's log directory and the
// container's log file; the kubelet usually has.
func (c *creation) makeLogFolder() error {
	logPath := c.record().LogPath
	if logPath == "" {
		return nil
	}
	return os.MkdirAll(filepath.Dir(logPath), 0o755)
}

// createInRuntime has the OCI runtime make the container. A command that
// cannot be executed does not fail here: kubelets expect that of StartContainer.
func (c *creation) createInRuntime(ctx context.Context) error {
	req, err := c.createRequest()
	if err != nil {
		return err
	}
	process, err := c.m.runtime.Create(ctx, req)
	var start *runtime.StartError
	if err != nil && !errors.As(err, &start) {
		return err
	}
	figures := c.figures(c.requested(), process.Pid)
	_, saved := c.on(eventCreated, func(r *containerRecord) {
		r.Process, r.User, r.Figures = process, c.user, figures
		if start != nil {
			r.StartError = &startError{Code: start.Code, Message: start.Error()}
		}
	})
	c.mu.Lock()
	early := c.early
	c.mu.Unlock()
	if early != nil {
		c.exited(*early)
	}
	return saved
}
