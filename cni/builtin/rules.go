package builtin

import (
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// The table, as `nft list table inet noded0` prints it:
//
//	map hostports4    inet_proto . inet_service             : ipv4_addr . inet_service   (6: ipv6)
//	map hostports4ip  inet_proto . inet_service . ipv4_addr : ipv4_addr . inet_service   (6: ipv6)
//	chain isolate     prerouting, raw: iifname noded0, 127/8 as source or destination: drop
//	chain prerouting  prerouting, dstnat: fib daddr type local: jump hostports
//	chain output      output, dstnat: the same, for the node's own connections
//	chain hostports   dnat by map; a mapping of one address before those of all
//	chain postrouting postrouting, srcnat: masquerade what leaves the pods' subnets, and what
//	                  comes to a host port from a pod or from 127/8
//
// The nft programme addresses registers of 4 bytes from reg32 on.
const (
	regKey  = unix.NFT_REG32_00
	regData = unix.NFT_REG32_08

	// What addChains adds.
	constantRules, rulesPerSubnet = 2 + 4 + 2 + 1, 2

	rtnLocal  = unix.RTN_LOCAL
	ipsDstNAT = 1 << 5 // enum ip_conntrack_status, IPS_DST_NAT
)

// mapID names one of the four maps of host ports.
type mapID struct{ v6, perAddr bool }

var mapNames = map[mapID]string{
	{false, false}: "hostports4", {false, true}: "hostports4ip",
	{true, false}: "hostports6", {true, true}: "hostports6ip",
}

func (f *firewall) maps(t *nftables.Table) map[mapID]*nftables.Set {
	sets := make(map[mapID]*nftables.Set, len(mapNames))
	for id, name := range mapNames {
		addr := nftables.TypeIPAddr
		if id.v6 {
			addr = nftables.TypeIP6Addr
		}
		key := []nftables.SetDatatype{nftables.TypeInetProto, nftables.TypeInetService}
		if id.perAddr {
			key = append(key, addr)
		}
		sets[id] = &nftables.Set{
			Table: t, Name: name, IsMap: true, Concatenation: true,
			KeyType:  nftables.MustConcatSetType(key...),
			DataType: nftables.MustConcatSetType(addr, nftables.TypeInetService),
		}
	}
	return sets
}

func (f *firewall) addMaps(c *nftables.Conn, t *nftables.Table) (map[mapID]*nftables.Set, error) {
	sets := f.maps(t)
	for _, s := range sets {
		if err := c.AddSet(s, nil); err != nil {
			return nil, err
		}
	}
	return sets, nil
}

func (f *firewall) byMap(keys map[portKey]bool) map[mapID][]portKey {
	lists := make(map[mapID][]portKey)
	for k := range keys {
		id := mapID{k.v6, k.addr.IsValid()}
		lists[id] = append(lists[id], k)
	}
	return lists
}

// bytes is the key as the rules load it: each part fills whole registers.
func (k portKey) bytes() []byte {
	b := []byte{k.proto, 0, 0, 0, byte(k.port >> 8), byte(k.port), 0, 0}
	return append(b, k.addr.AsSlice()...)
}

func targetBytes(t netip.AddrPort) []byte {
	return append(t.Addr().AsSlice(), byte(t.Port()>>8), byte(t.Port()), 0, 0)
}

func (f *firewall) addChains(c *nftables.Conn, t *nftables.Table, maps map[mapID]*nftables.Set) {
	chain := func(name string, typ nftables.ChainType, hook *nftables.ChainHook, prio *nftables.ChainPriority) *nftables.Chain {
		return c.AddChain(&nftables.Chain{Table: t, Name: name, Type: typ, Hooknum: hook, Priority: prio})
	}
	rule := func(chain *nftables.Chain, exprs ...[]expr.Any) {
		var all []expr.Any
		for _, e := range exprs {
			all = append(all, e...)
		}
		c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: all})
	}
	isolate := chain("isolate", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw)
	loopback := netip.MustParsePrefix("127.0.0.0/8")
	rule(isolate, fromBridge(f.bridge), source(loopback), verdict(expr.VerdictDrop))
	rule(isolate, fromBridge(f.bridge), destination(loopback), verdict(expr.VerdictDrop))

	hostports := c.AddChain(&nftables.Chain{Table: t, Name: "hostports"})
	for _, v6 := range []bool{false, true} {
		for _, perAddr := range []bool{true, false} {
			id := mapID{v6, perAddr}
			rule(hostports, dnat(id, maps[id]))
		}
	}
	jump := []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: hostports.Name}}
	rule(chain("prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest), toLocal(), jump)
	rule(chain("output", nftables.ChainTypeNAT, nftables.ChainHookOutput, nftables.ChainPriorityNATDest), toLocal(), jump)

	post := chain("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource)
	masquerade := []expr.Any{&expr.Masq{}}
	rule(post, outBy(f.bridge, true), translated(), source(loopback), masquerade)
	for _, s := range f.subnets {
		rule(post, outBy(f.bridge, true), translated(), source(s), masquerade)
		rule(post, outBy(f.bridge, false), source(s), notMulticast(s), masquerade)
	}
}

func verdict(k expr.VerdictKind) []expr.Any { return []expr.Any{&expr.Verdict{Kind: k}} }

func fromBridge(name string) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: unix.NFT_REG_1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: unix.NFT_REG_1, Data: ifname(name)},
	}
}

func outBy(name string, is bool) []expr.Any {
	op := expr.CmpOpEq
	if !is {
		op = expr.CmpOpNeq
	}
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: unix.NFT_REG_1},
		&expr.Cmp{Op: op, Register: unix.NFT_REG_1, Data: ifname(name)},
	}
}

func ifname(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}

// family restricts a rule of the inet table to one of its two families.
func family(v6 bool) []expr.Any {
	proto := byte(unix.NFPROTO_IPV4)
	if v6 {
		proto = unix.NFPROTO_IPV6
	}
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: unix.NFT_REG_1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: unix.NFT_REG_1, Data: []byte{proto}},
	}
}

// Offsets of the addresses in the IP headers (RFC 791, RFC 8200).
func sourceOffset(v6 bool) uint32 {
	if v6 {
		return 8
	}
	return 12
}

func destinationOffset(v6 bool) uint32 {
	if v6 {
		return 24
	}
	return 16
}

func source(p netip.Prefix) []expr.Any {
	return matchAddr(p, sourceOffset(p.Addr().Is6()), expr.CmpOpEq)
}

func destination(p netip.Prefix) []expr.Any {
	return matchAddr(p, destinationOffset(p.Addr().Is6()), expr.CmpOpEq)
}

// notMulticast leaves alone what is addressed to groups, of the family of like.
func notMulticast(like netip.Prefix) []expr.Any {
	groups := netip.MustParsePrefix("224.0.0.0/4")
	if like.Addr().Is6() {
		groups = netip.MustParsePrefix("ff00::/8")
	}
	return matchAddr(groups, destinationOffset(like.Addr().Is6()), expr.CmpOpNeq)
}

func matchAddr(p netip.Prefix, offset uint32, op expr.CmpOp) []expr.Any {
	size := uint32(p.Addr().BitLen() / 8)
	return append(family(p.Addr().Is6()),
		&expr.Payload{DestRegister: unix.NFT_REG_1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size},
		&expr.Bitwise{SourceRegister: unix.NFT_REG_1, DestRegister: unix.NFT_REG_1, Len: size, Mask: toIPNet(p).Mask, Xor: make([]byte, size)},
		&expr.Cmp{Op: op, Register: unix.NFT_REG_1, Data: p.Masked().Addr().AsSlice()},
	)
}

// toLocal matches packets addressed to the node itself: a host port must not
// capture what merely passes through (CVE-2025-67499).
func toLocal() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: unix.NFT_REG_1, FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: unix.NFT_REG_1, Data: binaryutil.NativeEndian.PutUint32(rtnLocal)},
	}
}

// translated matches connections that came in by a host port.
func translated() []expr.Any {
	zero := make([]byte, 4)
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATUS, Register: unix.NFT_REG_1},
		&expr.Bitwise{SourceRegister: unix.NFT_REG_1, DestRegister: unix.NFT_REG_1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(ipsDstNAT), Xor: zero},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: unix.NFT_REG_1, Data: zero},
	}
}

// dnat looks protocol, port and perhaps address up in a map and sends the
// packet to what it finds; otherwise the next rule has its turn.
func dnat(id mapID, set *nftables.Set) []expr.Any {
	proto, size := uint32(unix.NFPROTO_IPV4), uint32(4)
	if id.v6 {
		proto, size = unix.NFPROTO_IPV6, 16
	}
	exprs := append(family(id.v6),
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: regKey},
		// TCP, UDP and SCTP all have their destination port here.
		&expr.Payload{DestRegister: regKey + 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
	)
	if id.perAddr {
		exprs = append(exprs, &expr.Payload{DestRegister: regKey + 2, Base: expr.PayloadBaseNetworkHeader, Offset: destinationOffset(id.v6), Len: size})
	}
	return append(exprs,
		&expr.Lookup{SourceRegister: regKey, DestRegister: regData, IsDestRegSet: true, SetName: set.Name, SetID: set.ID},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: proto, RegAddrMin: regData, RegProtoMin: regData + size/4},
	)
}
