package oracle

import (
	"fmt"
	"os/exec"
	"regexp"
	"strings"

	"github.com/vishvananda/netlink"
)

// addLinks lists this network namespace's devices in scope, their addresses and
// the routes over them. A device attached to a bridge in scope is in scope.
func (s *Snapshot) addLinks(scope Scope) error {
	if !scope.all() && len(scope.Links) == 0 {
		return nil
	}
	links, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	names := map[int]string{}
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	own := map[int]bool{}
	for _, l := range links {
		a := l.Attrs()
		master := names[a.MasterIndex]
		if !scope.all() && !prefixed(a.Name, scope.Links) && (master == "" || !prefixed(master, scope.Links)) {
			continue
		}
		own[a.Index] = true
		s.fixed("link %s (%s) in bridge %q", a.Name, l.Type(), master)
		addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
		if err != nil {
			continue // removed meanwhile
		}
		for _, addr := range addrs {
			if !addr.IP.IsLinkLocalUnicast() { // the kernel's own, and late by its duplicate address detection
				s.fixed("address %s on %s", addr.IPNet, a.Name)
			}
		}
	}
	return s.addRoutes(own, names, scope)
}

func (s *Snapshot) addRoutes(own map[int]bool, names map[int]string, scope Scope) error {
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := netlink.RouteListFiltered(family, &netlink.Route{}, netlink.RT_FILTER_TABLE)
		if err != nil {
			return fmt.Errorf("list routes: %w", err)
		}
		for _, r := range routes {
			if r.Dst != nil && (r.Dst.IP.IsLinkLocalUnicast() || r.Dst.IP.IsMulticast()) {
				continue
			}
			if scope.all() || own[r.LinkIndex] {
				s.fixed("route %v via %v over %s table %d", r.Dst, r.Gw, names[r.LinkIndex], r.Table)
			}
		}
	}
	return nil
}

// counters change with every packet; they are no part of a rule.
var counters = regexp.MustCompile(`counter packets \d+ bytes \d+|\[\d+:\d+\]| # handle \d+|expires [0-9a-z]+`)

// addRules lists packet filter rules as nft and, for what was made by the
// older interface and its plugins, iptables-save print them. A missing program
// means that there are no such rules to see.
func (s *Snapshot) addRules(scope Scope) error {
	if !scope.all() && len(scope.Rules) == 0 {
		return nil
	}
	s.addRuleset("nft", scope, "nft", "list", "ruleset")
	s.addRuleset("iptables", scope, "iptables-save")
	s.addRuleset("ip6tables", scope, "ip6tables-save")
	return nil
}

// addRuleset adds each line of a program's output with the table and chain that it is in.
func (s *Snapshot) addRuleset(kind string, scope Scope, command ...string) {
	out, err := exec.Command(command[0], command[1:]...).Output()
	if err != nil {
		return
	}
	var nest []string
	for _, line := range strings.Split(string(out), "\n") {
		line = strings.TrimSpace(counters.ReplaceAllString(line, ""))
		switch {
		case line == "" || strings.HasPrefix(line, "#") || line == "COMMIT":
			continue
		case line == "}":
			if len(nest) > 0 {
				nest = nest[:len(nest)-1]
			}
			continue
		case strings.HasPrefix(line, "*"):
			nest = []string{line[1:]}
			continue
		}
		text := kind + " " + strings.Join(append(nest, line), " / ")
		if strings.HasSuffix(line, "{") {
			text = strings.TrimSuffix(text, " {")
			nest = append(nest, strings.TrimSuffix(line, " {"))
		}
		if scope.all() || contains(text, scope.Rules) {
			s.fixed("%s", text)
		}
	}
}
