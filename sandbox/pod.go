package sandbox

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/internal/kind"
	"noded.dev/noded/runtime"
	"noded.dev/noded/spec"
)

// Pod is one pod sandbox: namespaces, a network, a cgroup and files that its
// containers share. It has no process of its own unless its containers share a
// PID namespace.
type Pod struct {
	id     string
	m      *Manager
	config *cri.PodSandboxConfig // never changed
	paths  podPaths
	log    *logrus.Entry
	busy   chan struct{} // holds the one operation that changes the pod
	initOp chan struct{} // held while its init is started or stopped; taken after busy and a Container's
	stats  sampler

	saving     sync.Mutex // keeps saves in order; taken before timeline, and held across the disk write
	timeline   sync.Mutex // held from a change of state, also of a container, until it is announced; taken before mu
	mu         sync.Mutex // guards rec and containers, for moments; taken before a Container's
	rec        podRecord
	containers map[string]*Container
	initEnded  bool // the init has ended, perhaps before its start was written down

	view atomic.Pointer[podView]
}

// podView is what listing and status show; immutable.
type podView struct {
	state  podState
	item   *cri.PodSandbox
	status *cri.PodSandboxStatus
}

func (m *Manager) newPod(rec podRecord, config *cri.PodSandboxConfig) *Pod {
	meta := config.Metadata
	p := &Pod{
		id: rec.ID, m: m, config: config, paths: m.podPaths(rec.ID), rec: rec,
		busy: make(chan struct{}, 1), initOp: make(chan struct{}, 1), containers: make(map[string]*Container),
		log: m.log.WithFields(logrus.Fields{"pod": rec.ID[:12], "name": meta.GetNamespace() + "/" + meta.GetName()}),
	}
	p.publish()
	return p
}

// RunPod makes and starts a pod and returns its id. A request for a pod that
// is being made joins; for one that runs with the same configuration it
// returns its id.
func (m *Manager) RunPod(ctx context.Context, config *cri.PodSandboxConfig, handlerName string) (string, error) {
	if err := spec.ValidatePod(config); err != nil {
		return "", err
	}
	if err := spec.PodSupported(config, m.opts.Facts); err != nil {
		return "", err
	}
	asked := podResources{config.GetLinux().GetOverhead(), config.GetLinux().GetResources()}
	if err := asked.validate(m.opts.Facts); err != nil {
		return "", err
	}
	handler, err := m.runtime.Handler(handlerName)
	if err != nil {
		return "", err
	}
	if err := m.checkUserNS(config, handler); err != nil {
		return "", err
	}
	if sharedNetwork(config) {
		if err := m.network.Ready(); err != nil {
			return "", kind.Errorf(kind.Unavailable, "network is not ready: %w", err)
		}
	}
	return m.flights.do(ctx, "run "+podKey(config.Metadata), runPodLimit, func(ctx context.Context, at func(string)) (string, error) {
		if p := m.findPod(config.Metadata); p != nil {
			return p.again(config, handlerName)
		}
		p, err := m.addPod(config, handlerName, handler.Handler)
		if err != nil {
			return "", err
		}
		return p.id, p.run(ctx, at)
	})
}

func podKey(meta *cri.PodSandboxMetadata) string {
	return fmt.Sprintf("pod %q %q %q %d", meta.GetNamespace(), meta.GetName(), meta.GetUid(), meta.GetAttempt())
}

func (m *Manager) findPod(meta *cri.PodSandboxMetadata) *Pod {
	for _, p := range m.listPods() {
		if p.view.Load().state.listed() && proto.Equal(p.config.Metadata, meta) {
			return p
		}
	}
	return nil
}

// again answers a request for a pod that exists: the very same one is done.
func (p *Pod) again(config *cri.PodSandboxConfig, handlerName string) (string, error) {
	v := p.view.Load()
	if v.state == podReady && v.item.RuntimeHandler == handlerName && proto.Equal(p.config, config) {
		return p.id, nil
	}
	return "", kind.Errorf(kind.Exists, "pod %s exists as %s (%s) with another configuration or stopped; remove it or use another attempt", podKey(config.Metadata), p.id, v.state)
}

func (m *Manager) addPod(config *cri.PodSandboxConfig, handlerName string, handler runtime.Handler) (*Pod, error) {
	raw, err := encodeMessage(config)
	if err != nil {
		return nil, kind.Wrap(kind.Invalid, err)
	}
	p := m.newPod(podRecord{
		Version: recordVersion, ID: newID(), State: podCreating, CreatedAt: time.Now(), BootID: m.opts.BootID,
		HandlerName: handlerName, Handler: handler, Config: raw,
	}, config)
	m.mu.Lock()
	m.pods[p.id] = p
	m.mu.Unlock()
	return p, nil
}

// update changes the record, saves it and shows it. The change holds in memory
// even if the save fails (a full disk must not stop a pod from ending); those
// who make something check the error.
func (p *Pod) update(change func(*podRecord)) error {
	p.saving.Lock()
	defer p.saving.Unlock()
	rec := p.change(change)
	return saveRecord(p.paths.root, &rec)
}

// change is the part of update that happens in memory.
func (p *Pod) change(change func(*podRecord)) podRecord {
	p.timeline.Lock()
	defer p.timeline.Unlock()
	p.mu.Lock()
	from := p.rec.State
	change(&p.rec)
	p.publish()
	rec := p.rec
	p.mu.Unlock()
	p.announceMove(from, rec.State)
	return rec
}

// markStopped takes a ready pod out of service; in another state it stays.
func (p *Pod) markStopped() error {
	return p.update(func(r *podRecord) {
		if r.State == podReady {
			r.State = podStopped
		}
	})
}

func (p *Pod) record() podRecord {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.rec
}

// publish needs p.mu, or a pod nobody else knows yet.
func (p *Pod) publish() {
	state := cri.PodSandboxState_SANDBOX_NOTREADY
	if p.rec.State == podReady {
		state = cri.PodSandboxState_SANDBOX_READY
	}
	c, created := p.config, p.rec.CreatedAt.UnixNano()
	network := &cri.PodSandboxNetworkStatus{}
	if p.rec.State == podReady {
		for i, ip := range p.rec.IPs {
			if i == 0 {
				network.Ip = ip
			} else {
				network.AdditionalIps = append(network.AdditionalIps, &cri.PodIP{Ip: ip})
			}
		}
	}
	p.view.Store(&podView{
		state: p.rec.State,
		item: &cri.PodSandbox{
			Id: p.id, Metadata: c.Metadata, State: state, CreatedAt: created,
			Labels: c.Labels, Annotations: c.Annotations, RuntimeHandler: p.rec.HandlerName,
		},
		status: &cri.PodSandboxStatus{
			Id: p.id, Metadata: c.Metadata, State: state, CreatedAt: created, Network: network,
			Linux:  &cri.LinuxPodSandboxStatus{Namespaces: &cri.Namespace{Options: c.GetLinux().GetSecurityContext().GetNamespaceOptions()}},
			Labels: c.Labels, Annotations: c.Annotations, RuntimeHandler: p.rec.HandlerName,
		},
	})
}

// list returns the pod's containers.
func (p *Pod) list() []*Container {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Collect(maps.Values(p.containers))
}

// forget drops a pod that is destroyed. Readers of events hear of it if they
// may have known it.
func (p *Pod) forget(known bool) {
	p.timeline.Lock()
	defer p.timeline.Unlock()
	p.m.mu.Lock()
	delete(p.m.pods, p.id)
	p.m.mu.Unlock()
	if known {
		p.announce(p.id, cri.ContainerEventType_CONTAINER_DELETED_EVENT)
	}
}

// isKnown says whether the pod was not destroyed yet.
func (p *Pod) isKnown() bool {
	p.m.mu.RLock()
	defer p.m.mu.RUnlock()
	return p.m.pods[p.id] == p
}

func namespaces(config *cri.PodSandboxConfig) *cri.NamespaceOption {
	if o := config.GetLinux().GetSecurityContext().GetNamespaceOptions(); o != nil {
		return o
	}
	return &cri.NamespaceOption{}
}

func hostNetwork(config *cri.PodSandboxConfig) bool {
	return namespaces(config).Network == cri.NamespaceMode_NODE
}

// sharedNetwork says whether the pod has a network namespace for its containers.
func sharedNetwork(config *cri.PodSandboxConfig) bool {
	return namespaces(config).Network == cri.NamespaceMode_POD
}

// sharedIPC says whether the pod has an IPC namespace, and with it a /dev/shm,
// for its containers.
func sharedIPC(config *cri.PodSandboxConfig) bool {
	return namespaces(config).Ipc == cri.NamespaceMode_POD
}

func hostIPC(config *cri.PodSandboxConfig) bool {
	return namespaces(config).Ipc == cri.NamespaceMode_NODE
}
