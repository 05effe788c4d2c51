package cni

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"noded.dev/noded/internal/atomicfile"
	"noded.dev/noded/internal/kind"
	"noded.dev/noded/internal/namespace"
	"noded.dev/noded/internal/steps"
)

// plugins is the mode that executes CNI plugins through libcni.
//
// A pod's ADD in records (CacheDir/pods) and in libcni's own cache
// (CacheDir/results, for prevResult):
//
//	nothing --record--> adding --ADD ok--> connected
//	   ^                  |                    |
//	   +----DEL ok--------+--------DEL ok------+      a repeated Add of "adding" does DEL first
type plugins struct {
	opts    Options
	cni     *libcni.CNIConfig
	records attachments
	seen    atomic.Pointer[configuration]
	cidrs   atomic.Pointer[[]netip.Prefix]

	refresh chan struct{} // Ready asks for another look
	cancel  context.CancelFunc
	done    sync.WaitGroup
}

func openPlugins(ctx context.Context, o Options) (*plugins, error) {
	if o.ConfDir == "" || len(o.BinDirs) == 0 {
		return nil, kind.Errorf(kind.Invalid, "network mode %q needs a folder of configuration and one of plugins", ModeCNI)
	}
	records := attachments{filepath.Join(o.CacheDir, "pods")}
	if err := os.MkdirAll(records.dir, 0o700); err != nil {
		return nil, fmt.Errorf("make folder of network records: %w", err)
	}
	if err := removeTemps(records.dir); err != nil {
		return nil, err
	}
	p := &plugins{opts: o, records: records, refresh: make(chan struct{}, 1),
		cni: libcni.NewCNIConfigWithCacheDir(o.BinDirs, o.CacheDir, &runner{})}
	p.look(ctx)
	watching, cancel := context.WithCancel(context.WithoutCancel(ctx))
	p.cancel = cancel
	p.done.Go(func() { p.watch(watching) })
	return p, nil
}

// removeTemps deletes what writes that were cut off left in a folder.
func removeTemps(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("list network records: %w", err)
	}
	for _, e := range entries {
		if !atomicfile.IsTemp(e.Name()) {
			continue
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("delete unfinished network record: %w", err)
		}
	}
	return nil
}

func (p *plugins) close() error {
	p.cancel()
	p.done.Wait()
	return nil
}

func (p *plugins) teardown(context.Context) error { return nil }

func (p *plugins) setPodCIDR(cidrs []netip.Prefix) error {
	p.cidrs.Store(&cidrs)
	return nil
}

func (p *plugins) add(ctx context.Context, pod Pod) (Result, error) {
	old, err := p.records.load(pod.ID)
	if err != nil {
		return Result{}, err
	}
	if old != nil && old.Connected && old.NetNS == pod.NetNS {
		return old.Result, nil
	}
	list, err := p.network()
	if err != nil {
		return Result{}, err
	}
	a := &attachment{Version: attachmentVersion, ID: pod.ID, Name: list.Name, Conf: list.Bytes, NetNS: pod.NetNS,
		Args: cniArgs(pod), Caps: p.capabilities(pod)}
	err = steps.Run(ctx, "cni add", nil,
		// Plugins may refuse a second ADD (the host-local plugin does).
		steps.Step{Name: "undo earlier attempt", Do: func(ctx context.Context) error {
			if old == nil {
				return nil
			}
			return p.del(ctx, pod.ID)
		}},
		steps.Step{Name: "write record", Do: func(context.Context) error { return p.records.save(a) }},
		steps.Step{Name: "execute plugins", Do: func(ctx context.Context) (err error) {
			a.Result, err = p.execute(ctx, list, a)
			return err
		}},
		steps.Step{Name: "finish record", Do: func(context.Context) error {
			a.Connected = true
			return p.records.save(a)
		}},
	)
	return a.Result, err
}

func (p *plugins) execute(ctx context.Context, list *libcni.NetworkConfigList, a *attachment) (Result, error) {
	raw, err := p.cni.AddNetworkList(ctx, list, a.runtimeConf(a.NetNS))
	if err != nil {
		return Result{}, failed(ctx, fmt.Errorf("network %s: %w", list.Name, err))
	}
	result, err := parseResult(raw)
	if err != nil {
		return Result{}, kind.Errorf(kind.Aborted, "network %s: result of the plugins: %w", list.Name, err)
	}
	return result, nil
}

// failed gives a plugin's failure its kind: that of the context if it ended,
// whatever the killed plugin still said, and Aborted otherwise.
func failed(ctx context.Context, err error) error {
	if cause := ctx.Err(); cause != nil {
		return kind.Wrap(kind.Of(cause), err)
	}
	return kind.Wrap(kind.Aborted, err)
}

// parseResult takes the first address of each family, those of the pod's
// interfaces: a result also lists host ends and bridges.
func parseResult(raw types.Result) (Result, error) {
	r, err := types100.NewResultFromResult(raw)
	if err != nil {
		return Result{}, err
	}
	var ips []netip.Addr
	for _, ip := range r.IPs {
		if i := ip.Interface; i != nil && *i >= 0 && *i < len(r.Interfaces) && r.Interfaces[*i].Sandbox == "" {
			continue
		}
		a, ok := netip.AddrFromSlice(ip.Address.IP)
		if !ok {
			return Result{}, fmt.Errorf("address %v is none", ip.Address)
		}
		a = a.Unmap()
		if !slices.ContainsFunc(ips, func(o netip.Addr) bool { return o.Is4() == a.Is4() }) {
			ips = append(ips, a)
		}
	}
	if len(ips) == 0 {
		return Result{}, errors.New("no address for the pod")
	}
	return Result{IPs: ips}, nil
}

// check runs the CHECK verb. Kind NotFound for a pod that is not connected,
// Unimplemented where the configuration's version has no such verb.
func (p *plugins) check(ctx context.Context, pod Pod) error {
	a, err := p.records.load(pod.ID)
	if err != nil {
		return err
	}
	if a == nil || !a.Connected {
		return kind.Errorf(kind.NotFound, "it is not connected")
	}
	list, err := a.list()
	if err != nil {
		return err
	}
	err = p.cni.CheckNetworkList(ctx, list, a.runtimeConf(a.NetNS))
	if errors.Is(err, libcni.ErrorCheckNotSupp) {
		return kind.Wrap(kind.Unimplemented, err)
	}
	if err != nil {
		return failed(ctx, fmt.Errorf("network %s: %w", a.Name, err))
	}
	return nil
}

// del calls DEL with what ADD was called with: from the record, or from
// libcni's cache where the record was lost.
func (p *plugins) del(ctx context.Context, id string) error {
	held, err := p.held(id)
	if err != nil {
		return err
	}
	for _, a := range held {
		if err := p.disconnect(ctx, a); err != nil {
			return err
		}
	}
	return p.records.remove(id)
}

func (p *plugins) disconnect(ctx context.Context, a *attachment) error {
	list, err := a.list()
	if err != nil {
		return kind.Wrap(kind.Aborted, err)
	}
	netns := a.NetNS
	if !namespace.Pinned(netns) {
		netns = "" // gone with its interfaces; plugins free what is outside of it (spec, "DEL")
	}
	err = p.cni.DelNetworkList(ctx, list, a.runtimeConf(netns))
	if err != nil && ctx.Err() == nil && netns != "" && !a.Connected {
		// Some plugins insist on finding inside what an ADD that was cut off had
		// not made yet (bridge 1.1 its masquerading chain), for ever. That
		// namespace has no future: they may leave it alone.
		err = p.cni.DelNetworkList(ctx, list, a.runtimeConf(""))
	}
	if err != nil {
		return failed(ctx, fmt.Errorf("network %s: %w", a.Name, err))
	}
	return nil
}

func (p *plugins) held(id string) ([]*attachment, error) {
	a, err := p.records.load(id)
	if err != nil {
		return nil, err
	}
	if a != nil {
		return []*attachment{a}, nil
	}
	cached, err := p.cni.GetCachedAttachments(id)
	if err != nil {
		return nil, fmt.Errorf("read cached results: %w", err)
	}
	var list []*attachment
	for _, c := range cached {
		if c.IfName == podInterface {
			list = append(list, &attachment{ID: c.ContainerID, Name: c.Network, Conf: c.Config, NetNS: c.NetNS, Args: c.CniArgs, Caps: c.CapabilityArgs, Connected: true})
		}
	}
	return list, nil
}

func (p *plugins) attached() ([]string, error) {
	ids, err := p.records.ids()
	if err != nil {
		return nil, err
	}
	cached, err := p.cni.GetCachedAttachments("")
	if err != nil {
		return nil, fmt.Errorf("read cached results: %w", err)
	}
	for _, c := range cached {
		if !slices.Contains(ids, c.ContainerID) {
			ids = append(ids, c.ContainerID)
		}
	}
	return ids, nil
}

// sweep runs the GC verb, where the configuration's version has it (1.1): the
// plugins free what they hold for pods that are not in keep.
func (p *plugins) sweep(ctx context.Context, keep []string) error {
	c := p.seen.Load()
	if c.list == nil || !hasVerbs11(c.list) || c.list.DisableGC {
		return nil
	}
	args := &libcni.GCArgs{ValidAttachments: []types.GCAttachment{}}
	for _, id := range keep {
		args.ValidAttachments = append(args.ValidAttachments, types.GCAttachment{ContainerID: id, IfName: podInterface})
	}
	if err := p.cni.GCNetworkList(ctx, c.list, args); err != nil {
		return failed(ctx, fmt.Errorf("network %s: %w", c.list.Name, err))
	}
	return nil
}

func cniArgs(pod Pod) [][2]string {
	return [][2]string{
		{"IgnoreUnknown", "1"}, // plugins refuse keys they do not know otherwise
		{"K8S_POD_NAMESPACE", pod.Namespace},
		{"K8S_POD_NAME", pod.Name},
		{"K8S_POD_INFRA_CONTAINER_ID", pod.ID},
		{"K8S_POD_UID", pod.UID},
	}
}

// capabilities are the arguments that libcni hands to the plugins that declare
// them (CNI conventions, "Dynamic Plugin specific fields").
func (p *plugins) capabilities(pod Pod) map[string]any {
	caps := map[string]any{}
	if len(pod.PortMappings) > 0 {
		caps["portMappings"] = portMappings(pod.PortMappings)
	}
	if b := bandwidth(pod); len(b) > 0 {
		caps["bandwidth"] = b
	}
	if d := pod.DNS; len(d.Servers)+len(d.Searches)+len(d.Options) > 0 {
		caps["dns"] = map[string][]string{"servers": d.Servers, "searches": d.Searches, "options": d.Options}
	}
	if cidrs := p.cidrs.Load(); cidrs != nil && len(*cidrs) > 0 {
		var ranges [][]map[string]string // one set of ranges per family, an address of each
		for _, c := range *cidrs {
			ranges = append(ranges, []map[string]string{{"subnet": c.String()}})
		}
		caps["ipRanges"] = ranges
	}
	return caps
}

func portMappings(list []PortMapping) []map[string]any {
	ports := make([]map[string]any, len(list))
	for i, m := range list {
		ports[i] = map[string]any{"hostPort": m.HostPort, "containerPort": m.ContainerPort, "protocol": m.Protocol}
		if m.HostIP.IsValid() {
			ports[i]["hostIP"] = m.HostIP.String()
		}
	}
	return ports
}

// bandwidth gives rates in bits per second. A rate needs a burst (in bits);
// the annotations have none, so it is the largest.
func bandwidth(pod Pod) map[string]uint64 {
	b := map[string]uint64{}
	if pod.IngressBPS > 0 {
		b["ingressRate"], b["ingressBurst"] = pod.IngressBPS, math.MaxInt32
	}
	if pod.EgressBPS > 0 {
		b["egressRate"], b["egressBurst"] = pod.EgressBPS, math.MaxInt32
	}
	return b
}
