package sandbox

import (
	"context"
	"fmt"

	rspec "github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/internal/cdi"
	"noded.dev/noded/internal/facts"
	"noded.dev/noded/internal/hostdev"
	"noded.dev/noded/internal/kind"
	"noded.dev/noded/internal/namespace"
	"noded.dev/noded/spec"
)

// specInput gathers what the container's spec depends on: the request, the
// image, and everything that has to be looked up on this node.
func (c *creation) specInput(ctx context.Context) (spec.Input, error) {
	paths, err := c.specPaths(ctx)
	if err != nil {
		return spec.Input{}, err
	}
	in := spec.Input{
		ID: c.id, PodID: c.pod.id, Pod: c.pod.config, Container: c.config,
		Image: c.image.Config.Config, ImageName: c.record().ImageName,
		User:  spec.User{UID: c.user.UID, GID: c.user.GID, AdditionalGIDs: c.user.AdditionalGIDs, Home: c.user.Home, Name: c.user.Name},
		Paths: paths, Cgroup: c.record().Cgroup, Facts: c.m.opts.Facts,
	}
	if info, err := c.m.runtime.Handler(c.record().Handler.Name); err == nil {
		in.Facts.RuntimeSpecMax, in.Facts.RRO, in.Facts.MountFlags = info.SpecMax, info.RRO, info.MountFlags
		in.Facts.IDMap = info.UserNS
	}
	if in.MountSources, err = c.mountSources(ctx); err != nil {
		return in, err
	}
	if in.MapTopOnly, err = c.mapTopOnly(ctx, in.MountSources); err != nil {
		return in, err
	}
	if c.config.GetLinux().GetSecurityContext().GetPrivileged() {
		// Listed anew for each: devices come and go while noded runs.
		if in.Facts.HostDevices, err = hostdev.All(); err != nil {
			return in, fmt.Errorf("list devices for a privileged container: %w", err)
		}
	}
	if in.Devices, err = hostDevices(c.config.Devices); err != nil {
		return in, err
	}
	in.SeccompLocalhost, err = localhostSeccomp(c.config)
	return in, err
}

// specPaths says which of the pod's files and namespaces the container joins.
func (c *creation) specPaths(ctx context.Context) (spec.Paths, error) {
	p := c.pod
	paths := p.joined()
	paths.RootFS, paths.Shm = c.rootfs, p.shmPath()
	paths.Hosts, paths.Hostname, paths.ResolvConf = p.paths.hosts(), p.paths.hostname(), p.paths.resolvConf()
	own := c.config.GetLinux().GetSecurityContext().GetNamespaceOptions()
	switch own.GetPid() {
	case cri.NamespaceMode_POD:
		pid, err := p.ensureInit(ctx)
		if err != nil {
			return paths, fmt.Errorf("shared PID namespace: %w", err)
		}
		paths.PIDNS = fmt.Sprintf("/proc/%d/ns/pid", pid)
	case cri.NamespaceMode_NODE:
		paths.HostPID = true
	case cri.NamespaceMode_TARGET:
		pid, err := p.targetPid(own.GetTargetId())
		if err != nil {
			return paths, err
		}
		paths.PIDNS = fmt.Sprintf("/proc/%d/ns/pid", pid)
	}
	return paths, nil
}

// joined are the namespaces that processes of the pod join, or get anew.
func (p *Pod) joined() spec.Paths {
	paths := spec.Paths{
		OwnNet: !sharedNetwork(p.config) && !hostNetwork(p.config),
		OwnIPC: !sharedIPC(p.config) && !hostIPC(p.config),
	}
	if sharedNetwork(p.config) {
		paths.NetNS = namespace.Path(p.paths.ns, "net")
	}
	if sharedIPC(p.config) {
		paths.IPCNS = namespace.Path(p.paths.ns, "ipc")
	}
	if !hostNetwork(p.config) {
		paths.UTSNS = namespace.Path(p.paths.ns, "uts")
	}
	if users := p.userNS(); users != nil {
		paths.UserNS = users.Path
	}
	return paths
}

// targetPid is the init of the container whose PID namespace is to be joined,
// which must be another running one of the same pod.
func (p *Pod) targetPid(id string) (int, error) {
	target, err := p.m.container(id)
	if err != nil {
		return 0, kind.Wrap(kind.Precondition, fmt.Errorf("target of the PID namespace: %w", err))
	}
	rec := target.record()
	if target.pod != p || rec.State != stateRunning {
		return 0, kind.Errorf(kind.Precondition, "target of the PID namespace: container %s is not a running one of this pod", id)
	}
	return rec.Process.Pid, nil
}

// mountSources finds the path behind every mount, in their order: of an image
// where it is mounted, of a host path what it leads to.
func (c *creation) mountSources(ctx context.Context) ([]string, error) {
	paths := make([]string, len(c.config.Mounts))
	for i, m := range c.config.Mounts {
		paths[i] = m.HostPath
	}
	sources, err := c.m.hostPaths.Resolve(ctx, paths, c.at)
	if err != nil {
		return nil, err
	}
	for i, path := range c.images {
		if path != "" {
			sources[i] = path
		}
	}
	return sources, nil
}

// hostDevices resolves the devices asked for; a folder stands for all in it.
func hostDevices(devices []*cri.Device) ([][]rspec.LinuxDevice, error) {
	out := make([][]rspec.LinuxDevice, len(devices))
	for i, d := range devices {
		found, err := hostdev.Resolve(d.HostPath, d.ContainerPath)
		if err != nil {
			return nil, fmt.Errorf("device %s: %w", d.HostPath, err)
		}
		out[i] = found
	}
	return out, nil
}

// deviceNames are the CDI devices that a container asks for.
func deviceNames(config *cri.ContainerConfig) ([]string, error) {
	var listed []string
	for _, d := range config.CDIDevices {
		listed = append(listed, d.GetName())
	}
	return cdi.Names(listed, config.Annotations)
}

// injectDevices adds CDI devices to the finished spec.
func (c *creation) injectDevices(in spec.Input) error {
	names, err := deviceNames(c.config)
	if err != nil || len(names) == 0 {
		return err
	}
	if err := cdi.Inject(c.spec, names, c.m.opts.CDISpecDirs); err != nil {
		return err
	}
	return spec.Recheck(in, c.spec)
}

// localhostSeccomp reads the profile file that the container asks for; nil if
// it asks for none.
func localhostSeccomp(config *cri.ContainerConfig) (*rspec.LinuxSeccomp, error) {
	path := spec.SeccompPath(config)
	if path == "" {
		return nil, nil
	}
	b, err := facts.SeccompProfile(path, spec.SeccompPathLimit)
	if err != nil {
		return nil, err
	}
	profile, err := spec.ParseSeccomp(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return profile, nil
}
