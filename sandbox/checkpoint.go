package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/internal/kind"
	"noded.dev/noded/internal/steps"
	"noded.dev/noded/sandbox/checkpoint"
)

// checkpointLimit bounds a checkpoint whose caller sets no limit: the CRI's
// usual two minutes.
const checkpointLimit = 2 * time.Minute

// maxCheckpoint is the longest limit that a caller can set.
const maxCheckpoint = 24 * time.Hour

// CheckpointContainer writes a running container's state into a new archive at
// location. The container goes on, also where that fails or takes longer than
// timeout (0: checkpointLimit), and nothing is left then.
func (m *Manager) CheckpointContainer(ctx context.Context, id, location string, timeout time.Duration) error {
	switch {
	case timeout < 0 || timeout > maxCheckpoint:
		return kind.Errorf(kind.Invalid, "timeout is %v, between 0 and %v is possible", timeout, maxCheckpoint)
	case timeout == 0:
		timeout = checkpointLimit
	}
	if err := m.checkpointsOn(ctx); err != nil {
		return err
	}
	if err := absolute("location", location); err != nil {
		return err
	}
	c, err := m.running(id)
	if err != nil {
		return err
	}
	if err := c.canCheckpoint(ctx); err != nil {
		return err
	}
	return m.flights.bounded(ctx, "checkpoint "+c.id+" "+location, timeout, func(ctx context.Context, at func(string)) error {
		if _, err := os.Lstat(location); err == nil {
			return kind.Errorf(kind.Exists, "location %s exists", location)
		}
		k := m.newCapture(c.pod, []*Container{c})
		k.dir, k.rec.Partial = filepath.Join(k.home, "data"), filepath.Join(filepath.Dir(location), ".noded-checkpoint-"+k.id[:12])
		k.rec.Dir = k.dir
		return k.run(ctx, at,
			steps.Step{Name: "write archive", Do: k.writeArchive},
			steps.Step{Name: "publish archive", Do: func(context.Context) error { return publish(k.rec.Partial, location) }},
		)
	})
}

// CheckpointPod writes the state of running containers of a pod, all of one
// moment, into an empty folder. They go on in any case; what was written is
// removed where it fails.
func (m *Manager) CheckpointPod(ctx context.Context, req *cri.CheckpointPodRequest) error {
	if err := m.checkpointsOn(ctx); err != nil {
		return err
	}
	if err := noOptions(req.Options); err != nil {
		return err
	}
	if err := emptyFolder("output_path", req.OutputPath); err != nil {
		return err
	}
	p, err := m.pod(req.PodSandboxId)
	if err != nil {
		return err
	}
	containers, err := p.selected(ctx, req.ContainerIds)
	if err != nil {
		return err
	}
	return m.flights.bounded(ctx, "checkpoint "+p.id+" "+req.OutputPath, maxCheckpoint, func(ctx context.Context, at func(string)) error {
		k := m.newCapture(p, containers)
		k.dir, k.whole = filepath.Clean(req.OutputPath), true
		k.rec.Dir = k.dir
		return k.run(ctx, at, steps.Step{Name: "seal", Do: k.seal})
	})
}

// checkpointsOn is asked first of all: where the node makes no checkpoints,
// whatever else is wrong with a request does not count.
func (m *Manager) checkpointsOn(ctx context.Context) error {
	handler, err := m.runtime.Handler("")
	if err != nil {
		return err
	}
	if err := m.runtime.CanCheckpoint(ctx, handler); kind.Is(err, kind.Unimplemented) {
		return err
	}
	return nil
}

func (c *Container) canCheckpoint(ctx context.Context) error {
	handler, err := c.m.runtime.Handler(c.record().Handler.Name)
	if err != nil {
		return kind.Wrap(kind.Precondition, err)
	}
	return c.m.runtime.CanCheckpoint(ctx, handler)
}

// selected finds the containers of a request, which run in this pod.
func (p *Pod) selected(ctx context.Context, ids []string) ([]*Container, error) {
	if err := p.precondition(); err != nil {
		return nil, err
	}
	if err := restorable(p.config); err != nil {
		return nil, err
	}
	if len(ids) == 0 {
		return nil, kind.Errorf(kind.Invalid, "container_ids is empty")
	}
	var list []*Container
	for _, id := range ids {
		c, err := p.m.running(id)
		if err != nil {
			return nil, err
		}
		if c.pod != p {
			return nil, kind.Errorf(kind.Precondition, "container %s is not one of pod %s (%s)", c.id, p.id, p.name())
		}
		if slices.Contains(list, c) {
			return nil, kind.Errorf(kind.Invalid, "container_ids has %s twice", id)
		}
		if other := slices.IndexFunc(list, func(o *Container) bool { return o.config.Metadata.GetName() == c.config.Metadata.GetName() }); other >= 0 {
			return nil, kind.Errorf(kind.Invalid, "containers %s and %s have the same name", list[other].id, c.id)
		}
		if err := c.canCheckpoint(ctx); err != nil {
			return nil, err
		}
		list = append(list, c)
	}
	return list, nil
}

// restorable refuses pods that share with the host, or with each other, what a
// restore cannot give them back: process numbers, sockets, System V objects.
func restorable(config *cri.PodSandboxConfig) error {
	ns := namespaces(config)
	for _, n := range []struct {
		name string
		mode cri.NamespaceMode
	}{{"network", ns.GetNetwork()}, {"PID", ns.GetPid()}, {"IPC", ns.GetIpc()}} {
		if n.mode == cri.NamespaceMode_NODE || n.name == "PID" && n.mode != cri.NamespaceMode_CONTAINER {
			return kind.Errorf(kind.Precondition, "a pod with the %s namespace mode %s cannot be restored", n.name, n.mode)
		}
	}
	if u := ns.GetUsernsOptions(); u != nil && u.Mode == cri.NamespaceMode_POD {
		return kind.Errorf(kind.Precondition, "a pod with a user namespace cannot be restored")
	}
	return nil
}

// noOptions refuses options, of which noded knows none.
func noOptions(options map[string]string) error {
	for key := range options {
		return kind.Errorf(kind.Invalid, "option %.80q is not known; noded has none", key)
	}
	return nil
}

func absolute(what, path string) error {
	if !filepath.IsAbs(path) || filepath.Clean(path) != path || strings.ContainsAny(path, "\x00\n") {
		return kind.Errorf(kind.Invalid, "%s %.300q is not a clean absolute path", what, path)
	}
	return nil
}

func emptyFolder(what, path string) error {
	if err := absolute(what, path); err != nil {
		return err
	}
	st, err := os.Lstat(path)
	if err != nil {
		return kind.Errorf(kind.Invalid, "%s: %w", what, err)
	}
	if !st.IsDir() {
		return kind.Errorf(kind.Invalid, "%s %s is not a folder", what, path)
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if len(entries) > 0 {
		return kind.Errorf(kind.Invalid, "%s %s is not empty", what, path)
	}
	return nil
}

// removeMade deletes what a capture makes in a caller's folder, and nothing else.
func removeMade(dir string) error {
	root, err := os.OpenRoot(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove partial checkpoint: %w", err)
	}
	defer root.Close()
	var errs []error
	for _, name := range []string{checkpoint.ManifestFile, checkpoint.ShmFile, checkpoint.ContainersDir} {
		errs = append(errs, root.RemoveAll(name))
	}
	return errors.Join(errs...)
}
