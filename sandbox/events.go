package sandbox

import (
	"cmp"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/internal/feed"
)

// Events is what one reader of GetContainerEvents reads.
type Events = feed.Reader[*cri.ContainerEventResponse]

// eventLimits bound what waits for one reader of events; one that falls
// further behind is dropped, and lists again. Bytes are encoded: a node that
// starts a hundred pods at once makes some four hundred events of ten
// kilobytes.
var eventLimits = feed.Limits{Values: 4096, Bytes: 64 << 20}

func newEvents() *feed.Feed[*cri.ContainerEventResponse] {
	return feed.New(eventLimits, func(e *cri.ContainerEventResponse) int { return proto.Size(e) })
}

// Subscribe streams container events with the statuses of the pod and of all
// its containers, as the kubelet's evented PLEG wants them. The caller must
// close the reader.
func (m *Manager) Subscribe() *Events { return m.events.Subscribe() }

// clock gives times in nanoseconds that never repeat or go back, whatever is
// done to the machine's. The kubelet orders events and statuses by them, and
// discards what is older than what it has.
type clock struct{ last atomic.Int64 }

func (c *clock) now() int64 {
	for {
		last := c.last.Load()
		now := max(time.Now().UnixNano(), last+1)
		if c.last.CompareAndSwap(last, now) {
			return now
		}
	}
}

// announce tells the readers that something became of the object id (a pod's
// own id stands for its sandbox). It needs p.timeline, held since before the
// change: so the statuses in the event are those at its moment, and events come
// in the order of the changes.
func (p *Pod) announce(id string, what cri.ContainerEventType) {
	p.m.events.Publish(func() *cri.ContainerEventResponse {
		return &cri.ContainerEventResponse{
			ContainerId: id, ContainerEventType: what, CreatedAt: p.m.clock.now(),
			PodSandboxStatus: p.view.Load().status, ContainersStatuses: p.containerStatuses(),
		}
	})
}

// containerStatuses are those of the pod's containers that a kubelet may see,
// newest first: the kubelet with EventedPLEG takes the first of a name, without
// sorting, for the one that is there now.
func (p *Pod) containerStatuses() []*cri.ContainerStatus {
	var list []*cri.ContainerStatus
	for _, c := range p.list() {
		if v := c.view.Load(); v.state.listed() {
			list = append(list, v.status)
		}
	}
	slices.SortFunc(list, func(a, b *cri.ContainerStatus) int {
		return cmp.Or(cmp.Compare(b.CreatedAt, a.CreatedAt), strings.Compare(a.Id, b.Id))
	})
	return list
}

// announceMove announces what a pod's change of state means to a kubelet,
// which takes a sandbox for a container. It needs p.timeline.
func (p *Pod) announceMove(from, to podState) {
	switch {
	case from == podCreating && to == podReady:
		p.announce(p.id, cri.ContainerEventType_CONTAINER_CREATED_EVENT)
		p.announce(p.id, cri.ContainerEventType_CONTAINER_STARTED_EVENT)
	case from == podReady && to != podReady:
		p.announce(p.id, cri.ContainerEventType_CONTAINER_STOPPED_EVENT)
	}
}

// announceMove announces what a container's change of state means. It needs
// the pod's timeline.
func (c *Container) announceMove(from, to containerState) {
	switch {
	case from == to:
	case to == stateCreated:
		c.pod.announce(c.id, cri.ContainerEventType_CONTAINER_CREATED_EVENT)
	case to == stateRunning:
		c.pod.announce(c.id, cri.ContainerEventType_CONTAINER_STARTED_EVENT)
	case to == stateExited:
		c.pod.announce(c.id, cri.ContainerEventType_CONTAINER_STOPPED_EVENT)
	}
}
