package builtin

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"noded.dev/noded/internal/kind"
)

// chunk is how many elements go into one netlink message, which is limited to 64 KiB.
const chunk = 256

// firewall is the network's nftables table: a constant set of rules, and maps
// of host ports that change with the pods.
type firewall struct {
	bridge string

	mu      sync.Mutex
	kernel  *nftables.Conn // kept open: closing one waits 10 ms for what was deleted through it
	subnets []netip.Prefix
	ports   map[portKey]binding // claimed
	live    map[portKey]bool    // of these, in the kernel
	gone    bool                // uninstalled on purpose
}

func newFirewall(bridge string) *firewall {
	return &firewall{bridge: bridge, ports: map[portKey]binding{}, live: map[portKey]bool{}}
}

func (f *firewall) conn() (*nftables.Conn, error) {
	if f.kernel == nil {
		c, err := nftables.New(nftables.AsLasting())
		if err != nil {
			return nil, fmt.Errorf("open netfilter socket: %w", err)
		}
		f.kernel = c
	}
	return f.kernel, nil
}

// flush sends the transaction. After a failure answers may be left in the
// socket, so the next transaction gets another one.
func (f *firewall) flush(c *nftables.Conn) error {
	err := c.Flush()
	if err != nil {
		f.closeConn()
	}
	return err
}

func (f *firewall) closeConn() {
	if f.kernel != nil {
		f.kernel.CloseLasting() // of a socket that is not used any more
		f.kernel = nil
	}
}

func (f *firewall) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closeConn()
}

// claim takes a pod's host ports, all or none. Kind Exists if another pod has
// one of them.
func (f *firewall) claim(r *record) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	wanted := bindings(r)
	for key := range wanted {
		if other, ok := f.conflict(key, r.ID); ok {
			return kind.Errorf(kind.Exists, "host port %d: pod %s has it already", key.port, other)
		}
	}
	for key, target := range wanted {
		f.ports[key] = binding{pod: r.ID, target: target}
	}
	// What a record says was published before this process started may be in
	// the kernel; install puts it there in any case.
	if r.loaded {
		for key := range wanted {
			f.live[key] = true
		}
	}
	return nil
}

func (f *firewall) conflict(key portKey, pod string) (string, bool) {
	for k, b := range f.ports {
		if b.pod != pod && key.overlaps(k) {
			return b.pod, true
		}
	}
	return "", false
}

func (f *firewall) unclaim(r *record) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for key := range bindings(r) {
		if f.ports[key].pod == r.ID {
			delete(f.ports, key)
			delete(f.live, key)
		}
	}
}

// install replaces the whole table by what it should be, in one transaction.
func (f *firewall) install(subnets []netip.Prefix) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.subnets, f.gone = subnets, false
	return f.rebuild()
}

func (f *firewall) rebuild() error {
	c, err := f.conn()
	if err != nil {
		return err
	}
	t := f.table()
	c.AddTable(t) // so that the deletion finds one
	c.DelTable(t)
	c.AddTable(t)
	maps, err := f.addMaps(c, t)
	if err != nil {
		return err
	}
	f.addChains(c, t, maps)
	for m, keys := range f.byMap(f.live) {
		if err := f.change(c.SetAddElements, maps[m], keys); err != nil {
			return err
		}
	}
	if err := f.flush(c); err != nil {
		if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPROTONOSUPPORT) {
			return kind.Errorf(kind.Precondition, "install nftables table %s: this kernel lacks nftables or its NAT: %w", f.bridge, err)
		}
		return fmt.Errorf("install nftables table %s: %w", f.bridge, err)
	}
	return f.routeLoopback()
}

// routeLoopback lets connections from 127.0.0.1 to a host port leave by the
// bridge, where there is such a port. It also lets packets for 127/8 in by the
// bridge, which the chain "isolate" drops (CVE-2020-8558); so it comes after
// the rules, and goes with the last port, in case somebody deletes them.
func (f *firewall) routeLoopback() error {
	value := "0"
	for k := range f.live {
		if !k.v6 && (!k.addr.IsValid() || k.addr.IsLoopback()) {
			value = "1"
		}
	}
	return sysctl("ipv4/conf/"+f.bridge+"/route_localnet", value)
}

// intact reports whether the table has all of its rules and host ports.
func (f *firewall) intact() (bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.gone {
		return true, nil
	}
	c, err := f.conn()
	if err != nil {
		return false, err
	}
	t := f.table()
	chains, err := c.ListChainsOfTableFamily(t.Family)
	if err != nil {
		return false, fmt.Errorf("list chains: %w", err)
	}
	count := 0
	for _, chain := range chains {
		if chain.Table.Name != t.Name {
			continue
		}
		rules, err := c.GetRules(t, chain)
		if err != nil {
			return false, fmt.Errorf("list rules: %w", err)
		}
		count += len(rules)
	}
	if count != constantRules+rulesPerSubnet*len(f.subnets) {
		return false, nil
	}
	return f.mapsIntact(c, t)
}

func (f *firewall) mapsIntact(c *nftables.Conn, t *nftables.Table) (bool, error) {
	count := 0
	for _, s := range f.maps(t) {
		elements, err := c.GetSetElements(s)
		if errors.Is(err, unix.ENOENT) {
			return false, nil
		}
		if err != nil {
			return false, fmt.Errorf("list host ports: %w", err)
		}
		count += len(elements)
	}
	return count == len(f.live), nil
}

// uninstall deletes the table; nil if there is none.
func (f *firewall) uninstall() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	c, err := f.conn()
	if err != nil {
		return err
	}
	f.gone = true
	c.AddTable(f.table())
	c.DelTable(f.table())
	if err := f.flush(c); err != nil {
		return fmt.Errorf("delete nftables table %s: %w", f.bridge, err)
	}
	return nil
}

func (f *firewall) table() *nftables.Table {
	return &nftables.Table{Name: f.bridge, Family: nftables.TableFamilyINet}
}

// publish puts a pod's host ports into the maps.
func (f *firewall) publish(r *record) error { return f.update(r, true) }

// withdraw takes them out.
func (f *firewall) withdraw(r *record) error { return f.update(r, false) }

// update changes the maps by one pod's entries. Whatever makes that fail, such
// as somebody's flush of the rules, building the table anew repairs.
func (f *firewall) update(r *record, add bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	keys := map[portKey]bool{}
	for key := range bindings(r) {
		if f.ports[key].pod == r.ID && f.live[key] != add {
			keys[key] = true
		}
	}
	if len(keys) == 0 {
		return nil
	}
	err := f.changeKernel(keys, add)
	for key := range keys {
		if add {
			f.live[key] = true
		} else {
			delete(f.live, key)
		}
	}
	if err != nil {
		return f.rebuild()
	}
	return f.routeLoopback()
}

func (f *firewall) changeKernel(keys map[portKey]bool, add bool) error {
	c, err := f.conn()
	if err != nil {
		return err
	}
	apply := c.SetDeleteElements
	if add {
		apply = c.SetAddElements
	}
	maps := f.maps(f.table())
	for m, list := range f.byMap(keys) {
		if err := f.change(apply, maps[m], list); err != nil {
			return err
		}
	}
	if err := f.flush(c); err != nil {
		return fmt.Errorf("change host ports: %w", err)
	}
	return nil
}

func (f *firewall) change(apply func(*nftables.Set, []nftables.SetElement) error, set *nftables.Set, keys []portKey) error {
	for len(keys) > 0 {
		some := keys[:min(chunk, len(keys))]
		keys = keys[len(some):]
		elements := make([]nftables.SetElement, len(some))
		for i, k := range some {
			elements[i] = nftables.SetElement{Key: k.bytes(), Val: targetBytes(f.ports[k].target)}
		}
		if err := apply(set, elements); err != nil {
			return fmt.Errorf("encode host ports: %w", err)
		}
	}
	return nil
}
