package builtin

import (
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"noded.dev/noded/internal/kind"
)

// maxPorts is more than any pod needs and bounds what one pod costs the node.
const maxPorts = 4096

// portKey is one host port of one protocol. An invalid addr stands for all
// addresses of the family.
type portKey struct {
	v6    bool
	proto uint8
	addr  netip.Addr
	port  uint16
}

// binding is what a host port leads to.
type binding struct {
	pod    string
	target netip.AddrPort
}

func protocol(name string) (uint8, bool) {
	switch name {
	case "tcp":
		return unix.IPPROTO_TCP, true
	case "udp":
		return unix.IPPROTO_UDP, true
	case "sctp":
		return unix.IPPROTO_SCTP, true
	}
	return 0, false
}

// checkPorts refuses what cannot be published, and drops repetitions.
func checkPorts(ports []Port, subnets []netip.Prefix) ([]Port, error) {
	if len(ports) > maxPorts {
		return nil, kind.Errorf(kind.Invalid, "%d host ports are more than %d", len(ports), maxPorts)
	}
	var list []Port
	for _, p := range ports {
		p.HostIP = p.HostIP.Unmap().WithZone("")
		if _, ok := protocol(p.Protocol); !ok {
			return nil, kind.Errorf(kind.Invalid, "host port %d: protocol %q is not tcp, udp or sctp", p.HostPort, p.Protocol)
		}
		if p.HostPort == 0 || p.ContainerPort == 0 {
			return nil, kind.Errorf(kind.Invalid, "host port %d to port %d: 0 is not a port", p.HostPort, p.ContainerPort)
		}
		if p.HostIP.IsValid() && !hasFamily(subnets, p.HostIP.Is6()) {
			return nil, kind.Errorf(kind.Invalid, "host port %d: pods have no address of the family of %v", p.HostPort, p.HostIP)
		}
		if p.HostIP == netip.IPv6Loopback() {
			return nil, kind.Errorf(kind.Invalid, "host port %d: the kernel routes nothing from ::1 to a pod", p.HostPort)
		}
		if !slices.Contains(list, p) {
			list = append(list, p)
		}
	}
	return list, nil
}

// bindings are the entries that a pod's ports need, one per family and port.
func bindings(r *record) map[portKey]netip.AddrPort {
	entries := make(map[portKey]netip.AddrPort)
	for _, p := range r.Ports {
		proto, _ := protocol(p.Protocol)
		for _, a := range r.Addrs {
			v6 := a.Addr().Is6()
			if p.HostIP.IsValid() && p.HostIP.Is6() != v6 {
				continue
			}
			key := portKey{v6: v6, proto: proto, port: p.HostPort}
			if p.HostIP.IsValid() && !p.HostIP.IsUnspecified() {
				key.addr = p.HostIP
			}
			entries[key] = netip.AddrPortFrom(a.Addr(), p.ContainerPort)
		}
	}
	return entries
}

// overlaps reports whether some packet could match both: all addresses include
// each one.
func (k portKey) overlaps(o portKey) bool {
	if k.v6 != o.v6 || k.proto != o.proto || k.port != o.port {
		return false
	}
	return !k.addr.IsValid() || !o.addr.IsValid() || k.addr == o.addr
}
