package builtin

import (
	"fmt"
	"net/netip"

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
	return n.forgetFlows(r)
}

func (n *Network) withdraw(r *record) error {
	if len(r.Ports) == 0 {
		return nil
	}
	return n.fire.withdraw(r)
}

// forgetFlows deletes what conntrack remembers of a pod's UDP host ports. TCP
// needs none of it: there a new connection makes a new flow.
func (n *Network) forgetFlows(r *record) error {
	m := flowMatch{addrs: map[netip.Addr]bool{}, ports: map[uint16]bool{}}
	for _, p := range r.Ports {
		if p.Protocol == "udp" {
			m.ports[p.HostPort] = true
		}
	}
	if len(m.ports) == 0 {
		return nil
	}
	for _, a := range r.addrs() {
		m.addrs[a] = true
	}
	for _, a := range r.Addrs {
		family := netlink.InetFamily(unix.AF_INET)
		if a.Addr().Is6() {
			family = unix.AF_INET6
		}
		// The count is of no interest; flows that end by themselves meanwhile are no error.
		if _, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, m); err != nil {
			return fmt.Errorf("forget flows: %w", err)
		}
	}
	return nil
}

// flowMatch finds UDP flows to a host port, translated or not, and flows that
// the pod answers.
type flowMatch struct {
	addrs map[netip.Addr]bool
	ports map[uint16]bool
}

// MatchConntrackFlow is the filter's side of netlink.CustomConntrackFilter.
func (m flowMatch) MatchConntrackFlow(f *netlink.ConntrackFlow) bool {
	if f.Forward.Protocol != unix.IPPROTO_UDP {
		return false
	}
	from, _ := netip.AddrFromSlice(f.Reverse.SrcIP)
	return m.ports[f.Forward.DstPort] || m.addrs[from.Unmap()]
}
