package builtin

import (
	"net/netip"
	"sync"

	"github.com/sirupsen/logrus"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// publish opens a pod's host ports. A client that sent to one before has a
// flow in conntrack that leads nowhere and that each further packet renews.
func (n *Network) publish(r *record) error {
	if len(r.Ports) == 0 {
		return nil
	}
	if err := n.fire.publish(r); err != nil {
		return err
	}
	n.flows.forget(r)
	return nil
}

func (n *Network) withdraw(r *record) error {
	if len(r.Ports) == 0 {
		return nil
	}
	if err := n.fire.withdraw(r); err != nil {
		return err
	}
	n.flows.forget(r)
	return nil
}

// flowEraser deletes what conntrack remembers of pods' UDP host ports. TCP and
// SCTP need none of it: there a new connection makes a new flow. To find the
// flows the kernel walks through its whole table, 10 to 20 ms for each family,
// so that is done for several pods at once and nobody waits for it.
type flowEraser struct {
	log logrus.FieldLogger

	mu      sync.Mutex
	pending flowMatch
	working sync.WaitGroup
	busy    bool
}

// forget asks for the flows of a pod's host ports to be deleted soon.
func (e *flowEraser) forget(r *record) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.pending.include(r) || e.busy {
		return
	}
	e.busy = true
	e.working.Go(e.work)
}

// work erases until nothing is asked for any more.
func (e *flowEraser) work() {
	for {
		e.mu.Lock()
		match := e.pending
		e.pending = flowMatch{}
		if len(match.ports) == 0 {
			e.busy = false
			e.mu.Unlock()
			return
		}
		e.mu.Unlock()
		for family := range match.families {
			// The count is of no interest; flows that end by themselves meanwhile are no error.
			if _, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, match); err != nil {
				e.log.WithError(err).Warn("flows of UDP host ports stay until they time out")
			}
		}
	}
}

// wait returns when all that was asked for is done.
func (e *flowEraser) wait() { e.working.Wait() }

// flowMatch finds UDP flows to host ports, translated or not, and flows that
// their pods answer.
type flowMatch struct {
	addrs    map[netip.Addr]bool
	ports    map[uint16]bool
	families map[netlink.InetFamily]bool
}

// include adds a pod, and reports whether it has a UDP host port.
func (m *flowMatch) include(r *record) bool {
	if m.ports == nil {
		*m = flowMatch{map[netip.Addr]bool{}, map[uint16]bool{}, map[netlink.InetFamily]bool{}}
	}
	found := false
	for _, p := range r.Ports {
		if p.Protocol == "udp" {
			found = true
			m.ports[p.HostPort] = true
		}
	}
	if !found {
		return false
	}
	for _, a := range r.addrs() {
		m.addrs[a] = true
		family := netlink.InetFamily(unix.AF_INET)
		if a.Is6() {
			family = unix.AF_INET6
		}
		m.families[family] = true
	}
	return true
}

// MatchConntrackFlow is the filter's side of netlink.CustomConntrackFilter.
func (m flowMatch) MatchConntrackFlow(f *netlink.ConntrackFlow) bool {
	if f.Forward.Protocol != unix.IPPROTO_UDP {
		return false
	}
	from, _ := netip.AddrFromSlice(f.Reverse.SrcIP)
	return m.ports[f.Forward.DstPort] || m.addrs[from.Unmap()]
}
