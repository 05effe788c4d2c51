package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"noded.dev/noded/cni/builtin"
	"noded.dev/noded/internal/atomicfile"
	"noded.dev/noded/internal/kind"
)

// The two ways to connect pods.
const (
	ModeCNI     = "cni"     // plugins, as configured in ConfDir
	ModeBuiltin = "builtin" // the bridge of package builtin
)

// Limits where the options leave them open.
const (
	defaultConcurrency = 8
	defaultTimeout     = 2 * time.Minute
	maxPodCIDRs        = 16
)

// Options configure the networks of a node.
type Options struct {
	Mode          string        // ModeCNI or ModeBuiltin
	ConfDir       string        // CNI configuration; made if it is missing
	BinDirs       []string      // plugins, first match counts
	CacheDir      string        // what pods hold of the network; made with mode 0700
	MaxConcurrent int           // Adds at once, and as many Dels; 0: 8. Networks queue on one kernel lock
	Timeout       time.Duration // of one Add or Del, 0: two minutes
	Builtin       BuiltinOptions
	Log           logrus.FieldLogger // nil: nothing is logged
}

// BuiltinOptions configure the built-in network.
type BuiltinOptions struct {
	Bridge  string         // interface and nftables table; "": noded0
	Subnets []netip.Prefix // at most one per family; none: 10.89.0.0/16 and fd00:10:89::/64
	MTU     int            // 0: that of the interface with the default route
}

// backend is one mode. Calls for the same pod never overlap.
type backend interface {
	ready() error
	add(ctx context.Context, pod Pod) (Result, error)
	check(ctx context.Context, pod Pod) error
	del(ctx context.Context, id string) error
	// attached lists the pods that hold something.
	attached() ([]string, error)
	// sweep frees what no attached pod holds. keep is among them.
	sweep(ctx context.Context, keep []string) error
	setPodCIDR(cidrs []netip.Prefix) error
	teardown(ctx context.Context) error
	close() error
}

// Networks connects the node's pods. It is safe for concurrent use.
type Networks struct {
	opts    Options
	backend backend
	locks   keyedLocks
	adds    chan struct{} // one slot per Add under way
	dels    chan struct{}

	mu   sync.Mutex
	born map[string]bool // added by this process and not deleted: never garbage
}

// Open starts to follow the configuration, or makes the built-in network. It
// fails for options that cannot work; a node without configuration is told by
// Ready. ctx bounds Open only.
func Open(ctx context.Context, o Options) (*Networks, error) {
	if o.MaxConcurrent <= 0 {
		o.MaxConcurrent = defaultConcurrency
	}
	if o.Timeout <= 0 {
		o.Timeout = defaultTimeout
	}
	if o.Log == nil {
		o.Log = discard()
	}
	if o.CacheDir == "" {
		return nil, kind.Errorf(kind.Invalid, "network: no cache folder is configured")
	}
	if err := os.MkdirAll(o.CacheDir, 0o700); err != nil {
		return nil, fmt.Errorf("make network cache: %w", err)
	}
	n := &Networks{opts: o, born: map[string]bool{},
		adds: make(chan struct{}, o.MaxConcurrent), dels: make(chan struct{}, o.MaxConcurrent)}
	var err error
	switch o.Mode {
	case ModeCNI:
		n.backend, err = openPlugins(ctx, o)
	case ModeBuiltin:
		n.backend, err = openBuiltin(ctx, o)
	default:
		return nil, kind.Errorf(kind.Invalid, "network mode %q is neither %q nor %q", o.Mode, ModeCNI, ModeBuiltin)
	}
	if err != nil {
		return nil, err
	}
	cidrs, err := loadPodCIDR(o.CacheDir)
	if err == nil && len(cidrs) > 0 {
		err = n.backend.setPodCIDR(cidrs)
	}
	if err != nil {
		o.Log.WithError(err).Warn("pod ranges of an earlier run are not used")
	}
	return n, nil
}

// Close ends what Open started. Pods stay connected.
func (n *Networks) Close() error { return n.backend.close() }

// Ready returns nil, or why pods with their own network cannot start now. It
// returns at once, from what was last seen.
func (n *Networks) Ready() error { return n.backend.ready() }

// Add connects a pod. Repeating it for a pod that is connected returns the
// same result. Kinds: Aborted if a plugin failed, Deadline if it was too slow,
// Precondition without a usable network, Exists if a host port is taken,
// Exhausted without free addresses. Once Add was called, Del must be.
func (n *Networks) Add(ctx context.Context, pod Pod) (Result, error) {
	if err := pod.validate(); err != nil {
		return Result{}, err
	}
	n.mu.Lock()
	n.born[pod.ID] = true
	n.mu.Unlock()
	var result Result
	err := n.do(ctx, pod.ID, n.adds, func(ctx context.Context) (err error) {
		result, err = n.backend.add(ctx, pod)
		return err
	})
	if err != nil {
		return Result{}, n.explain(err, "connect", pod)
	}
	return result, nil
}

// Check verifies that a connected pod still has what Add gave to it.
func (n *Networks) Check(ctx context.Context, pod Pod) error {
	err := n.do(ctx, pod.ID, n.adds, func(ctx context.Context) error { return n.backend.check(ctx, pod) })
	return n.explain(err, "check", pod)
}

// Del disconnects a pod and frees its addresses; nil if there is nothing to
// do. It works when the namespace or the configuration is gone, but not
// without the plugins: then its kind is Aborted and the pod keeps its addresses.
func (n *Networks) Del(ctx context.Context, pod Pod) error {
	err := n.do(ctx, pod.ID, n.dels, func(ctx context.Context) error { return n.backend.del(ctx, pod.ID) })
	if err != nil {
		return n.explain(err, "disconnect", pod)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.born, pod.ID)
	return nil
}

// GC frees what belongs to pods that are not in keep (pod ids). Pods that this
// process added stay until Del, whatever keep says: keep may be older.
func (n *Networks) GC(ctx context.Context, keep []string) error {
	ids, err := n.backend.attached()
	if err != nil {
		return fmt.Errorf("list connected pods: %w", err)
	}
	var errs []error
	var kept []string
	for _, id := range ids {
		n.mu.Lock()
		born := n.born[id]
		n.mu.Unlock()
		if born || slices.Contains(keep, id) {
			kept = append(kept, id)
			continue
		}
		if err := n.Del(ctx, Pod{ID: id}); err != nil {
			kept = append(kept, id)
			errs = append(errs, err)
		}
	}
	if err := n.backend.sweep(ctx, kept); err != nil {
		errs = append(errs, fmt.Errorf("collect networks' garbage: %w", err))
	}
	return errors.Join(errs...)
}

// SetPodCIDR takes the node's pod ranges from the kubelet and keeps them for
// the next start: the kubelet tells them once. Kind Invalid for what is no range.
func (n *Networks) SetPodCIDR(cidrs []string) error {
	ranges, err := parseCIDRs(cidrs)
	if err != nil {
		return err
	}
	if len(ranges) == 0 { // the kubelet also sends an empty list, meaning nothing new
		return nil
	}
	if err := n.backend.setPodCIDR(ranges); err != nil {
		return err
	}
	return savePodCIDR(n.opts.CacheDir, ranges)
}

// Teardown removes what the built-in network made on the node; in mode cni it
// does nothing. Kind Precondition while pods are connected.
func (n *Networks) Teardown(ctx context.Context) error { return n.backend.teardown(ctx) }

// do runs f alone for its pod, in one of the slots, within the time limit.
func (n *Networks) do(ctx context.Context, id string, slots chan struct{}, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, n.opts.Timeout)
	defer cancel()
	unlock, err := n.locks.lock(ctx, id)
	if err != nil {
		return fmt.Errorf("wait for the pod's other network operation: %w", err)
	}
	defer unlock()
	select {
	case slots <- struct{}{}:
		defer func() { <-slots }()
	case <-ctx.Done():
		return fmt.Errorf("wait for %d other network operations: %w", cap(slots), ctx.Err())
	}
	return f(ctx)
}

// explain names the pod, and keeps a kind that callers can act on.
func (n *Networks) explain(err error, verb string, pod Pod) error {
	if err == nil {
		return nil
	}
	k := kind.Of(err)
	if pod.Name == "" {
		return kind.Errorf(k, "%s pod %s: %w", verb, pod.ID, err)
	}
	return kind.Errorf(k, "%s pod %s/%s (%s): %w", verb, pod.Namespace, pod.Name, pod.ID, err)
}

func parseCIDRs(cidrs []string) ([]netip.Prefix, error) {
	if len(cidrs) > maxPodCIDRs {
		return nil, kind.Errorf(kind.Invalid, "%d pod ranges are more than %d", len(cidrs), maxPodCIDRs)
	}
	var ranges []netip.Prefix
	for _, c := range cidrs {
		if c == "" {
			continue
		}
		p, err := netip.ParsePrefix(c)
		if err != nil {
			return nil, kind.Errorf(kind.Invalid, "pod range %q: %w", c, err)
		}
		ranges = append(ranges, p.Masked())
	}
	return ranges, nil
}

const podCIDRFile = "podcidr.json"

func savePodCIDR(dir string, ranges []netip.Prefix) error {
	data, err := json.Marshal(ranges)
	if err != nil {
		return fmt.Errorf("encode pod ranges: %w", err)
	}
	return atomicfile.WriteDurable(filepath.Join(dir, podCIDRFile), data, 0o600)
}

func loadPodCIDR(dir string) (ranges []netip.Prefix, err error) {
	data, err := os.ReadFile(filepath.Join(dir, podCIDRFile))
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(data) == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read pod ranges: %w", err)
	}
	if err := json.Unmarshal(data, &ranges); err != nil {
		return nil, fmt.Errorf("decode pod ranges: %w", err)
	}
	return ranges, nil
}

// openBuiltin adapts package builtin.
func openBuiltin(ctx context.Context, o Options) (backend, error) {
	n, err := builtin.Open(ctx, builtin.Options{
		Bridge: o.Builtin.Bridge, Subnets: o.Builtin.Subnets, MTU: o.Builtin.MTU,
		Dir: filepath.Join(o.CacheDir, "builtin"), Log: o.Log,
	})
	if err != nil {
		return nil, fmt.Errorf("open built-in network: %w", err)
	}
	return inProcess{n}, nil
}

type inProcess struct{ net *builtin.Network }

func (b inProcess) ready() error { return b.net.Ready() }

func (b inProcess) add(ctx context.Context, pod Pod) (Result, error) {
	addrs, err := b.net.Add(ctx, b.pod(pod))
	return Result{IPs: addrs}, err
}

func (b inProcess) pod(p Pod) builtin.Pod {
	ports := make([]builtin.Port, len(p.PortMappings))
	for i, m := range p.PortMappings {
		ports[i] = builtin.Port(m)
	}
	return builtin.Pod{ID: p.ID, NetNS: p.NetNS, Ports: ports, IngressBPS: p.IngressBPS, EgressBPS: p.EgressBPS}
}

func (b inProcess) check(ctx context.Context, pod Pod) error    { return b.net.Check(ctx, pod.ID) }
func (b inProcess) del(ctx context.Context, id string) error    { return b.net.Del(ctx, id) }
func (b inProcess) attached() ([]string, error)                 { return b.net.Pods(), nil }
func (b inProcess) sweep(ctx context.Context, _ []string) error { return b.net.Sweep(ctx) }
func (b inProcess) setPodCIDR(cidrs []netip.Prefix) error       { return b.net.SetSubnets(cidrs) }
func (b inProcess) teardown(ctx context.Context) error          { return b.net.Teardown(ctx) }
func (b inProcess) close() error                                { b.net.Close(); return nil }
