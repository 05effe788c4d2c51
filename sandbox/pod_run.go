package sandbox

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/cni"
	"noded.dev/noded/internal/kind"
	"noded.dev/noded/internal/namespace"
	"noded.dev/noded/internal/steps"
	"noded.dev/noded/spec"
)

// run makes the pod, step by step; if one fails, destroy undoes all of them.
func (p *Pod) run(ctx context.Context, at func(string)) error {
	if err := acquire(ctx, p.busy); err != nil {
		return err
	}
	defer func() { <-p.busy }()
	err := steps.Run(ctx, "run pod", at,
		steps.Step{Name: "record", Do: p.recordFirst},
		steps.Step{Name: "make folders", Do: p.makeFolders},
		steps.Step{Name: "make cgroup", Do: p.makeCgroup},
		steps.Step{Name: "make namespaces", Do: p.makeNamespaces},
		steps.Step{Name: "connect network", Do: p.connect},
		steps.Step{Name: "write files", Do: p.writeFiles},
		steps.Step{Name: "mount shm", Do: p.mountShm},
		steps.Step{Name: "record ready", Do: func(context.Context) error {
			return p.update(func(r *podRecord) { r.State = podReady })
		}},
	)
	if err != nil {
		clean, cancel := steps.CleanUp(ctx, destroyLimit)
		defer cancel()
		return fmt.Errorf("run pod %s: %w", p.name(), errors.Join(err, p.abandon(clean)))
	}
	p.log.Info("pod is ready")
	return nil
}

func (p *Pod) name() string {
	return p.config.Metadata.GetNamespace() + "/" + p.config.Metadata.GetName()
}

// abandon destroys a pod that could not be made. What it cannot destroy now
// keeps its record, and the manager goes on trying.
func (p *Pod) abandon(ctx context.Context) error {
	if err := p.destroy(ctx); err != nil {
		p.m.destroyAfter(retryFirst, p.id, p.log, p.busy, p.destroy)
		return fmt.Errorf("undo: %w", err)
	}
	return nil
}

func (p *Pod) recordFirst(context.Context) error {
	if err := os.MkdirAll(p.paths.root, 0o700); err != nil {
		return err
	}
	return p.update(func(*podRecord) {})
}

func (p *Pod) makeFolders(context.Context) error {
	if err := os.MkdirAll(p.paths.state, 0o700); err != nil {
		return err
	}
	if dir := p.config.LogDirectory; dir != "" {
		return os.MkdirAll(dir, 0o755)
	}
	return nil
}

// makeCgroup settles where the pod's containers go: the kubelet's cgroup of
// the pod, or one of noded's own for a pod that names none.
func (p *Pod) makeCgroup(context.Context) error {
	parent := p.config.GetLinux().GetCgroupParent()
	if parent != "" {
		return p.update(func(r *podRecord) { r.Cgroup = parent })
	}
	parent = p.m.opts.CgroupParent
	if p.m.opts.SystemdCgroup {
		// Slices nest by their names; systemd makes and removes them.
		return p.update(func(r *podRecord) { r.Cgroup = parent })
	}
	own := filepath.Join(parent, p.id)
	if err := p.update(func(r *podRecord) { r.Cgroup, r.OwnCgroup = own, true }); err != nil {
		return err
	}
	if err := p.m.cgroups.Make(own); err != nil {
		return err
	}
	return p.setLimits(p.resources())
}

func (p *Pod) makeNamespaces(ctx context.Context) error {
	req := namespace.Request{
		Dir: p.paths.ns, Net: sharedNetwork(p.config), IPC: sharedIPC(p.config),
		UTS: !hostNetwork(p.config), Sysctls: p.config.GetLinux().GetSysctls(),
		IDs: spec.UserNamespace(p.config),
	}
	if req.UTS {
		req.Hostname = p.hostname()
	}
	if !req.Net && !req.IPC && !req.UTS && req.IDs == nil {
		return nil
	}
	return namespace.Create(ctx, req)
}

func (p *Pod) hostname() string { return spec.Hostname(p.config, p.id, p.m.opts.Facts.Hostname) }

func (p *Pod) connect(ctx context.Context) error {
	// CONTAINER scope means that no container shares a network with another,
	// so there is nothing to connect.
	if !sharedNetwork(p.config) {
		return nil
	}
	pod, err := p.networkPod()
	if err != nil {
		return err
	}
	if err := p.update(func(r *podRecord) { r.NetworkOwe = true }); err != nil {
		return err
	}
	result, err := p.m.network.Add(ctx, pod)
	if err != nil {
		return err
	}
	return p.update(func(r *podRecord) {
		r.IPs = nil
		for _, ip := range result.IPs {
			r.IPs = append(r.IPs, ip.String())
		}
	})
}

// networkPod describes the pod to the network.
func (p *Pod) networkPod() (cni.Pod, error) {
	meta := p.config.Metadata
	pod := cni.Pod{
		ID: p.id, Name: meta.GetName(), Namespace: meta.GetNamespace(), UID: meta.GetUid(),
		NetNS: namespace.Path(p.paths.ns, "net"),
		DNS:   cni.DNS{Servers: p.config.GetDnsConfig().GetServers(), Searches: p.config.GetDnsConfig().GetSearches(), Options: p.config.GetDnsConfig().GetOptions()},
	}
	var err error
	if pod.IngressBPS, pod.EgressBPS, err = bandwidth(p.config.Annotations); err != nil {
		return pod, err
	}
	for _, pm := range p.config.PortMappings {
		if pm.HostPort == 0 {
			continue // the CRI: no port is asked for
		}
		mapping := cni.PortMapping{HostPort: uint16(pm.HostPort), ContainerPort: uint16(pm.ContainerPort), Protocol: protocolName(pm.Protocol)}
		if pm.HostIp != "" {
			if mapping.HostIP, err = netip.ParseAddr(pm.HostIp); err != nil {
				return pod, kind.Errorf(kind.Invalid, "port mapping of host port %d: %w", pm.HostPort, err)
			}
		}
		pod.PortMappings = append(pod.PortMappings, mapping)
	}
	return pod, nil
}

func protocolName(p cri.Protocol) string {
	switch p {
	case cri.Protocol_UDP:
		return "udp"
	case cri.Protocol_SCTP:
		return "sctp"
	}
	return "tcp"
}
