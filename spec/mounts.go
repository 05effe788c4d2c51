package spec

import (
	"path"
	"slices"
	"strings"

	rspec "github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"

	"noded.dev/noded/internal/kind"
)

// applyMounts puts together the mounts that every container has, the pod's
// files, and the request's, which replace any of ours at the same place.
func applyMounts(in *Input, s *rspec.Spec) error {
	if len(in.MountSources) != len(in.Container.GetMounts()) {
		return kind.Errorf(kind.Internal, "%d mount sources for %d mounts", len(in.MountSources), len(in.Container.GetMounts()))
	}
	requested, err := requestedMounts(in)
	if err != nil {
		return err
	}
	taken := map[string]bool{}
	for _, m := range requested {
		taken[m.Destination] = true
	}
	for _, m := range append(baseMounts(in), podFiles(in)...) {
		if !taken[m.Destination] && !hidden(m.Destination, taken) {
			s.Mounts = append(s.Mounts, m)
		}
	}
	s.Mounts = append(s.Mounts, requested...)
	// Parents come before children, or a parent's mount would hide the
	// child's. Equal depths keep their order.
	slices.SortStableFunc(s.Mounts, func(a, b rspec.Mount) int { return depth(a.Destination) - depth(b.Destination) })
	s.Linux.RootfsPropagation = rootPropagation(in.Container.GetMounts())
	return nil
}

// hidden says that a request brings a whole /dev or /sys of its own (a host's,
// usually), in which ours below it have no place.
func hidden(destination string, taken map[string]bool) bool {
	return taken["/dev"] && strings.HasPrefix(destination, "/dev/") ||
		taken["/sys"] && strings.HasPrefix(destination, "/sys/")
}

func depth(destination string) int { return strings.Count(destination, "/") }

func baseMounts(in *Input) []rspec.Mount {
	access := "ro"
	if in.privileged() {
		access = "rw"
	}
	return []rspec.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		ptsMount(in),
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		sysMount(in, access),
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", access}},
		shmMount(in.Paths.Shm),
	}
}

// shmMount is the pod's shared memory, or a private one (whose size is the
// kubelet's default) where there is none.
func shmMount(source string) rspec.Mount {
	if source == "" {
		return rspec.Mount{Destination: "/dev/shm", Type: "tmpfs", Source: "shm",
			Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}}
	}
	return rspec.Mount{Destination: "/dev/shm", Type: "bind", Source: source,
		Options: []string{"rbind", "rprivate", "nosuid", "noexec", "nodev", "rw"}}
}

// podFiles are the files that noded writes for a pod. They follow the root
// filesystem's writability.
func podFiles(in *Input) []rspec.Mount {
	access := "rw"
	if in.security().GetReadonlyRootfs() {
		access = "ro"
	}
	var mounts []rspec.Mount
	for _, f := range []struct{ destination, source string }{
		{"/etc/hosts", in.Paths.Hosts},
		{"/etc/hostname", in.Paths.Hostname},
		{"/etc/resolv.conf", in.Paths.ResolvConf},
	} {
		if f.source != "" {
			mounts = append(mounts, rspec.Mount{Destination: f.destination, Type: "bind", Source: f.source,
				Options: []string{"rbind", "rprivate", access}})
		}
	}
	return mounts
}

func requestedMounts(in *Input) ([]rspec.Mount, error) {
	var mounts []rspec.Mount
	for i, m := range in.Container.GetMounts() {
		if m.GetRecursiveReadOnly() && !in.Facts.RRO {
			// The kubelet wants this error's text at the start of the message;
			// the edge puts it there, wherever the chain has it.
			return nil, kind.Errorf(kind.Precondition, "mount %s: this kernel or handler cannot make it recursively read-only: %w", m.GetContainerPath(), crierrors.ErrRROUnsupported)
		}
		if err := checkMountFlags(in, m); err != nil {
			return nil, err
		}
		if in.MountSources[i] == "" {
			return nil, kind.Errorf(kind.Internal, "mount %s has no source", m.GetContainerPath())
		}
		mounts = append(mounts, rspec.Mount{
			Destination: path.Clean(m.GetContainerPath()),
			Type:        "bind",
			Source:      in.MountSources[i],
			Options:     mountOptions(m),
		})
		if err := mapMount(in, i, &mounts[len(mounts)-1]); err != nil {
			return nil, err
		}
	}
	return mounts, nil
}

func mountOptions(m *cri.Mount) []string {
	options := []string{"rbind", propagationOption(m.GetPropagation())}
	switch {
	case m.GetRecursiveReadOnly():
		options = append(options, "rro")
	case m.GetReadonly() || m.GetImage().GetImage() != "":
		options = append(options, "ro")
	default:
		options = append(options, "rw")
	}
	if m.GetImage().GetImage() != "" {
		// Data alone: that is how Kubernetes describes image volumes.
		options = append(options, "nosuid", "nodev", "noexec")
	}
	for _, o := range m.GetMountOptions() {
		options = appendNew(options, o)
	}
	return options
}

// checkMountFlags refuses options that the handler would ignore or fail on,
// where it tells which it knows.
func checkMountFlags(in *Input, m *cri.Mount) error {
	for _, o := range m.GetMountOptions() {
		if len(in.Facts.MountFlags) > 0 && !in.Facts.MountFlags[o] {
			return kind.Errorf(kind.Precondition, "mount %s: the runtime handler does not know the mount option %q", clip(m.GetContainerPath()), o)
		}
	}
	return nil
}

func propagationOption(p cri.MountPropagation) string {
	switch p {
	case cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER:
		return "rslave"
	case cri.MountPropagation_PROPAGATION_BIDIRECTIONAL:
		return "rshared"
	}
	return "rprivate"
}

// rootPropagation is the weakest isolation of the root that the mounts need:
// what a private root does not receive cannot reach a mount below it. "" lets
// the runtime choose.
func rootPropagation(mounts []*cri.Mount) string {
	result := ""
	for _, m := range mounts {
		switch m.GetPropagation() {
		case cri.MountPropagation_PROPAGATION_BIDIRECTIONAL:
			return "rshared"
		case cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER:
			result = "rslave"
		}
	}
	return result
}
