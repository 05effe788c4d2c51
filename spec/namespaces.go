package spec

import (
	rspec "github.com/opencontainers/runtime-spec/specs-go"
)

// applyNamespaces joins the pod's namespaces; the mount namespace is always the
// container's own. A namespace that is the host's is left out.
func applyNamespaces(in *Input, s *rspec.Spec) error {
	p := in.Paths
	ns := []rspec.LinuxNamespace{{Type: rspec.MountNamespace}}
	join := func(t rspec.LinuxNamespaceType, path string) {
		if path != "" {
			ns = append(ns, rspec.LinuxNamespace{Type: t, Path: path})
		}
	}
	join(rspec.NetworkNamespace, p.NetNS)
	join(rspec.IPCNamespace, p.IPCNS)
	if p.OwnNet {
		ns = append(ns, rspec.LinuxNamespace{Type: rspec.NetworkNamespace})
	}
	if p.OwnIPC {
		ns = append(ns, rspec.LinuxNamespace{Type: rspec.IPCNamespace})
	}
	join(rspec.UTSNamespace, p.UTSNS)
	if !p.HostPID {
		ns = append(ns, rspec.LinuxNamespace{Type: rspec.PIDNamespace, Path: p.PIDNS})
	}
	// On v2 it hides the node's cgroup paths. On v1 runtimes bind the
	// container's own cgroups instead; privileged containers manage the node's,
	// which those in a user namespace have no rights to.
	if in.Facts.CgroupV2 && (!in.privileged() || p.UserNS != "") {
		ns = append(ns, rspec.LinuxNamespace{Type: rspec.CgroupNamespace})
	}
	s.Linux.Namespaces = ns
	return joinUsers(in, s)
}
