package builtin

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"noded.dev/noded/internal/kind"
)

const defaultMTU = 1500

func hasIPv6() bool {
	_, err := os.Stat("/proc/sys/net/ipv6")
	return err == nil
}

// setUpNode makes bridge, rules and sysctls.
func (n *Network) setUpNode() error {
	subnets := n.allSubnets()
	if err := n.checkOverlap(subnets); err != nil {
		return err
	}
	bridge, err := n.ensureBridge()
	if err != nil {
		return err
	}
	if err := n.fire.install(subnets); err != nil {
		return err
	}
	if err := n.bridgeSysctls(); err != nil {
		return err
	}
	for _, s := range subnets {
		if err := n.ensureGateway(bridge, s); err != nil {
			return err
		}
	}
	if err := n.host.LinkSetUp(bridge); err != nil {
		return fmt.Errorf("bring bridge %s up: %w", n.opts.Bridge, err)
	}
	return enableForwarding(n.v6 && hasFamily(subnets, true))
}

func hasFamily(subnets []netip.Prefix, v6 bool) bool {
	for _, s := range subnets {
		if s.Addr().Is6() == v6 {
			return true
		}
	}
	return false
}

// checkOverlap refuses a subnet that the node reaches elsewhere: pods would
// cut the node off from it.
func (n *Network) checkOverlap(subnets []netip.Prefix) error {
	links, err := n.host.LinkList()
	if err != nil {
		return fmt.Errorf("list interfaces: %w", err)
	}
	names := map[int]string{}
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	routes, err := n.host.RouteList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		name := names[r.LinkIndex]
		if r.Dst == nil || name == "" || name == n.opts.Bridge {
			continue
		}
		dst, ok := toPrefix(r.Dst)
		if !ok || dst.Bits() == 0 {
			continue
		}
		for _, s := range subnets {
			if s.Overlaps(dst) {
				return kind.Errorf(kind.Precondition, "network %s: subnet %v overlaps %v, which this node reaches through %s", n.opts.Bridge, s, dst, name)
			}
		}
	}
	return nil
}

func toPrefix(n *net.IPNet) (netip.Prefix, bool) {
	a, ok := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(a.Unmap(), bits), ok
}

func toIPNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func (n *Network) ensureBridge() (netlink.Link, error) {
	name := n.opts.Bridge
	link, err := n.host.LinkByName(name)
	if err == nil {
		if link.Type() != "bridge" {
			return nil, kind.Errorf(kind.Precondition, "interface %s exists and is no bridge but a %s", name, link.Type())
		}
		return link, nil
	}
	if !errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil, fmt.Errorf("find bridge %s: %w", name, err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	attrs.MTU = n.mtu()
	// Without an address of its own, a bridge takes the lowest of its ports',
	// and pods lose their gateway when that port goes.
	attrs.HardwareAddr = hardwareAddr([]byte(name))
	// Snooping without a querier on the network loses IPv6 neighbour discovery.
	snooping := false
	bridge := &netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snooping}
	if err := n.host.LinkAdd(bridge); err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, fmt.Errorf("make bridge %s: %w", name, err)
	}
	return n.host.LinkByName(name)
}

// hardwareAddr makes a locally administered unicast address.
func hardwareAddr(seed []byte) net.HardwareAddr {
	sum := sha256.Sum256(seed)
	return net.HardwareAddr{0x0a, 0x6e, sum[0], sum[1], sum[2], sum[3]}
}

// mtu is the configured one, or that of the interface that leads out: larger
// packets would have to be fragmented there.
func (n *Network) mtu() int {
	if n.opts.MTU > 0 {
		return n.opts.MTU
	}
	routes, err := n.host.RouteList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return defaultMTU
	}
	for _, r := range routes {
		if r.Dst != nil {
			if ones, _ := r.Dst.Mask.Size(); ones != 0 {
				continue
			}
		}
		if link, err := n.host.LinkByIndex(r.LinkIndex); err == nil {
			return link.Attrs().MTU
		}
	}
	return defaultMTU
}

func (n *Network) ensureGateway(bridge netlink.Link, subnet netip.Prefix) error {
	gateway := netip.PrefixFrom(address(subnet, gatewaySlot), subnet.Bits())
	addr := &netlink.Addr{IPNet: toIPNet(gateway)}
	if gateway.Addr().Is6() {
		addr.Flags = unix.IFA_F_NODAD
	}
	if err := n.host.AddrAdd(bridge, addr); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("give %v to bridge %s: %w", gateway, n.opts.Bridge, err)
	}
	return nil
}

// removeStrays deletes ports of the bridge that are named like a pod's and
// belong to none.
func (n *Network) removeStrays() error {
	bridge, err := n.host.LinkByName(n.opts.Bridge)
	if err != nil {
		return fmt.Errorf("find bridge %s: %w", n.opts.Bridge, err)
	}
	links, err := n.host.LinkList()
	if err != nil {
		return fmt.Errorf("list interfaces: %w", err)
	}
	mine := map[string]bool{}
	for _, r := range n.pods {
		mine[r.Link] = true
	}
	var errs []error
	for _, l := range links {
		a := l.Attrs()
		if a.MasterIndex == bridge.Attrs().Index && strings.HasPrefix(a.Name, linkPrefix) && !mine[a.Name] {
			errs = append(errs, n.disconnect(a.Name))
		}
	}
	return errors.Join(errs...)
}

// bridgeSysctls sets what holds for the bridge alone.
func (n *Network) bridgeSysctls() error {
	if !n.v6 {
		return nil
	}
	conf6 := "ipv6/conf/" + n.opts.Bridge + "/"
	return errors.Join(
		sysctl(conf6+"disable_ipv6", "0"),
		sysctl(conf6+"accept_ra", "0"), // a pod is no router for the host
		sysctl(conf6+"accept_dad", "0"),
	)
}

// enableForwarding makes the node a router, which is global: the interface
// that a reply comes in by is not known beforehand.
func enableForwarding(v6 bool) error {
	if err := sysctl("ipv4/ip_forward", "1"); err != nil {
		return err
	}
	if !v6 || sysctlIs("ipv6/conf/all/forwarding", "1") {
		return nil
	}
	// A router ignores router advertisements unless accept_ra is 2: a node that
	// has its default route from one would lose it.
	confs, err := filepath.Glob("/proc/sys/net/ipv6/conf/*/accept_ra")
	if err != nil {
		return fmt.Errorf("list interfaces' settings: %w", err)
	}
	for _, path := range confs {
		key := strings.TrimPrefix(path, "/proc/sys/net/")
		if !sysctlIs(key, "1") {
			continue
		}
		if err := sysctl(key, "2"); err != nil && !errors.Is(err, os.ErrNotExist) { // the interface went away
			return err
		}
	}
	return sysctl("ipv6/conf/all/forwarding", "1")
}

// sysctl sets a value below /proc/sys/net, unless it is set: writing some of
// them walks through all interfaces.
func sysctl(key, value string) error {
	if sysctlIs(key, value) {
		return nil
	}
	if err := os.WriteFile("/proc/sys/net/"+key, []byte(value), 0o644); err != nil {
		return fmt.Errorf("set sysctl: %w", err)
	}
	return nil
}

func sysctlIs(key, value string) bool {
	data, err := os.ReadFile("/proc/sys/net/" + key)
	return err == nil && string(bytes.TrimSpace(data)) == value
}
