package builtin

import (
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Finding is one thing that is worth knowing about the node.
type Finding struct {
	Problem bool
	Minor   bool // of a problem: pods run all the same
	Text    string
}

// Inspect looks at what a network with these options needs of the node, and
// changes nothing.
func Inspect(o Options) []Finding {
	if o.Bridge == "" {
		o.Bridge = DefaultBridge
	}
	if len(o.Subnets) == 0 {
		o.Subnets = []netip.Prefix{netip.MustParsePrefix(DefaultIPv4), netip.MustParsePrefix(DefaultIPv6)}
	}
	found := []Finding{{Text: fmt.Sprintf("built-in network %s with %v", o.Bridge, o.Subnets)}}
	note := func(problem bool, format string, args ...any) {
		found = append(found, Finding{Problem: problem, Text: fmt.Sprintf(format, args...)})
	}
	if !hasIPv6() {
		note(false, "this kernel has no IPv6, pods get IPv4 only")
	}
	if !sysctlIs("ipv4/ip_forward", "1") {
		note(false, "net.ipv4.ip_forward is 0, noded will set it")
	}
	host, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		note(true, "netlink: %v", err)
		return found
	}
	defer host.Close()
	n := &Network{opts: o, host: host}
	if err := n.checkOverlap(o.Subnets); err != nil {
		note(true, "%v", err)
	}
	if link, err := host.LinkByName(o.Bridge); err == nil && link.Type() != "bridge" {
		note(true, "interface %s exists and is no bridge but a %s", o.Bridge, link.Type())
	}
	return append(found, inspectFirewall(o.Bridge)...)
}

// inspectFirewall looks for base chains that drop what they do not know: no
// rule of another table can accept a packet that one of them drops.
func inspectFirewall(bridge string) []Finding {
	c, err := nftables.New()
	if err != nil {
		return []Finding{{Problem: true, Text: fmt.Sprintf("netfilter: %v", err)}}
	}
	chains, err := c.ListChains()
	if err != nil {
		return []Finding{{Problem: true, Text: fmt.Sprintf("this kernel lacks nftables, or noded may not use it: %v", err)}}
	}
	var found []Finding
	for _, chain := range chains {
		if chain.Hooknum == nil || *chain.Hooknum != *nftables.ChainHookForward || chain.Policy == nil || *chain.Policy != nftables.ChainPolicyDrop {
			continue
		}
		// Docker's is one of these.
		found = append(found, Finding{Problem: true, Minor: true, Text: fmt.Sprintf("chain %q of nftables table %q drops forwarded packets that none of its rules accepts; "+
			"let those from and to interface %s pass there, or pods are cut off from other hosts", chain.Name, chain.Table.Name, bridge)})
	}
	return found
}
