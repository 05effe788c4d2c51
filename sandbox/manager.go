// Package sandbox is the core of noded: pods and containers, their states, the
// order of the steps that make and destroy them, their durable records, their
// events, and their recovery when noded starts again.
//
// A Manager finds a Pod or Container; the noun does the work. Listing and
// status read immutable views and never wait for anything.
package sandbox

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/internal/cgroup"
	"noded.dev/noded/internal/feed"
	"noded.dev/noded/internal/hostpath"
	"noded.dev/noded/internal/kind"
	"noded.dev/noded/runtime"
	"noded.dev/noded/spec"
)

// Options are what a Manager is told of this node.
type Options struct {
	Root   string // durable: records and bundles
	State  string // gone after a reboot: namespaces, hosts files, shm
	BootID string // /proc/sys/kernel/random/boot_id

	Facts         spec.Facts
	SystemdCgroup bool
	CgroupParent  string   // for pods whose request names none: "/noded"
	InitBinary    string   // the noded binary, pid 1 of a shared PID namespace
	ShmSize       int64    // bytes of a pod's /dev/shm
	CDISpecDirs   []string // folders of CDI specifications, later ones before earlier
	HostPaths     *hostpath.Resolver
	Log           *logrus.Entry
}

// Manager holds the node's pods and containers.
type Manager struct {
	opts    Options
	images  Images
	network Network
	runtime Runtime
	cgroups *cgroup.Host
	log     *logrus.Entry

	hostPaths *hostpath.Resolver

	mu         sync.RWMutex // guards the two maps, and is never held across I/O
	pods       map[string]*Pod
	containers map[string]*Container

	noUserNS error // why no pod can have a user namespace of its own; nil: some can

	warned    sync.Map // keys of spec.Warning that were logged
	flights   flights  // every operation under way, also those of noded's own
	events    *feed.Feed[*cri.ContainerEventResponse]
	clock     clock
	measuring chan struct{} // holds the measurements of writable layers under way
	loop      sync.WaitGroup
	stop      chan struct{}
}

// Deps are the parts that a Manager works with.
type Deps struct {
	Images  Images
	Network Network
	Runtime Runtime
	Cgroups *cgroup.Host
}

// Open loads every record, finishes or undoes what a crash cut off, and begins
// to follow exits. It returns when every pod that a kubelet was told of is
// listed truthfully.
func Open(ctx context.Context, opts Options, deps Deps) (*Manager, error) {
	m := &Manager{
		opts: opts, images: deps.Images, network: deps.Network, runtime: deps.Runtime, cgroups: deps.Cgroups, log: opts.Log,
		pods: make(map[string]*Pod), containers: make(map[string]*Container), stop: make(chan struct{}),
		events: newEvents(), measuring: make(chan struct{}, layersAtOnce), hostPaths: opts.HostPaths,
	}
	if m.noUserNS = userNSProblem(deps.Images, opts.Root); m.noUserNS != nil {
		m.log.WithError(m.noUserNS).Warn("pods cannot have user namespaces of their own")
	}
	m.flights.panicked = func(stack string) { m.log.WithField("stack", stack).Error("operation panicked") }
	if err := m.load(); err != nil {
		return nil, err
	}
	// From here on, since settling a container may wait for its end.
	m.loop.Go(m.followExits)
	if err := m.recover(ctx); err != nil {
		m.Close()
		return nil, err
	}
	return m, nil
}

// Close ends the operations under way, leaving every container as it is.
func (m *Manager) Close() {
	close(m.stop)
	m.loop.Wait()
	m.flights.close()
	m.hostPaths.Close()
	m.events.Close()
}

func (m *Manager) followExits() {
	for {
		select {
		case exit, ok := <-m.runtime.Exits():
			if !ok {
				return
			}
			m.exited(exit)
		case <-m.stop:
			return
		}
	}
}

// exited hands an exit to whom it belongs: a container, or a pod's init.
func (m *Manager) exited(exit runtime.Exit) {
	m.mu.RLock()
	c, p := m.containers[exit.ID], m.pods[exit.ID]
	m.mu.RUnlock()
	switch {
	case c != nil:
		c.exited(exit)
	case p != nil:
		p.initExited(exit)
	}
}

func newID() string {
	var b [32]byte
	rand.Read(b[:]) // never fails (crypto/rand)
	return hex.EncodeToString(b[:])
}

// pod finds a pod that is listed, by id or unambiguous prefix.
func (m *Manager) pod(id string) (*Pod, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return find(m.pods, id, "pod", func(p *Pod) bool { return p.view.Load().state.listed() })
}

// container finds a container that is listed, by id or unambiguous prefix.
func (m *Manager) container(id string) (*Container, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return find(m.containers, id, "container", func(c *Container) bool { return c.view.Load().state.listed() })
}

// maxID bounds ids in requests; noded's own have 64 characters.
const maxID = 128

func find[T any](all map[string]T, id, what string, listed func(T) bool) (found T, err error) {
	if v, ok := all[id]; ok && listed(v) {
		return v, nil
	}
	if id == "" || len(id) > maxID {
		return found, kind.Errorf(kind.NotFound, "no %s has an id of %d characters", what, len(id))
	}
	n := 0
	for key, v := range all {
		if strings.HasPrefix(key, id) && listed(v) {
			found = v
			n++
		}
	}
	switch n {
	case 0:
		return found, kind.Errorf(kind.NotFound, "no %s %q", what, id)
	case 1:
		return found, nil
	}
	var none T
	return none, kind.Errorf(kind.Invalid, "%q is the beginning of %d %s ids, give more of it", id, n, what)
}

// ListPods returns the pods that pass the filter, oldest first.
func (m *Manager) ListPods(filter *cri.PodSandboxFilter) []*cri.PodSandbox {
	out := []*cri.PodSandbox{}
	for _, p := range m.listPods() {
		v := p.view.Load()
		if !v.state.listed() || !matchID(filter.GetId(), p.id) || !matchLabels(filter.GetLabelSelector(), v.item.Labels) {
			continue
		}
		if filter.GetState() != nil && filter.State.State != v.item.State {
			continue
		}
		out = append(out, v.item)
	}
	slices.SortFunc(out, func(a, b *cri.PodSandbox) int {
		return cmp.Or(cmp.Compare(a.CreatedAt, b.CreatedAt), strings.Compare(a.Id, b.Id))
	})
	return out
}

// ListContainers returns the containers that pass the filter, oldest first.
func (m *Manager) ListContainers(filter *cri.ContainerFilter) []*cri.Container {
	out := []*cri.Container{}
	for _, c := range m.listContainers() {
		v := c.view.Load()
		if !v.state.listed() || !matchID(filter.GetId(), c.id) || !matchID(filter.GetPodSandboxId(), c.pod.id) || !matchLabels(filter.GetLabelSelector(), v.item.Labels) {
			continue
		}
		if filter.GetState() != nil && filter.State.State != v.item.State {
			continue
		}
		out = append(out, v.item)
	}
	slices.SortFunc(out, func(a, b *cri.Container) int {
		return cmp.Or(cmp.Compare(a.CreatedAt, b.CreatedAt), strings.Compare(a.Id, b.Id))
	})
	return out
}

func (m *Manager) listPods() []*Pod {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return slices.Collect(maps.Values(m.pods))
}

func (m *Manager) listContainers() []*Container {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return slices.Collect(maps.Values(m.containers))
}

func matchID(want, id string) bool { return want == "" || strings.HasPrefix(id, want) }

func matchLabels(want, have map[string]string) bool {
	for k, v := range want {
		if got, ok := have[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// Status is what a node's conditions are made of.
type Status struct {
	RuntimeError   error                 // nil: pods can run
	NetworkError   error                 // nil: pods with a network of their own can run
	Handlers       []runtime.HandlerInfo // what they can do on this node
	DefaultHandler string
}

// UserNamespaces says whether pods can have user namespaces of their own with
// one handler at least.
func (s Status) UserNamespaces() bool {
	return slices.ContainsFunc(s.Handlers, func(h runtime.HandlerInfo) bool { return h.Usable && h.UserNS })
}

// Status reports what was last seen, at once.
func (m *Manager) Status() Status {
	s := Status{NetworkError: m.network.Ready(), Handlers: m.runtime.Handlers()}
	for i := range s.Handlers {
		s.Handlers[i].UserNS = s.Handlers[i].UserNS && m.noUserNS == nil
	}
	def, err := m.runtime.Handler("")
	switch {
	case err != nil:
		s.RuntimeError = err
	case !def.Usable:
		s.RuntimeError = kind.Errorf(kind.Unavailable, "runtime %s: %s", def.Path, def.Problem)
	}
	s.DefaultHandler = def.Name
	return s
}

// SetPodCIDR hands the node's pod address ranges to the network.
func (m *Manager) SetPodCIDR(cidrs []string) error { return m.network.SetPodCIDR(cidrs) }

// CgroupDriver is what RuntimeConfig tells the kubelet.
func (m *Manager) CgroupDriver() cri.CgroupDriver {
	if m.opts.SystemdCgroup {
		return cri.CgroupDriver_SYSTEMD
	}
	return cri.CgroupDriver_CGROUPFS
}

// warnOnce logs each kind of warning once in the daemon's life: they tell of
// the node or the image, and would else repeat with every container.
func (m *Manager) warnOnce(log *logrus.Entry, warnings []spec.Warning) {
	for _, w := range warnings {
		if _, again := m.warned.LoadOrStore(w.Key, true); !again {
			log.Warn(w.Text)
		}
	}
}

// acquire takes a one-place semaphore, or gives up with ctx.
func acquire(ctx context.Context, busy chan struct{}) error {
	select {
	case busy <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Limits of operations, beyond any deadline of their callers. The kubelet
// gives RunPodSandbox 4 minutes and the others 2; a retry then joins.
const (
	runPodLimit  = 4 * time.Minute
	createLimit  = 4 * time.Minute
	startLimit   = 2 * time.Minute
	destroyLimit = 2 * time.Minute
)
