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
	subnets []netip.Prefix
	ports   map[portKey]binding // claimed
	live    map[portKey]bool    // of these, in the kernel
}

func newFirewall(bridge string) *firewall {
	return &firewall{bridge: bridge, ports: map[portKey]binding{}, live: map[portKey]bool{}}
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
	if r.Connected {
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
	f.subnets = subnets
	return f.rebuild()
}

func (f *firewall) rebuild() error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open netfilter socket: %w", err)
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
	if err := c.Flush(); err != nil {
		if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPROTONOSUPPORT) {
			return kind.Errorf(kind.Precondition, "install nftables table %s: this kernel lacks nftables or its NAT: %w", f.bridge, err)
		}
		return fmt.Errorf("install nftables table %s: %w", f.bridge, err)
	}
	return nil
}

// uninstall deletes the table; nil if there is none.
func (f *firewall) uninstall() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open netfilter socket: %w", err)
	}
	c.AddTable(f.table())
	c.DelTable(f.table())
	if err := c.Flush(); err != nil {
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
	err := f.change1(keys, add)
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
	return nil
}

func (f *firewall) change1(keys map[portKey]bool, add bool) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open netfilter socket: %w", err)
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
	if err := c.Flush(); err != nil {
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
