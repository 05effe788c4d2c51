package namespace

import (
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// loopbackIndex is the kernel's: lo is the first interface of every network namespace.
const loopbackIndex = 1

// loopbackUp brings lo of the calling thread's namespace up. The kernel adds
// 127.0.0.1/8 and, where it has IPv6, ::1/128 by itself.
func loopbackUp() error {
	h, err := netlink.NewHandle()
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer h.Close()
	lo := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: loopbackIndex, Name: "lo"}}
	if err := h.LinkSetUp(lo); err != nil {
		return fmt.Errorf("bring loopback up: %w", err)
	}
	return nil
}

// Traffic counts one direction of an interface since it was made.
type Traffic struct {
	Bytes, Packets, Errors, Dropped uint64
}

// Interface is one interface of a network namespace.
type Interface struct {
	Name     string
	Loopback bool
	Rx, Tx   Traffic // as seen from inside the namespace
}

// Stats reads the counters of all interfaces in the network namespace at path.
// Kind NotFound if there is no namespace.
func Stats(path string) ([]Interface, error) {
	var list []Interface
	err := Do(path, func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return fmt.Errorf("open netlink: %w", err)
		}
		defer h.Close()
		links, err := h.LinkList()
		if err != nil {
			return fmt.Errorf("list interfaces: %w", err)
		}
		for _, l := range links {
			list = append(list, counters(l.Attrs()))
		}
		return nil
	})
	return list, err
}

func counters(a *netlink.LinkAttrs) Interface {
	i := Interface{Name: a.Name, Loopback: a.Flags&net.FlagLoopback != 0}
	if s := a.Statistics; s != nil {
		i.Rx = Traffic{s.RxBytes, s.RxPackets, s.RxErrors, s.RxDropped}
		i.Tx = Traffic{s.TxBytes, s.TxPackets, s.TxErrors, s.TxDropped}
	}
	return i
}
