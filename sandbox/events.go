package sandbox

import (
	"sync"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// eventQueue is how many events wait for one reader of GetContainerEvents. A
// reader that falls further behind is dropped; the kubelet then relists.
const eventQueue = 4096

// hub hands every event to every reader and never waits for one.
type hub struct {
	mu      sync.Mutex
	readers map[chan *cri.ContainerEventResponse]bool
}

// subscribe returns a channel of the events from now on. It is closed by
// cancel, or when its reader is eventQueue events behind.
func (h *hub) subscribe() (<-chan *cri.ContainerEventResponse, func()) {
	ch := make(chan *cri.ContainerEventResponse, eventQueue)
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.readers == nil {
		h.readers = make(map[chan *cri.ContainerEventResponse]bool)
	}
	h.readers[ch] = true
	return ch, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.drop(ch)
	}
}

// drop needs h.mu.
func (h *hub) drop(ch chan *cri.ContainerEventResponse) {
	if h.readers[ch] {
		delete(h.readers, ch)
		close(ch)
	}
}

func (h *hub) publish(make func() *cri.ContainerEventResponse) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.readers) == 0 {
		return
	}
	e := make()
	for ch := range h.readers {
		select {
		case ch <- e:
		default:
			h.drop(ch)
		}
	}
}

func (h *hub) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for ch := range h.readers {
		h.drop(ch)
	}
}

// Subscribe streams container events with the statuses of the pod and of all
// its containers, as the kubelet's evented PLEG wants them. The channel is
// closed when the reader is too slow, by cancel, and when noded stops.
func (m *Manager) Subscribe() (<-chan *cri.ContainerEventResponse, func()) {
	return m.events.subscribe()
}

// announce tells the readers that something became of the object id (a pod's
// own id stands for its sandbox).
func (m *Manager) announce(p *Pod, id string, what cri.ContainerEventType) {
	m.events.publish(func() *cri.ContainerEventResponse {
		view := p.view.Load()
		e := &cri.ContainerEventResponse{
			ContainerId: id, ContainerEventType: what, CreatedAt: time.Now().UnixNano(),
			PodSandboxStatus: view.status,
		}
		for _, c := range p.list() {
			if v := c.view.Load(); v.state.listed() {
				e.ContainersStatuses = append(e.ContainersStatuses, v.status)
			}
		}
		return e
	})
}
