// Package builtin is a bridge network made in process by netlink: no plugin is
// executed. Every pod gets a veth pair, an address per family and host ports
// by nftables.
//
//	outside --- eth0 [host: routes, masquerade, host ports] noded0 (bridge, gateway)
//	                                                          |
//	                                             vnXXXX ------+------ vnYYYY
//	                                               |                    |
//	                                          eth0 [pod]           eth0 [pod]
//
// What a pod holds is written to its record before it is used, so after a
// crash at any instruction Del finds all of it.
package builtin

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/sirupsen/logrus"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"noded.dev/noded/internal/kind"
	"noded.dev/noded/internal/steps"
)

// Defaults of a node without configuration of its network.
const (
	DefaultBridge = "noded0"
	DefaultIPv4   = "10.89.0.0/16"
	DefaultIPv6   = "fd00:10:89::/64"
)

// Options configure a network. Two networks on a node need different bridges,
// subnets and folders.
type Options struct {
	Bridge  string         // also the name of the nftables table; "" is DefaultBridge
	Subnets []netip.Prefix // one or two, of different families; none: DefaultIPv4 and DefaultIPv6
	MTU     int            // 0: that of the interface with the default route
	Dir     string         // records; made with mode 0700
	Log     logrus.FieldLogger
}

// Port publishes a pod's port on the host.
type Port struct {
	HostIP        netip.Addr `json:"hostIP,omitzero"` // zero: every address of both families
	HostPort      uint16     `json:"hostPort"`
	ContainerPort uint16     `json:"containerPort"`
	Protocol      string     `json:"protocol"` // "tcp", "udp", "sctp"
}

// Pod is what the network needs to know of a pod.
type Pod struct {
	ID         string
	NetNS      string // path of its network namespace
	Ports      []Port
	IngressBPS uint64 // bits per second; 0 unlimited
	EgressBPS  uint64
}

// Network is one bridge network. Its methods may be called at the same time,
// but not for the same pod.
type Network struct {
	opts  Options
	v6    bool // the kernel has IPv6
	host  *netlink.Handle
	fire  *firewall
	flows *flowEraser
	guard *tableWatch

	closing sync.Once

	mu      sync.Mutex
	subnets []netip.Prefix
	pods    map[string]*record
	cursor  uint32
	broken  atomic.Pointer[error] // why the network could not be set up, nil if it is
}

var (
	validBridge = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_.-]{0,14}$`) // IFNAMSIZ, and an nftables identifier
	validID     = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$`)
)

// Open loads the records and makes bridge, sysctls and nftables table what
// they should be. It fails for options that cannot work; what the node lacks
// is kept for Ready and tried again by Add.
func Open(_ context.Context, o Options) (*Network, error) {
	if o.Bridge == "" {
		o.Bridge = DefaultBridge
	}
	if !validBridge.MatchString(o.Bridge) {
		return nil, kind.Errorf(kind.Invalid, "bridge name %q is not a name for an interface", o.Bridge)
	}
	if len(o.Subnets) == 0 {
		o.Subnets = []netip.Prefix{netip.MustParsePrefix(DefaultIPv4), netip.MustParsePrefix(DefaultIPv6)}
	}
	n := &Network{opts: o, v6: hasIPv6()}
	var err error
	if n.subnets, err = n.usable(o.Subnets); err != nil {
		return nil, err
	}
	if n.pods, err = loadRecords(o.Dir, o.Log); err != nil {
		return nil, err
	}
	if n.host, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	n.cursor = n.highestSlot()
	n.fire = newFirewall(o.Bridge)
	n.flows = &flowEraser{log: o.Log}
	for _, r := range n.pods {
		if err := n.fire.claim(r); err != nil {
			o.Log.WithError(err).Warnf("record of pod %s", r.ID)
		}
	}
	n.mu.Lock()
	n.setUp()
	n.mu.Unlock()
	if n.guard, err = watchTable(o.Bridge, n.repair); err != nil {
		o.Log.WithError(err).Warn("nobody sees when the firewall's rules are flushed")
	}
	return n, nil
}

// Close lets go of the network; pods keep theirs.
func (n *Network) Close() {
	n.closing.Do(func() {
		n.guard.close()
		n.flows.wait()
		n.fire.close()
		n.host.Close()
	})
}

// repair puts the rules back when somebody else deleted some of them, as a
// reload of the node's firewall does.
func (n *Network) repair() {
	n.mu.Lock()
	defer n.mu.Unlock()
	ok, err := n.fire.intact()
	if err == nil && !ok {
		n.opts.Log.Warnf("nftables table %s was changed by somebody else and is made anew", n.opts.Bridge)
		err = n.fire.install(n.allSubnets())
	}
	if err != nil {
		n.opts.Log.WithError(err).Warnf("nftables table %s", n.opts.Bridge)
	}
}

// Ready returns nil, or why the network could not be set up.
func (n *Network) Ready() error {
	if err := n.broken.Load(); err != nil {
		return *err
	}
	return nil
}

// Pods lists the pods that have something of the network, sorted.
func (n *Network) Pods() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	ids := make([]string, 0, len(n.pods))
	for id := range n.pods {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// setUp makes the node's side of the network and remembers whether it could.
func (n *Network) setUp() {
	err := n.setUpNode()
	if err == nil {
		n.broken.Store(nil)
		return
	}
	if n.broken.Swap(&err) == nil {
		n.opts.Log.WithError(err).Warnf("network %s cannot be set up", n.opts.Bridge)
	}
}

// SetSubnets replaces the ranges that new pods get addresses from. Pods that
// are connected keep theirs. Kind Invalid for more than one of a family.
func (n *Network) SetSubnets(subnets []netip.Prefix) error {
	usable, err := n.usable(subnets)
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if slices.Equal(usable, n.subnets) {
		return nil
	}
	n.subnets = usable
	n.setUp()
	return nil
}

// Add connects a pod and returns its addresses, the primary one first. A pod
// that is connected keeps what it has. Kind Exists if another pod holds one of
// the host ports, Exhausted if there are no addresses left; then nothing was
// done. After any other error Del is needed.
func (n *Network) Add(ctx context.Context, pod Pod) ([]netip.Addr, error) {
	if !validID.MatchString(pod.ID) {
		return nil, kind.Errorf(kind.Invalid, "pod id %q is not usable as a file name", pod.ID)
	}
	r, err := n.reserve(pod)
	if err != nil {
		return nil, err
	}
	if n.stillConnected(ctx, r, pod) {
		return r.addrs(), nil
	}
	err = steps.Run(ctx, "network add", nil,
		steps.Step{Name: "write record", Do: func(context.Context) error { return r.save(n.opts.Dir) }},
		steps.Step{Name: "connect", Do: func(context.Context) error { return n.connect(r, pod) }},
		steps.Step{Name: "configure interface", Do: func(context.Context) error { return n.configure(r, pod) }},
		steps.Step{Name: "settle link", Do: func(context.Context) error { return settle(r.Link, n.opts.Bridge) }},
		steps.Step{Name: "publish ports", Do: func(context.Context) error { return n.publish(r) }},
	)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", n.opts.Bridge, err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	r.connected = true
	return r.addrs(), nil
}

// Del disconnects a pod and frees its addresses and ports; nil if it has none.
func (n *Network) Del(ctx context.Context, id string) error {
	n.mu.Lock()
	r := n.pods[id]
	n.mu.Unlock()
	if r == nil {
		return nil
	}
	// In order, and not all of them whatever happens: the address must not be
	// given away before the interface is gone, nor the record.
	err := steps.Run(ctx, "network del", nil,
		steps.Step{Name: "withdraw ports", Do: func(context.Context) error { return n.withdraw(r) }},
		steps.Step{Name: "disconnect", Do: func(context.Context) error { return n.disconnect(r.Link) }},
		steps.Step{Name: "delete record", Do: func(context.Context) error { return n.release(r) }},
	)
	if err != nil {
		return fmt.Errorf("disconnect from %s: %w", n.opts.Bridge, err)
	}
	return nil
}

// Sweep deletes interfaces of pods whose records were lost, and repairs bridge
// and nftables table.
func (n *Network) Sweep(context.Context) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.setUp()
	if err := n.Ready(); err != nil {
		return err
	}
	return n.removeStrays()
}

// Teardown removes the bridge and the nftables table, for a node that noded
// leaves. Kind Precondition while a pod is connected.
func (n *Network) Teardown(context.Context) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.pods) > 0 {
		return kind.Errorf(kind.Precondition, "network %s still has %d pods", n.opts.Bridge, len(n.pods))
	}
	return errors.Join(n.fire.uninstall(), n.disconnect(n.opts.Bridge))
}

// stillConnected reports whether an earlier Add, perhaps of an earlier process,
// did all of its steps for this very namespace.
func (n *Network) stillConnected(ctx context.Context, r *record, pod Pod) bool {
	n.mu.Lock()
	same, connected := r.NetNS == pod.NetNS, r.connected
	r.NetNS, r.connected = pod.NetNS, false
	n.mu.Unlock()
	if !same || !connected && !r.loaded {
		return false
	}
	if !connected && n.Check(ctx, r.ID) != nil {
		return false
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	r.connected = true
	return true
}

func (n *Network) release(r *record) error {
	if err := r.remove(n.opts.Dir); err != nil {
		return err
	}
	n.fire.unclaim(r)
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.pods, r.ID)
	return nil
}
