package sandbox

import (
	"encoding/json"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/sirupsen/logrus"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/internal/kind"
	"noded.dev/noded/runtime"
)

// Container is one container of a pod.
type Container struct {
	id         string
	m          *Manager
	pod        *Pod
	config     *cri.ContainerConfig // never changed
	paths      containerPaths
	log        *logrus.Entry
	busy       chan struct{} // holds the one operation that makes, starts or removes it
	stats      sampler
	layerUsage layerUsage
	ended      chan struct{} // closed when its end is known
	asked      atomic.Bool   // the stop signal was sent; a repeated stop only waits

	saving sync.Mutex // keeps saves in order; taken before the pod's timeline, and held across the disk write
	mu     sync.Mutex // guards rec and early, for moments
	rec    containerRecord
	early  *runtime.Exit // an exit that came before its creation was written down

	view atomic.Pointer[containerView]
}

// containerView is what listing and status show; immutable.
type containerView struct {
	state  containerState
	item   *cri.Container
	status *cri.ContainerStatus
}

func (m *Manager) newContainer(p *Pod, rec containerRecord, config *cri.ContainerConfig) *Container {
	c := &Container{
		id: rec.ID, m: m, pod: p, config: config, paths: m.containerPaths(rec.ID), rec: rec,
		busy: make(chan struct{}, 1), ended: make(chan struct{}),
		log: p.log.WithFields(logrus.Fields{"container": rec.ID[:12], "container_name": config.Metadata.GetName()}),
	}
	if rec.State == stateExited {
		c.markEnded()
	}
	c.publish()
	return c
}

// add makes the container known to its pod and the manager, unless the pod is
// not ready or holds another of the same name and attempt.
func (c *Container) add() error {
	p := c.pod
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.rec.State != podReady {
		return kind.Errorf(kind.Precondition, "pod %s is %s, containers are created in a ready one", p.id, p.rec.State)
	}
	p.containers[c.id] = c
	p.m.mu.Lock()
	p.m.containers[c.id] = c
	p.m.mu.Unlock()
	return nil
}

// forget drops a container that is destroyed. Readers of events hear of it if
// they may have known it.
func (c *Container) forget(known bool) {
	c.pod.timeline.Lock()
	defer c.pod.timeline.Unlock()
	c.pod.mu.Lock()
	delete(c.pod.containers, c.id)
	c.pod.mu.Unlock()
	c.m.mu.Lock()
	delete(c.m.containers, c.id)
	c.m.mu.Unlock()
	if known {
		c.pod.announce(c.id, cri.ContainerEventType_CONTAINER_DELETED_EVENT)
	}
}

// isKnown says whether the container was not destroyed yet.
func (c *Container) isKnown() bool {
	c.m.mu.RLock()
	defer c.m.mu.RUnlock()
	return c.m.containers[c.id] == c
}

func (c *Container) name() string {
	return fmt.Sprintf("%s of pod %s", c.config.Metadata.GetName(), c.pod.name())
}

// on moves the container by an event, lets change note what came with it,
// saves the record and shows it. As with pods, the truth in memory does not
// wait for a disk that is full.
func (c *Container) on(event containerEvent, change func(*containerRecord)) (moved bool, err error) {
	c.saving.Lock()
	defer c.saving.Unlock()
	rec, moved, err := c.move(event, change)
	if err != nil || !moved {
		return false, err
	}
	return true, saveRecord(c.paths.root, &rec)
}

// move is the part of on that happens in memory, and is announced.
func (c *Container) move(event containerEvent, change func(*containerRecord)) (rec containerRecord, moved bool, err error) {
	c.pod.timeline.Lock()
	defer c.pod.timeline.Unlock()
	from := c.view.Load().state
	if rec, moved, err = c.moveQuietly(event, change); moved {
		c.announceMove(from, rec.State)
	}
	return rec, moved, err
}

func (c *Container) moveQuietly(event containerEvent, change func(*containerRecord)) (rec containerRecord, moved bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	before := c.rec.State
	state, ok := before.next(event)
	if !ok {
		return rec, false, kind.Wrap(kind.Precondition, fmt.Errorf("%s: %w", c.name(), illegal(before, event)))
	}
	if state == stateRemoving && event == eventExit && c.rec.FinishedAt.IsZero() {
		// Noted for the case that the removal fails and it is listed again.
		change(&c.rec)
		c.markEnded()
	}
	if state == before && event != eventStart {
		return rec, false, nil
	}
	c.rec.State = state
	if change != nil {
		change(&c.rec)
	}
	c.publish()
	if state == stateExited {
		c.markEnded()
	}
	return c.rec, true, nil
}

// markEnded wakes those who wait for the end; it needs c.mu or a container
// nobody else knows yet.
func (c *Container) markEnded() {
	select {
	case <-c.ended:
	default:
		close(c.ended)
	}
}

// note changes the record without moving the state.
func (c *Container) note(change func(*containerRecord)) error {
	c.saving.Lock()
	defer c.saving.Unlock()
	c.mu.Lock()
	change(&c.rec)
	c.publish()
	rec := c.rec
	c.mu.Unlock()
	return saveRecord(c.paths.root, &rec)
}

func (c *Container) record() containerRecord {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rec
}

// request is what the runtime was, or will be, asked to create.
func (c *Container) request() runtime.CreateRequest {
	rec := c.record()
	return runtime.CreateRequest{
		ID: c.id, Runtime: rec.Handler, Bundle: c.paths.bundle(), LogPath: rec.LogPath,
		Terminal: c.config.Tty, Stdin: c.config.Stdin, StdinOnce: c.config.StdinOnce,
		CgroupsDir: c.m.cgroups.Dir(rec.Cgroup), Restore: c.fromCheckpoint(rec),
	}
}

func criState(s containerState) cri.ContainerState {
	switch s {
	case stateCreated, stateStarting:
		return cri.ContainerState_CONTAINER_CREATED
	case stateRunning:
		return cri.ContainerState_CONTAINER_RUNNING
	case stateExited:
		return cri.ContainerState_CONTAINER_EXITED
	}
	return cri.ContainerState_CONTAINER_UNKNOWN
}

// publish needs c.mu, or a container nobody else knows yet.
func (c *Container) publish() {
	r, config := &c.rec, c.config
	image := &cri.ImageSpec{Image: r.ImageName, UserSpecifiedImage: config.Image.GetUserSpecifiedImage(), Annotations: config.Image.GetAnnotations()}
	status := &cri.ContainerStatus{
		Id: c.id, Metadata: config.Metadata, State: criState(r.State), CreatedAt: r.CreatedAt.UnixNano(),
		Image: image, ImageRef: r.ImageID, ImageId: r.ImageID, ExitCode: int32(r.ExitCode), Reason: r.Reason, Message: r.Message,
		Labels: config.Labels, Annotations: config.Annotations, Mounts: config.Mounts, LogPath: r.LogPath,
		Resources: c.resources(), User: criUser(r.User), StopSignal: r.StopSignalName,
	}
	if !r.StartedAt.IsZero() && r.State != stateStarting {
		status.StartedAt = r.StartedAt.UnixNano()
	}
	if !r.FinishedAt.IsZero() {
		status.FinishedAt = r.FinishedAt.UnixNano()
	}
	c.view.Store(&containerView{
		state: r.State,
		item: &cri.Container{
			Id: c.id, PodSandboxId: c.pod.id, Metadata: config.Metadata, Image: image, ImageRef: r.ImageID, ImageId: r.ImageID,
			State: status.State, CreatedAt: status.CreatedAt, Labels: config.Labels, Annotations: config.Annotations,
		},
		status: status,
	})
}

// resources are what the kernel enforces, or, where noded cannot see that,
// what was asked for; needs c.mu or a new container.
func (c *Container) resources() *cri.ContainerResources {
	linux := c.config.GetLinux().GetResources()
	for _, raw := range []json.RawMessage{c.rec.Resources, c.rec.Figures} {
		later := new(cri.LinuxContainerResources)
		if len(raw) > 0 && decodeMessage(raw, later) == nil {
			linux = later
		}
	}
	if linux == nil {
		return nil
	}
	return &cri.ContainerResources{Linux: linux}
}
