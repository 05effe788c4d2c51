package builtin

import (
	"encoding/binary"
	"hash/crc32"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"noded.dev/noded/cni/internal/nettest"
	"noded.dev/noded/internal/kind"
	"noded.dev/noded/internal/namespace"
)

// TestSCTP sends the first packet of an SCTP association by raw sockets, which
// works on kernels without SCTP of their own.
func TestSCTP(t *testing.T) {
	n := open(t)
	outside := nettest.Outside(t)
	pod := Pod{ID: "p", NetNS: nettest.Pod(t), Ports: []Port{{HostPort: 3868, ContainerPort: 38, Protocol: "sctp"}}}
	add(t, n, pod)
	got := make(chan []byte, 1)
	raw := func(ns, addr string) (c net.PacketConn) {
		err := namespace.Do(ns, func() (err error) {
			c, err = net.ListenPacket("ip4:132", addr)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	receiver := raw(pod.NetNS, "0.0.0.0")
	go func() {
		buf := make([]byte, 128)
		if k, _, err := receiver.ReadFrom(buf); err == nil {
			got <- buf[:k]
		}
	}()
	init := make([]byte, 32) // RFC 9260, 3.3.2: common header and INIT chunk
	binary.BigEndian.PutUint16(init[0:], 5000)
	binary.BigEndian.PutUint16(init[2:], 3868)
	init[12] = 1
	binary.BigEndian.PutUint16(init[14:], 20)
	binary.BigEndian.PutUint32(init[16:], 7)       // initiate tag
	binary.BigEndian.PutUint32(init[20:], 1<<16)   // receiver window
	binary.BigEndian.PutUint32(init[24:], 1<<16|1) // streams
	binary.LittleEndian.PutUint32(init[8:], crc32.Checksum(init, crc32.MakeTable(crc32.Castagnoli)))
	if _, err := raw(outside, "0.0.0.0").WriteTo(init, &net.IPAddr{IP: net.ParseIP(nettest.NodeIPv4)}); err != nil {
		t.Fatal(err)
	}
	select {
	case p := <-got:
		if port := binary.BigEndian.Uint16(p[2:]); port != 38 {
			t.Errorf("arrived at port %d, want 38", port)
		}
	case <-time.After(time.Second):
		t.Error("nothing arrived")
	}
}

// TestStaleUDPFlow has a client that sent to the host port before the pod was
// there, and goes on from the same port.
func TestStaleUDPFlow(t *testing.T) {
	n := open(t)
	outside := nettest.Outside(t)
	var client net.Conn
	err := namespace.Do(outside, func() (err error) {
		client, err = net.Dial("udp", nettest.NodeIPv4+":5353")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ask := func() error {
		client.SetDeadline(time.Now().Add(500 * time.Millisecond))
		if _, err := client.Write([]byte("?")); err != nil {
			return err
		}
		_, err := client.Read(make([]byte, 64))
		return err
	}
	ask()
	for range 2 { // and another pod, with another address, afterwards
		pod := Pod{ID: "p", NetNS: nettest.Pod(t), Ports: []Port{{HostPort: 5353, ContainerPort: 53, Protocol: "udp"}}}
		add(t, n, pod)
		nettest.Serve(t, pod.NetNS, ":53")
		n.flows.wait()
		err := ask()
		if err != nil {
			err = ask() // the first may get the ICMP error of the time before
		}
		if err != nil {
			t.Errorf("the client's flow leads nowhere: %v", err)
		}
		if err := n.Del(t.Context(), "p"); err != nil {
			t.Fatal(err)
		}
	}
}

func TestSetSubnets(t *testing.T) {
	n := open(t, func(o *Options) { o.Bridge = "ndsub0" })
	outside := nettest.Outside(t)
	a, b := Pod{ID: "a", NetNS: nettest.Pod(t)}, Pod{ID: "b", NetNS: nettest.Pod(t)}
	addrsA := add(t, n, a)
	for _, bad := range [][]string{{"10.1.0.0/24", "10.2.0.0/24"}, {"10.1.0.0/31"}, {"203.0.113.0/24"}} {
		var list []netip.Prefix
		for _, s := range bad {
			list = append(list, netip.MustParsePrefix(s))
		}
		if err := n.SetSubnets(list); err == nil && n.Ready() == nil {
			t.Errorf("%v was taken", bad)
		}
	}
	if err := n.SetSubnets([]netip.Prefix{netip.MustParsePrefix("10.91.0.0/24"), netip.MustParsePrefix("fd00:10:91::/64")}); err != nil {
		t.Fatal(err)
	}
	addrsB := add(t, n, b)
	if !strings.HasPrefix(addrsB[0].String(), "10.91.0.") || !strings.HasPrefix(addrsB[1].String(), "fd00:10:91::") {
		t.Errorf("addresses %v are not of the new ranges", addrsB)
	}
	nettest.Serve(t, outside, ":80")
	nettest.Serve(t, a.NetNS, ":81")
	for _, p := range []Pod{a, b} {
		if seen, err := nettest.Ask(p.NetNS, "tcp", nettest.OutsideIPv4+":80"); err != nil || seen != nettest.NodeIPv4 {
			t.Errorf("pod %s to outside: %q %v", p.ID, seen, err)
		}
	}
	if _, err := nettest.Ask(b.NetNS, "tcp", at(addrsA[0], 81)); err != nil {
		t.Errorf("new pod to old pod: %v", err)
	}
}

func TestOpenRefuses(t *testing.T) {
	nettest.NeedRoot(t)
	nettest.Outside(t)
	prefix := netip.MustParsePrefix
	for _, c := range []struct {
		name string
		o    Options
	}{
		{"bridge name", Options{Bridge: "a/b"}},
		{"long bridge name", Options{Bridge: "sixteenletters00"}},
		{"two of a family", Options{Subnets: []netip.Prefix{prefix("10.0.0.0/24"), prefix("10.1.0.0/24")}}},
		{"no room", Options{Subnets: []netip.Prefix{prefix("10.0.0.0/31")}}},
	} {
		c.o.Dir, c.o.Log = t.TempDir(), quiet()
		if n, err := Open(t.Context(), c.o); !kind.Is(err, kind.Invalid) {
			t.Errorf("%s: %v, want kind Invalid", c.name, err)
			n.Close()
		}
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "nodummy0"
	if err := netlink.LinkAdd(&netlink.Ifb{LinkAttrs: attrs}); err == nil {
		defer netlink.LinkDel(&netlink.Ifb{LinkAttrs: attrs})
	}
	for _, c := range []struct {
		name, says string
		o          Options
	}{
		{"overlap", "uplink", Options{Bridge: "ndov0", Subnets: []netip.Prefix{prefix("203.0.0.0/16")}}},
		{"not a bridge", "uplink", Options{Bridge: "uplink", Subnets: []netip.Prefix{prefix("10.3.0.0/16")}}},
	} {
		c.o.Dir, c.o.Log = t.TempDir(), quiet()
		n, err := Open(t.Context(), c.o)
		if err != nil {
			t.Fatal(err)
		}
		if err := n.Ready(); !kind.Is(err, kind.Precondition) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want kind Precondition and %q", c.name, err, c.says)
		}
		if _, err := n.Add(t.Context(), Pod{ID: "p", NetNS: "/none"}); !kind.Is(err, kind.Precondition) {
			t.Errorf("%s: Add: %v", c.name, err)
		}
		n.Close()
	}
}

func TestBandwidth(t *testing.T) {
	n := open(t)
	pod := Pod{ID: "p", NetNS: nettest.Pod(t), IngressBPS: 8_000_000, EgressBPS: 16_000_000}
	add(t, n, pod)
	if out := run(t, "tc", "qdisc", "show", "dev", linkName(n.opts.Bridge, "p")); !strings.Contains(out, "tbf") || !strings.Contains(out, "8Mbit") {
		t.Errorf("ingress: %s", out)
	}
	if out := run(t, "nsenter", "--net="+pod.NetNS, "tc", "qdisc", "show", "dev", "eth0"); !strings.Contains(out, "tbf") || !strings.Contains(out, "16Mbit") {
		t.Errorf("egress: %s", out)
	}
}

func TestAddressArithmetic(t *testing.T) {
	for _, c := range []struct {
		subnet string
		slot   uint32
		want   string
	}{
		{"10.89.0.0/16", 1, "10.89.0.1"}, {"10.89.0.0/16", 256, "10.89.1.0"}, {"10.89.0.128/25", 126, "10.89.0.254"},
		{"fd00::/64", 65537, "fd00::1:1"}, {"10.0.255.0/24", 255, "10.0.255.255"},
	} {
		if got := address(netip.MustParsePrefix(c.subnet), c.slot); got.String() != c.want {
			t.Errorf("address %d of %s is %v, want %s", c.slot, c.subnet, got, c.want)
		}
	}
}

// TestFirstPacket sends one packet to each new pod, as soon as Add returns. Not
// by IPv6: the kernel joins the group for neighbour discovery in a worker.
func TestFirstPacket(t *testing.T) {
	n := open(t)
	for i := range 20 {
		pod := Pod{ID: string(rune('a' + i)), NetNS: nettest.Pod(t)}
		nettest.Serve(t, pod.NetNS, ":80")
		addrs := add(t, n, pod)
		if _, err := nettest.Ask("", "udp", at(addrs[0], 80)); err != nil {
			t.Errorf("pod %d: %v", i, err)
		}
	}
}

func TestInspect(t *testing.T) {
	nettest.NeedRoot(t)
	problems := func(o Options) (texts []string) {
		for _, f := range Inspect(o) {
			if f.Problem {
				texts = append(texts, f.Text)
			}
		}
		return texts
	}
	if p := problems(Options{}); len(p) > 0 {
		t.Errorf("a fresh node: %v", p)
	}
	nettest.Outside(t)
	run(t, "nft", "add table ip docker; add chain ip docker FORWARD { type filter hook forward priority filter; policy drop; }")
	defer run(t, "nft", "delete table ip docker")
	p := problems(Options{Bridge: "uplink", Subnets: []netip.Prefix{netip.MustParsePrefix("203.0.113.128/25")}})
	all := strings.Join(p, "; ")
	for _, want := range []string{`chain "FORWARD" of nftables table "docker"`, "no bridge but a veth"} {
		if !strings.Contains(all, want) {
			t.Errorf("problems %q, want %q", all, want)
		}
	}
	if p := problems(Options{Subnets: []netip.Prefix{netip.MustParsePrefix("203.0.113.128/25")}}); !strings.Contains(strings.Join(p, "; "), "through uplink") {
		t.Errorf("problems %q, want the overlap with uplink", p)
	}
}
