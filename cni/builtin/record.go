package builtin

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/sirupsen/logrus"

	"noded.dev/noded/internal/atomicfile"
	"noded.dev/noded/internal/kind"
)

const (
	recordVersion = 1
	recordSuffix  = ".json"
	linkPrefix    = "vn" // of the host ends of pods' veth pairs
	gatewaySlot   = 1    // the first address of each subnet is the bridge's
	maxSlots      = 1 << 24
)

// record is what one pod holds of the network.
type record struct {
	Version int            `json:"version"`
	ID      string         `json:"id"`
	Link    string         `json:"link"`  // host end of its veth pair
	Slot    uint32         `json:"slot"`  // the number of its address within each subnet
	Addrs   []netip.Prefix `json:"addrs"` // with the subnet's length, primary first
	Ports   []Port         `json:"ports,omitempty"`
	NetNS   string         `json:"netns"`

	loaded    bool // of an earlier process: whether its Add was finished is to be seen
	connected bool // all steps of Add were done
}

func (r *record) addrs() []netip.Addr {
	list := make([]netip.Addr, len(r.Addrs))
	for i, p := range r.Addrs {
		list[i] = p.Addr()
	}
	return list
}

func (r *record) path(dir string) string { return filepath.Join(dir, r.ID+recordSuffix) }

func (r *record) save(dir string) error {
	data, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode network record: %w", err)
	}
	return atomicfile.Write(r.path(dir), data, 0o600)
}

func (r *record) remove(dir string) error {
	if err := os.Remove(r.path(dir)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("delete network record: %w", err)
	}
	return nil
}

// linkName names the host end of a pod's veth pair after the pod, so that it
// is found without a record.
func linkName(bridge, id string) string {
	sum := sha256.Sum256([]byte(bridge + "\x00" + id))
	return linkPrefix + hex.EncodeToString(sum[:6])
}

// loadRecords reads all records of a folder and makes it if there is none. A
// record that a power cut damaged is set aside: nothing of it is in the kernel
// any more after one.
func loadRecords(dir string, log logrus.FieldLogger) (map[string]*record, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make folder of network records: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("list network records: %w", err)
	}
	pods := make(map[string]*record)
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if atomicfile.IsTemp(e.Name()) {
			if err := os.Remove(path); err != nil {
				return nil, fmt.Errorf("delete unfinished network record: %w", err)
			}
			continue
		}
		id, ok := strings.CutSuffix(e.Name(), recordSuffix)
		if !ok {
			continue
		}
		r, err := loadRecord(path, id)
		if err != nil {
			log.WithError(err).Warnf("network record %s set aside", e.Name())
			if err := os.Rename(path, path+".broken"); err != nil {
				return nil, fmt.Errorf("set network record aside: %w", err)
			}
			continue
		}
		r.loaded = true
		pods[id] = r
	}
	return pods, nil
}

func loadRecord(path, id string) (*record, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read network record: %w", err)
	}
	r := &record{}
	if err := json.Unmarshal(data, r); err != nil {
		return nil, fmt.Errorf("decode network record: %w", err)
	}
	if r.Version != recordVersion || r.ID != id || !strings.HasPrefix(r.Link, linkPrefix) || len(r.Addrs) == 0 {
		return nil, fmt.Errorf("network record of version %d for %q is not one of %q", r.Version, r.ID, id)
	}
	return r, nil
}

// reserve gives a pod its addresses and host ports, or finds those it has. It
// changes memory only, and nothing at all if it fails.
func (n *Network) reserve(pod Pod) (*record, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.Ready() != nil {
		n.setUp()
	}
	if err := n.Ready(); err != nil {
		return nil, err
	}
	if r := n.pods[pod.ID]; r != nil {
		return r, nil
	}
	r := &record{Version: recordVersion, ID: pod.ID, Link: linkName(n.opts.Bridge, pod.ID), NetNS: pod.NetNS}
	var err error
	if r.Ports, err = checkPorts(pod.Ports, n.subnets); err != nil {
		return nil, err
	}
	if r.Slot, err = n.freeSlot(); err != nil {
		return nil, err
	}
	for _, s := range n.subnets {
		r.Addrs = append(r.Addrs, netip.PrefixFrom(address(s, r.Slot), s.Bits()))
	}
	if err := n.fire.claim(r); err != nil {
		return nil, err
	}
	n.pods[pod.ID] = r
	n.cursor = r.Slot
	return r, nil
}

// freeSlot takes the first free number after the one given away last: an
// address rests as long as possible before it is somebody else's.
func (n *Network) freeSlot() (uint32, error) {
	used := make(map[uint32]bool, len(n.pods))
	for _, r := range n.pods {
		used[r.Slot] = true
	}
	last := n.lastSlot()
	for slot := n.cursor + 1; slot <= last; slot++ {
		if slot > gatewaySlot && !used[slot] {
			return slot, nil
		}
	}
	for slot := uint32(gatewaySlot + 1); slot <= min(n.cursor, last); slot++ {
		if !used[slot] {
			return slot, nil
		}
	}
	return 0, kind.Errorf(kind.Exhausted, "network %s: all %d addresses of %v are in use", n.opts.Bridge, last-gatewaySlot, n.subnets)
}

// lastSlot is the highest number that is a host's address in every subnet.
func (n *Network) lastSlot() uint32 {
	last := uint32(maxSlots)
	for _, s := range n.subnets {
		if host := s.Addr().BitLen() - s.Bits(); host < 24 {
			last = min(last, 1<<host-2) // the very last is IPv4's broadcast
		}
	}
	return last
}

func (n *Network) highestSlot() (slot uint32) {
	for _, r := range n.pods {
		slot = max(slot, r.Slot)
	}
	return slot
}

// address is a subnet's address number slot.
func address(subnet netip.Prefix, slot uint32) netip.Addr {
	b := subnet.Addr().AsSlice()
	for i := len(b) - 1; slot > 0; i-- {
		slot += uint32(b[i])
		b[i] = byte(slot)
		slot >>= 8
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// usable checks subnets, and leaves IPv6 out where the kernel has none.
func (n *Network) usable(subnets []netip.Prefix) ([]netip.Prefix, error) {
	var list []netip.Prefix
	seen := map[bool]bool{}
	for _, s := range subnets {
		s = s.Masked()
		v6 := s.Addr().Is6()
		switch {
		case !s.IsValid() || s.Addr().Is4In6():
			return nil, kind.Errorf(kind.Invalid, "subnet %v is not a range of addresses", s)
		case s.Addr().BitLen()-s.Bits() < 2:
			return nil, kind.Errorf(kind.Invalid, "subnet %v has no room for a bridge and a pod", s)
		case seen[v6]:
			return nil, kind.Errorf(kind.Invalid, "subnets %v: more than one of the same family", subnets)
		}
		seen[v6] = true
		if v6 && !n.v6 {
			n.opts.Log.Infof("network %s: this kernel has no IPv6, %v is not used", n.opts.Bridge, s)
			continue
		}
		list = append(list, s)
	}
	if len(list) == 0 {
		return nil, kind.Errorf(kind.Invalid, "subnets %v: none is usable on this node", subnets)
	}
	return list, nil
}

// allSubnets are the current ones and those that connected pods still use.
func (n *Network) allSubnets() []netip.Prefix {
	list := slices.Clone(n.subnets)
	for _, r := range n.pods {
		for _, a := range r.Addrs {
			if s := a.Masked(); !slices.Contains(list, s) {
				list = append(list, s)
			}
		}
	}
	return list
}
