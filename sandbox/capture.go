package sandbox

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"noded.dev/noded/imagestore/layer"
	"noded.dev/noded/internal/atomicfile"
	"noded.dev/noded/internal/kind"
	"noded.dev/noded/internal/steps"
	"noded.dev/noded/runtime"
	"noded.dev/noded/runtime/criu"
	"noded.dev/noded/sandbox/checkpoint"
)

// capture is a checkpoint under way. Its record, at root/checkpoints/<id>, is
// there for as long as containers may be frozen or files half-written.
type capture struct {
	m          *Manager
	id         string
	home       string // folder of the record
	pod        *Pod
	containers []*Container // by id
	whole      bool         // of a pod, to be restored
	dir        string       // where it is written
	rec        captureRecord
	thaw       func() error // nil: nothing is frozen
	stuck      bool         // thawing failed
}

// captureRecord is what undoing a capture takes.
type captureRecord struct {
	Version int
	ID      string
	BootID  string
	Cgroups []string // that may be frozen
	Dir     string   // what is written there is removed
	Partial string   // an archive that is not complete; "" none
}

func (m *Manager) captures() string { return filepath.Join(m.opts.Root, "checkpoints") }

func (m *Manager) newCapture(p *Pod, containers []*Container) *capture {
	id := newID()
	k := &capture{m: m, id: id, home: filepath.Join(m.captures(), id), pod: p}
	// In one order for all: captures of the same containers wait for each other.
	k.containers = slices.SortedFunc(slices.Values(containers), func(a, b *Container) int { return strings.Compare(a.id, b.id) })
	k.rec = captureRecord{Version: recordVersion, ID: id, BootID: m.opts.BootID}
	for _, c := range k.containers {
		k.rec.Cgroups = append(k.rec.Cgroups, m.cgroups.Dir(c.record().Cgroup))
	}
	return k
}

// run captures, lets the containers go on and does the rest.
func (k *capture) run(ctx context.Context, at func(string), rest ...steps.Step) error {
	for _, c := range k.containers {
		if err := acquire(ctx, c.busy); err != nil {
			return fmt.Errorf("checkpoint %s: an operation on it is under way: %w", c.name(), err)
		}
		defer func() { <-c.busy }()
		if s := c.view.Load().state; s != stateRunning {
			return kind.Errorf(kind.Precondition, "container %s (%s) is %s, not running", c.id, c.name(), s)
		}
	}
	begin := time.Now()
	list := append([]steps.Step{
		{Name: "record", Do: k.record},
		{Name: "freeze", Do: k.freeze},
		{Name: "dump processes", Do: k.dump},
		{Name: "copy files", Do: k.copyFiles},
		{Name: "resume", Do: func(context.Context) error { return k.resume() }},
	}, rest...)
	// From the last step on the next start would not remove it any more.
	list = append(list, steps.Step{Name: "forget", Do: func(context.Context) error { return k.rec.remove(k.m, false) }})
	if err := steps.Run(ctx, "checkpoint", at, list...); err != nil {
		return fmt.Errorf("checkpoint of pod %s: %w", k.pod.name(), errors.Join(err, k.undo()))
	}
	k.pod.log.WithField("took", time.Since(begin).Round(time.Millisecond).String()).Info("checkpoint is written")
	return nil
}

func (k *capture) record(context.Context) error {
	if err := os.MkdirAll(k.home, 0o700); err != nil {
		return err
	}
	return saveRecord(k.home, &k.rec)
}

// freeze stops all containers before any is captured.
func (k *capture) freeze(ctx context.Context) (err error) {
	ids := make([]string, len(k.containers))
	for i, c := range k.containers {
		ids[i] = c.id
	}
	k.thaw, err = k.m.runtime.Freeze(ctx, ids)
	return err
}

// folder is where a container's files go.
func (k *capture) folder(c *Container) string {
	if k.whole {
		return filepath.Join(k.dir, checkpoint.ContainersDir, c.id)
	}
	return k.dir
}

func (k *capture) dump(ctx context.Context) error {
	for _, c := range k.containers {
		images := filepath.Join(k.folder(c), checkpoint.ImagesDir)
		if err := os.MkdirAll(images, 0o700); err != nil {
			return err
		}
		if err := k.m.runtime.Checkpoint(ctx, runtime.CheckpointRequest{ID: c.id, Images: images}); err != nil {
			return fmt.Errorf("%s: %w", c.name(), err)
		}
	}
	return nil
}

// copyFiles takes what the frozen containers have written, and how they were made.
func (k *capture) copyFiles(ctx context.Context) error {
	for _, c := range k.containers {
		dir := k.folder(c)
		err := writeNew(filepath.Join(dir, checkpoint.RootFSFile), func(w io.Writer) error { return k.m.images.Diff(ctx, c.id, w) })
		if err != nil {
			return fmt.Errorf("%s: %w", c.name(), err)
		}
		if err := c.describe(dir); err != nil {
			return err
		}
	}
	if !k.whole || !sharedIPC(k.pod.config) {
		return nil
	}
	return writeNew(filepath.Join(k.dir, checkpoint.ShmFile), func(w io.Writer) error { return layer.Pack(ctx, k.pod.paths.shm(), w) })
}

// describe writes the container's OCI spec, and a description in the form that
// tools for checkpoint archives read.
func (c *Container) describe(dir string) error {
	spec, err := os.ReadFile(filepath.Join(c.paths.bundle(), "config.json"))
	if err != nil {
		return err
	}
	rec := c.record()
	text, err := json.Marshal(map[string]any{
		"id": c.id, "name": c.config.Metadata.GetName(), "rootfsImage": rec.ImageID, "rootfsImageRef": rec.ImageID,
		"rootfsImageName": rec.ImageName, "runtime": rec.Handler.Name, "createdTime": rec.CreatedAt, "checkpointedTime": time.Now(),
	})
	if err != nil {
		return fmt.Errorf("encode description: %w", err)
	}
	return errors.Join(os.WriteFile(filepath.Join(dir, checkpoint.SpecFile), spec, 0o600),
		os.WriteFile(filepath.Join(dir, checkpoint.ConfigFile), text, 0o600))
}

func writeNew(path string, write func(io.Writer) error) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(write(f), f.Close())
}

// resume lets the containers go on. If the shim died, they are thawed from
// here; an error says then that they were perhaps not frozen all the time.
func (k *capture) resume() error {
	if k.thaw == nil {
		return nil
	}
	thaw := k.thaw
	k.thaw = nil
	err := thaw()
	if err == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), destroyLimit)
	defer cancel()
	e := k.rec.thaw(ctx, k.m)
	k.stuck = e != nil
	return errors.Join(err, e)
}

func (r captureRecord) thaw(ctx context.Context, m *Manager) error {
	if err := criu.AwaitEnd(ctx, r.Dir); err != nil {
		return err
	}
	var errs []error
	for _, dir := range r.Cgroups {
		errs = append(errs, m.cgroups.Thaw(dir))
	}
	return errors.Join(errs...)
}

// undo lets the containers go on and removes all that was written.
func (k *capture) undo() error {
	err := k.resume()
	if !k.stuck {
		err = k.rec.remove(k.m, true)
	}
	if err != nil {
		k.m.flights.begin("undo checkpoint "+k.id, func(ctx context.Context) { k.m.undoCapture(ctx, k.rec) })
	}
	return err
}

// remove removes the record and, if the capture failed, all that was written.
func (r captureRecord) remove(m *Manager, failed bool) error {
	var errs []error
	home := filepath.Join(m.captures(), r.ID)
	if r.Partial != "" {
		if err := os.Remove(r.Partial); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	} else if failed {
		errs = append(errs, removeMade(r.Dir))
	}
	if err := errors.Join(errs...); err != nil {
		return err // the record stays, for the next start
	}
	return os.RemoveAll(home)
}

// writeArchive packs the capture's files as one tar.
func (k *capture) writeArchive(ctx context.Context) error {
	f, err := os.OpenFile(k.rec.Partial, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	w := tar.NewWriter(contextWriter{ctx, f})
	return errors.Join(w.AddFS(os.DirFS(k.dir)), w.Close(), f.Sync(), f.Close())
}

type contextWriter struct {
	ctx context.Context
	w   io.Writer
}

func (c contextWriter) Write(b []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.w.Write(b)
}

// publish gives an archive its name, which nothing else must have.
func publish(partial, location string) error {
	err := unix.Renameat2(unix.AT_FDCWD, partial, unix.AT_FDCWD, location, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EEXIST) {
		return kind.Errorf(kind.Exists, "location %s exists", location)
	}
	if err != nil {
		return fmt.Errorf("rename to %s: %w", location, err)
	}
	return atomicfile.SyncDir(filepath.Dir(location))
}

// seal writes the manifest.
func (k *capture) seal(ctx context.Context) error {
	key, err := checkpoint.Key(k.m.keyFile())
	if err != nil {
		return err
	}
	m := checkpoint.Manifest{Version: checkpoint.Version, CreatedAt: time.Now(), Arch: goruntime.GOARCH}
	if m.Pod, err = encodeMessage(k.pod.config); err != nil {
		return err
	}
	for _, c := range k.containers {
		rec := c.record()
		m.Containers = append(m.Containers, checkpoint.Container{
			Name: c.config.Metadata.GetName(), ID: c.id, ImageID: rec.ImageID, Config: rec.Config,
		})
	}
	return checkpoint.Seal(ctx, k.dir, m, key)
}

// keyFile is in the captures' folder, which only root can enter.
func (m *Manager) keyFile() string { return filepath.Join(m.opts.Root, "checkpoint.key") }

// undoCaptures lets containers go on that a crash left frozen, and removes
// what was half-written.
func (m *Manager) undoCaptures(context.Context) error {
	return loadRecords(m.captures(), m.quarantine(), func(id string, b []byte) error {
		var rec captureRecord
		if err := json.Unmarshal(b, &rec); err != nil {
			return err
		}
		if rec.Version != recordVersion || rec.ID != id {
			return fmt.Errorf("record has version %d and id %.64q, want %d and %q", rec.Version, rec.ID, recordVersion, id)
		}
		m.flights.begin("undo checkpoint "+id, func(ctx context.Context) { m.undoCapture(ctx, rec) })
		return nil
	}, func(id string, err error) {
		m.log.WithError(err).WithField("id", id).Error("checkpoint record cannot be read, moved to " + m.quarantine())
	})
}

// undoCapture tries until it succeeds: containers may be frozen.
func (m *Manager) undoCapture(ctx context.Context, rec captureRecord) {
	log := m.log.WithField("checkpoint", rec.ID)
	for wait := retryFirst; ; wait = min(2*wait, retryLast) {
		err := rec.undo(ctx, m)
		if err == nil {
			log.Warn("a checkpoint was cut off and is undone")
			return
		}
		log.WithError(err).Error("a checkpoint that was cut off is not undone yet, its containers may be frozen")
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return // the next start goes on
		}
	}
}

func (r captureRecord) undo(ctx context.Context, m *Manager) error {
	ctx, cancel := context.WithTimeout(ctx, destroyLimit)
	defer cancel()
	if r.BootID == m.opts.BootID {
		if err := r.thaw(ctx, m); err != nil {
			return err
		}
	}
	return r.remove(m, true)
}
