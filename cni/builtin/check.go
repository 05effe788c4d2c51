package builtin

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"noded.dev/noded/internal/kind"
	"noded.dev/noded/internal/namespace"
)

// Check verifies that a connected pod still has its interface, addresses and
// place on the bridge. Kind NotFound if it is not connected, Precondition if
// something of it was changed.
func (n *Network) Check(_ context.Context, id string) error {
	n.mu.Lock()
	r := n.pods[id]
	n.mu.Unlock()
	if r == nil {
		return kind.Errorf(kind.NotFound, "it is not connected")
	}
	bridge, err := n.host.LinkByName(n.opts.Bridge)
	if err != nil {
		return n.changed(err, "bridge "+n.opts.Bridge)
	}
	port, err := n.host.LinkByName(r.Link)
	if err != nil {
		return n.changed(err, "interface "+r.Link)
	}
	if port.Attrs().MasterIndex != bridge.Attrs().Index {
		return kind.Errorf(kind.Precondition, "interface %s is not a port of %s", r.Link, n.opts.Bridge)
	}
	return namespace.Do(r.NetNS, func() error { return n.checkInside(r) })
}

func (n *Network) changed(err error, what string) error {
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return kind.Errorf(kind.Precondition, "%s is gone", what)
	}
	return fmt.Errorf("find %s: %w", what, err)
}

func (n *Network) checkInside(r *record) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer h.Close()
	link, err := h.LinkByName(podInterface)
	if err != nil {
		return n.changed(err, podInterface)
	}
	addrs, err := h.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	for _, want := range r.Addrs {
		if !slices.ContainsFunc(addrs, func(a netlink.Addr) bool {
			p, ok := toPrefix(a.IPNet)
			return ok && p == want
		}) {
			return kind.Errorf(kind.Precondition, "%s lost its address %v", podInterface, want)
		}
	}
	return nil
}
