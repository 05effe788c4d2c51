package builtin

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/sirupsen/logrus"

	"noded.dev/noded/cni/internal/nettest"
	"noded.dev/noded/internal/kind"
)

func TestMain(m *testing.M) { nettest.Main(m) }

func quiet() logrus.FieldLogger {
	l := logrus.New()
	l.SetOutput(io.Discard)
	return l
}

// open gives a test a network of its own, and checks at the end that nothing
// of it is left.
func open(t testing.TB, change ...func(*Options)) *Network {
	t.Helper()
	nettest.NeedRoot(t)
	o := Options{Bridge: "ndtest0", Dir: t.TempDir(), Log: quiet()}
	for _, c := range change {
		c(&o)
	}
	n, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Ready(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close(); dismantle(t, o) })
	return n
}

// dismantle takes a network off the node, opening it anew as tests close theirs.
func dismantle(t testing.TB, o Options) {
	t.Helper()
	ctx := context.Background() // the test's own has ended
	n, err := Open(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	for _, id := range n.Pods() {
		if err := n.Del(ctx, id); err != nil {
			t.Error(err)
		}
	}
	if err := n.Teardown(ctx); err != nil {
		t.Error(err)
	}
}

func add(t testing.TB, n *Network, pod Pod) []netip.Addr {
	t.Helper()
	addrs, err := n.Add(t.Context(), pod)
	if err != nil {
		t.Fatal(err)
	}
	return addrs
}

func at(a netip.Addr, port int) string { return net.JoinHostPort(a.String(), fmt.Sprint(port)) }

func TestConnectivity(t *testing.T) {
	n := open(t)
	outside := nettest.Outside(t)
	a, b := Pod{ID: "a", NetNS: nettest.Pod(t)}, Pod{ID: "b", NetNS: nettest.Pod(t)}
	addrsA, addrsB := add(t, n, a), add(t, n, b)
	if len(addrsA) != 2 || !addrsA[0].Is4() || !addrsA[1].Is6() {
		t.Fatalf("addresses %v, want IPv4 first and IPv6", addrsA)
	}
	nettest.Serve(t, a.NetNS, ":80")
	for _, addr := range []string{nettest.NodeIPv4, "[" + nettest.NodeIPv6 + "]", "10.89.0.1"} {
		nettest.Serve(t, "", addr+":81")
	}
	nettest.Serve(t, outside, ":82")
	gateway4, gateway6 := "10.89.0.1", "fd00:10:89::1"
	for _, c := range []struct{ name, from, to, want string }{
		{"pod to pod", b.NetNS, at(addrsA[0], 80), addrsB[0].String()},
		{"pod to pod, IPv6", b.NetNS, at(addrsA[1], 80), addrsB[1].String()},
		{"host to pod", "", at(addrsA[0], 80), gateway4},
		{"host to pod, IPv6", "", at(addrsA[1], 80), gateway6},
		{"pod to host", a.NetNS, nettest.NodeIPv4 + ":81", addrsA[0].String()},
		{"pod to host, IPv6", a.NetNS, "[" + nettest.NodeIPv6 + "]:81", addrsA[1].String()},
		{"pod to gateway", a.NetNS, gateway4 + ":81", addrsA[0].String()},
		{"masqueraded", a.NetNS, nettest.OutsideIPv4 + ":82", nettest.NodeIPv4},
		{"masqueraded, IPv6", a.NetNS, "[" + nettest.OutsideIPv6 + "]:82", nettest.NodeIPv6},
	} {
		for _, network := range []string{"tcp", "udp"} {
			seen, err := nettest.Ask(c.from, network, c.to)
			if err != nil || seen != c.want {
				t.Errorf("%s, %s: came from %q (%v), want %s", c.name, network, seen, err, c.want)
			}
		}
	}
}

func TestHostPorts(t *testing.T) {
	n := open(t)
	outside := nettest.Outside(t)
	web := Pod{ID: "web", NetNS: nettest.Pod(t)}
	for _, proto := range []string{"tcp", "udp"} {
		web.Ports = append(web.Ports, Port{HostPort: 8080, ContainerPort: 80, Protocol: proto},
			Port{HostIP: netip.MustParseAddr(nettest.NodeIPv4), HostPort: 8081, ContainerPort: 80, Protocol: proto},
			Port{HostIP: netip.MustParseAddr("127.0.0.1"), HostPort: 8082, ContainerPort: 80, Protocol: proto},
			Port{HostIP: netip.IPv6Unspecified(), HostPort: 8083, ContainerPort: 80, Protocol: proto})
	}
	other := Pod{ID: "other", NetNS: nettest.Pod(t)}
	add(t, n, web)
	add(t, n, other)
	nettest.Serve(t, web.NetNS, ":80")
	node4, node6 := nettest.NodeIPv4, "["+nettest.NodeIPv6+"]"
	const refused = ""
	for _, c := range []struct{ name, from, to, want string }{
		{"from outside", outside, node4 + ":8080", nettest.OutsideIPv4},
		{"from outside, IPv6", outside, node6 + ":8080", nettest.OutsideIPv6},
		{"from the node by its address", "", node4 + ":8080", node4},
		{"from the node by its address, IPv6", "", node6 + ":8080", nettest.NodeIPv6},
		{"from the node by loopback", "", "127.0.0.1:8080", "10.89.0.1"},
		{"from the node by another loopback", "", "127.9.9.9:8080", "10.89.0.1"},
		{"from another pod", other.NetNS, node4 + ":8080", "10.89.0.1"},
		{"from another pod, IPv6", other.NetNS, node6 + ":8080", "fd00:10:89::1"},
		{"from itself", web.NetNS, node4 + ":8080", "10.89.0.1"},
		{"from itself, IPv6", web.NetNS, node6 + ":8080", "fd00:10:89::1"},
		{"one address", outside, node4 + ":8081", nettest.OutsideIPv4},
		{"one address, asked by another", "", "127.0.0.1:8081", refused},
		{"one address of the other family", outside, node6 + ":8081", refused},
		{"loopback only", "", "127.0.0.1:8082", "10.89.0.1"},
		{"loopback only, from outside", outside, node4 + ":8082", refused},
		{"IPv6 only", outside, node6 + ":8083", nettest.OutsideIPv6},
		{"IPv6 only, asked by IPv4", outside, node4 + ":8083", refused},
		{"not published", outside, node4 + ":80", refused},
	} {
		for _, network := range []string{"tcp", "udp"} {
			seen, err := nettest.Ask(c.from, network, c.to)
			if (err != nil) != (c.want == refused) || seen != c.want {
				t.Errorf("%s, %s: came from %q (%v), want %q", c.name, network, seen, err, c.want)
			}
		}
	}
}

func TestHostPortConflict(t *testing.T) {
	n := open(t)
	any := Port{HostPort: 9000, ContainerPort: 1, Protocol: "tcp"}
	one := Port{HostIP: netip.MustParseAddr("10.0.0.1"), HostPort: 9001, ContainerPort: 1, Protocol: "tcp"}
	six := Port{HostIP: netip.IPv6Unspecified(), HostPort: 9002, ContainerPort: 1, Protocol: "sctp"}
	add(t, n, Pod{ID: "first", NetNS: nettest.Pod(t), Ports: []Port{any, one, six}})
	with := func(p Port, change func(*Port)) []Port { change(&p); return []Port{p} }
	for _, c := range []struct {
		name  string
		ports []Port
		want  kind.Kind
	}{
		{"the same", []Port{any}, kind.Exists},
		{"one of all", with(any, func(p *Port) { p.HostIP = one.HostIP }), kind.Exists},
		{"all of one", with(one, func(p *Port) { p.HostIP = netip.Addr{} }), kind.Exists},
		{"same address", []Port{one}, kind.Exists},
		{"IPv6 wildcard", with(six, func(p *Port) { p.HostIP = netip.MustParseAddr("fd00::1") }), kind.Exists},
		{"no protocol", with(any, func(p *Port) { p.Protocol = "dccp" }), kind.Invalid},
		{"port 0", with(any, func(p *Port) { p.HostPort = 0 }), kind.Invalid},
		{"::1", with(any, func(p *Port) { p.HostIP = netip.IPv6Loopback() }), kind.Invalid},
	} {
		_, err := n.Add(t.Context(), Pod{ID: "second", NetNS: nettest.Pod(t), Ports: c.ports})
		if !kind.Is(err, c.want) {
			t.Errorf("%s: %v, want kind %v", c.name, err, c.want)
		}
		if pods := n.Pods(); len(pods) != 1 {
			t.Fatalf("%s: pods %v", c.name, pods)
		}
	}
	add(t, n, Pod{ID: "third", NetNS: nettest.Pod(t), Ports: []Port{
		{HostPort: 9000, ContainerPort: 1, Protocol: "udp"},
		{HostIP: netip.MustParseAddr("10.0.0.2"), HostPort: 9001, ContainerPort: 1, Protocol: "tcp"},
		{HostIP: netip.IPv4Unspecified(), HostPort: 9002, ContainerPort: 1, Protocol: "sctp"},
	}})
}

// TestIsolation is about CVE-2020-8558 and CVE-2025-67499.
func TestIsolation(t *testing.T) {
	n := open(t)
	outside := nettest.Outside(t)
	nettest.Serve(t, "", "127.0.0.1:7000")
	nettest.Serve(t, outside, ":8080")
	pod := Pod{ID: "p", NetNS: nettest.Pod(t), Ports: []Port{{HostPort: 8080, ContainerPort: 80, Protocol: "tcp"}}}
	add(t, n, pod)
	nettest.Serve(t, pod.NetNS, ":80")
	for _, ns := range []string{pod.NetNS, outside} {
		// A route that sends 127/8 to the node, as an attacker makes it.
		run(t, "nsenter", "--net="+ns, "sh", "-c", "ip route show default | sed 's/default/127.0.0.1\\/32/' | xargs ip route replace table 100; ip rule add pref 0 to 127.0.0.1 lookup 100; ip rule del pref 0 lookup local; ip rule add pref 10 lookup local; echo 1 > /proc/sys/net/ipv4/conf/all/route_localnet")
		if seen, err := nettest.Ask(ns, "tcp", "127.0.0.1:7000"); err == nil {
			t.Errorf("%s reached a service on the node's loopback as %s", ns, seen)
		}
	}
	other := Pod{ID: "other", NetNS: nettest.Pod(t)}
	add(t, n, other)
	if seen, err := nettest.Ask(other.NetNS, "tcp", nettest.OutsideIPv4+":8080"); err != nil || seen != nettest.NodeIPv4 {
		t.Errorf("a connection that passes through was captured: %q %v", seen, err)
	}
}

func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
	return string(out)
}

func TestIPv4Only(t *testing.T) {
	n := open(t, func(o *Options) {
		o.Bridge = "ndtest4"
		o.Subnets = []netip.Prefix{netip.MustParsePrefix("10.90.0.0/29")}
	})
	pod := Pod{ID: "p", NetNS: nettest.Pod(t)}
	if addrs := add(t, n, pod); len(addrs) != 1 {
		t.Errorf("addresses %v", addrs)
	}
	if out := run(t, "nsenter", "--net="+pod.NetNS, "ip", "-6", "addr", "show", "eth0"); strings.Contains(out, "inet6") {
		t.Errorf("IPv4 pod has %s", out)
	}
	for i := range 4 {
		add(t, n, Pod{ID: fmt.Sprint("more", i), NetNS: nettest.Pod(t)})
	}
	if _, err := n.Add(t.Context(), Pod{ID: "toomany", NetNS: nettest.Pod(t)}); !kind.Is(err, kind.Exhausted) {
		t.Errorf("no address left: %v, want kind Exhausted", err)
	}
}

func BenchmarkAddDel(b *testing.B) {
	n := open(b)
	ns := nettest.Pod(b)
	for b.Loop() {
		if _, err := n.Add(b.Context(), Pod{ID: "p", NetNS: ns}); err != nil {
			b.Fatal(err)
		}
		if err := n.Del(b.Context(), "p"); err != nil {
			b.Fatal(err)
		}
	}
}
