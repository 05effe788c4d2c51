package builtin

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"noded.dev/noded/internal/kind"
	"noded.dev/noded/internal/namespace"
)

// podInterface is the name inside the pod, as kubelets and probes expect it.
const podInterface = "eth0"

// connect makes the pod's veth pair, one end as a port of the bridge, the
// other inside the pod. A pair that an earlier attempt left is replaced.
func (n *Network) connect(r *record, pod Pod) error {
	if err := n.disconnect(r.Link); err != nil {
		return err
	}
	bridge, err := n.bridge()
	if err != nil {
		return err
	}
	ns, err := os.OpenFile(pod.NetNS, os.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return kind.Errorf(kind.NotFound, "open pod's network namespace: %w", err)
		}
		return fmt.Errorf("open pod's network namespace: %w", err)
	}
	defer ns.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = r.Link
	attrs.MTU = bridge.Attrs().MTU
	attrs.Alias = "pod " + r.ID
	veth := &netlink.Veth{
		LinkAttrs:        attrs,
		PeerName:         podInterface,
		PeerMTU:          uint32(attrs.MTU),
		PeerHardwareAddr: hardwareAddr(r.Addrs[0].Addr().AsSlice()),
		PeerNamespace:    netlink.NsFd(int(ns.Fd())),
	}
	if err := n.host.LinkAdd(veth); err != nil {
		return fmt.Errorf("make veth pair: %w", err)
	}
	// What goes to the pod leaves by the host's end.
	if err := limitRate(n.host, veth, pod.IngressBPS); err != nil {
		return err
	}
	return n.attach(veth, bridge)
}

// bridge finds the bridge, and makes it again if somebody deleted it.
func (n *Network) bridge() (netlink.Link, error) {
	link, err := n.host.LinkByName(n.opts.Bridge)
	if err == nil {
		return link, nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.setUpNode(); err != nil {
		return nil, err
	}
	return n.host.LinkByName(n.opts.Bridge)
}

// attach makes the host's end a port of the bridge and brings it up.
func (n *Network) attach(veth, bridge netlink.Link) error {
	if n.v6 {
		// The port needs no address; without this the kernel gives it a
		// link-local one, and each router advertisement of a pod another.
		if err := sysctl("ipv6/conf/"+veth.Attrs().Name+"/disable_ipv6", "1"); err != nil {
			return err
		}
	}
	if err := n.host.LinkSetMaster(veth, bridge); err != nil {
		return fmt.Errorf("attach to bridge: %w", err)
	}
	// A pod that connects to its own host port is answered through the port it
	// came by, where bridged packets pass the node's firewall (br_netfilter).
	if err := n.host.LinkSetHairpin(veth, true); err != nil {
		return fmt.Errorf("set hairpin: %w", err)
	}
	if err := n.host.LinkSetUp(veth); err != nil {
		return fmt.Errorf("bring %s up: %w", veth.Attrs().Name, err)
	}
	return nil
}

// configure sets up the pod's end from inside.
func (n *Network) configure(r *record, pod Pod) error {
	return namespace.Do(pod.NetNS, func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return fmt.Errorf("open netlink: %w", err)
		}
		defer h.Close()
		link, err := h.LinkByName(podInterface)
		if err != nil {
			return fmt.Errorf("find %s: %w", podInterface, err)
		}
		if err := n.podSysctls(r); err != nil {
			return err
		}
		for _, a := range r.Addrs {
			if err := addAddress(h, link, a); err != nil {
				return err
			}
		}
		if err := limitRate(h, link, pod.EgressBPS); err != nil {
			return err
		}
		if err := h.LinkSetUp(link); err != nil {
			return fmt.Errorf("bring %s up: %w", podInterface, err)
		}
		for _, a := range r.Addrs {
			if err := addDefaultRoute(h, link, a); err != nil {
				return err
			}
		}
		return nil
	})
}

// podSysctls keeps the pod's IPv6 to what was given to it: no address or route
// by router advertisement (CVE-2020-10749), and none at all in an IPv4 pod.
func (n *Network) podSysctls(r *record) error {
	if !n.v6 {
		return nil
	}
	conf := "ipv6/conf/" + podInterface + "/"
	if !hasFamily(r.Addrs, true) {
		return sysctl(conf+"disable_ipv6", "1")
	}
	return errors.Join(
		sysctl(conf+"accept_ra", "0"),
		sysctl(conf+"accept_dad", "0"), // addresses are unique; a second of waiting is saved
	)
}

func addAddress(h *netlink.Handle, link netlink.Link, p netip.Prefix) error {
	addr := &netlink.Addr{IPNet: toIPNet(p)}
	if p.Addr().Is6() {
		addr.Flags = unix.IFA_F_NODAD
	}
	if err := h.AddrAdd(link, addr); err != nil {
		return fmt.Errorf("add address %v: %w", p, err)
	}
	return nil
}

func addDefaultRoute(h *netlink.Handle, link netlink.Link, p netip.Prefix) error {
	gateway := address(p.Masked(), gatewaySlot)
	everything := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	if p.Addr().Is6() {
		everything = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: toIPNet(everything), Gw: net.IP(gateway.AsSlice())}
	if err := h.RouteAdd(route); err != nil {
		return fmt.Errorf("add default route by %v: %w", gateway, err)
	}
	return nil
}

// disconnect deletes an interface of the host, with it its peer in the pod;
// nil if it is gone.
func (n *Network) disconnect(name string) error {
	link, err := n.host.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find interface %s: %w", name, err)
	}
	// ENODEV: the pod's namespace went away meanwhile and took the pair with it.
	if err := n.host.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete interface %s: %w", name, err)
	}
	return nil
}
