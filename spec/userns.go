package spec

import (
	"path"
	"slices"
	"strings"

	rspec "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/internal/idmap"
	"noded.dev/noded/internal/kind"
)

// UserNamespace is the map of a valid pod's own user namespace; nil if its
// containers have the node's ids.
func UserNamespace(p *cri.PodSandboxConfig) *idmap.Mapping {
	u := podNamespaces(p).GetUsernsOptions()
	if u == nil || u.GetMode() != cri.NamespaceMode_POD {
		return nil
	}
	return &idmap.Mapping{Users: idRange(u.GetUids()[0]), Groups: idRange(u.GetGids()[0])}
}

func idRange(m *cri.IDMapping) idmap.Range {
	return idmap.Range{Container: m.GetContainerId(), Host: m.GetHostId(), Length: m.GetLength()}
}

// MountMapping is the map of ids that a valid mount asks for; nil if it asks
// for none.
func MountMapping(m *cri.Mount) *idmap.Mapping {
	if len(m.GetUidMappings()) == 0 {
		return nil
	}
	return &idmap.Mapping{Users: idRange(m.GetUidMappings()[0]), Groups: idRange(m.GetGidMappings()[0])}
}

// validateUserNamespace checks the CRI's modes and that the pod has a root and
// does not have the node's.
func validateUserNamespace(u *cri.UserNamespace) error {
	if u == nil {
		return nil
	}
	switch u.GetMode() {
	case cri.NamespaceMode_NODE:
		if len(u.GetUids())+len(u.GetGids()) > 0 {
			return kind.Errorf(kind.Invalid, "user namespace mode NODE with id mappings")
		}
		return nil
	case cri.NamespaceMode_POD:
	default:
		return kind.Errorf(kind.Invalid, "user namespace mode %s: the CRI has POD and NODE", u.GetMode())
	}
	if err := validateMappings("user namespace", u.GetUids(), u.GetGids()); err != nil {
		return err
	}
	for what, m := range map[string]*cri.IDMapping{"user": u.GetUids()[0], "group": u.GetGids()[0]} {
		if m.GetContainerId() != 0 {
			return kind.Errorf(kind.Invalid, "user namespace: the %s mapping begins with %d, so that there is no root", what, m.GetContainerId())
		}
		if m.GetHostId() == 0 {
			return kind.Errorf(kind.Invalid, "user namespace: the %s mapping has the node's root", what)
		}
	}
	return nil
}

// validateMappings wants one mapping of each kind, which is all that kubelets
// send, and no overflow. The last id of 32 bits is no id: the kernel's "none".
func validateMappings(what string, users, groups []*cri.IDMapping) error {
	if len(users) != 1 || len(groups) != 1 {
		return kind.Errorf(kind.Invalid, "%s with %d user and %d group mappings, one of each is needed", what, len(users), len(groups))
	}
	for name, m := range map[string]*cri.IDMapping{"user": users[0], "group": groups[0]} {
		const ids = 1<<32 - 1
		if n := uint64(m.GetLength()); n == 0 || uint64(m.GetHostId())+n > ids || uint64(m.GetContainerId())+n > ids {
			return kind.Errorf(kind.Invalid, "%s: %s mapping of %d ids from %d to %d is not within 1 and %d ids", what, name, n, m.GetContainerId(), m.GetHostId(), uint32(ids))
		}
	}
	return nil
}

// validateOwned refuses namespaces of the node that a pod with a user namespace
// of its own could not use: /proc and the message queues of a namespace can be
// mounted by its owner only. In the node's network it can live.
func validateOwned(p *cri.PodSandboxConfig) error {
	if UserNamespace(p) == nil {
		return nil
	}
	if podNamespaces(p).GetPid() == cri.NamespaceMode_NODE {
		return kind.Errorf(kind.Invalid, "the node's PID namespace cannot be used from a user namespace of the pod")
	}
	if podNamespaces(p).GetIpc() == cri.NamespaceMode_NODE {
		return kind.Errorf(kind.Invalid, "the node's IPC namespace cannot be used from a user namespace of the pod")
	}
	return nil
}

// validateInPod checks what a container may ask for in its pod: it lives in the
// pod's user namespace, whether it says so or not.
func validateInPod(p *cri.PodSandboxConfig, c *cri.ContainerConfig) error {
	own := c.GetLinux().GetSecurityContext().GetNamespaceOptions()
	if u := own.GetUsernsOptions(); u != nil {
		pod := podNamespaces(p).GetUsernsOptions()
		if pod == nil {
			pod = &cri.UserNamespace{Mode: cri.NamespaceMode_NODE}
		}
		if !proto.Equal(u, pod) {
			return kind.Errorf(kind.Invalid, "container with another user namespace than its pod's")
		}
	}
	if UserNamespace(p) == nil {
		return nil
	}
	if own.GetPid() == cri.NamespaceMode_NODE {
		return kind.Errorf(kind.Invalid, "the node's PID namespace cannot be used from a user namespace of the pod")
	}
	for _, m := range c.GetMounts() {
		// The kernel makes such a mount a slave, which would look as if it worked.
		if m.GetPropagation() == cri.MountPropagation_PROPAGATION_BIDIRECTIONAL {
			return kind.Errorf(kind.Invalid, "mount %s: no mount propagates out of a user namespace of the pod", clip(m.GetContainerPath()))
		}
	}
	return nil
}

// joinUsers joins the pod's user namespace. Its map is not written into the
// spec: a runtime that joins by path reads it from there, and runc warns of a
// spec that has both.
func joinUsers(in *Input, s *rspec.Spec) error {
	ids := UserNamespace(in.Pod)
	if (ids != nil) != (in.Paths.UserNS != "") {
		return kind.Errorf(kind.Internal, "user namespace %q for a pod with the map %v", in.Paths.UserNS, ids)
	}
	if ids != nil {
		s.Linux.Namespaces = append(s.Linux.Namespaces, rspec.LinuxNamespace{Type: rspec.UserNamespace, Path: in.Paths.UserNS})
	}
	return nil
}

// checkIDs refuses users and groups that do not exist in the user namespace.
func checkIDs(in *Input, _ *rspec.Spec) error {
	ids := UserNamespace(in.Pod)
	if ids == nil {
		return nil
	}
	if _, err := ids.User(in.User.UID); err != nil {
		return err
	}
	for _, gid := range append([]uint32{in.User.GID}, in.User.AdditionalGIDs...) {
		if _, err := ids.Group(gid); err != nil {
			return err
		}
	}
	return nil
}

// sysMount is the pod's sysfs. It shows, and belongs to, a network namespace;
// from a user namespace that does not own that, only the node's can be bound.
func sysMount(in *Input, access string) rspec.Mount {
	m := rspec.Mount{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", access}}
	if in.Paths.UserNS == "" || in.Paths.NetNS != "" || in.Paths.OwnNet {
		return m
	}
	if access == "ro" && in.Facts.RRO {
		access = "rro"
	}
	m.Type, m.Source = "bind", "/sys"
	m.Options = append([]string{"rbind", "rprivate"}, "nosuid", "noexec", "nodev", access)
	return m
}

// ttyGroup is the group of terminals in every distribution.
const ttyGroup = 5

// ptsMount is the container's own terminals; they have the group tty where the
// user namespace has that.
func ptsMount(in *Input) rspec.Mount {
	m := rspec.Mount{Destination: "/dev/pts", Type: "devpts", Source: "devpts",
		Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"}}
	if ids := UserNamespace(in.Pod); ids != nil {
		if _, err := ids.Group(ttyGroup); err != nil {
			return m
		}
	}
	m.Options = append(m.Options, "gid=5")
	return m
}

// mapMount makes a mount show its files' owners through a map.
func mapMount(in *Input, i int, m *rspec.Mount) error {
	ids, image := MountMapping(in.Container.GetMounts()[i]), in.Container.GetMounts()[i].GetImage().GetImage() != ""
	switch pod := UserNamespace(in.Pod); {
	case ids == nil:
		return nil
	case image && (pod == nil || *pod != *ids):
		return kind.Errorf(kind.Invalid, "mount %s: an image has the ids of the pod's user namespace, it cannot have others", m.Destination)
	case image:
		return nil // mounted so
	}
	if !in.Facts.IDMap {
		return kind.Errorf(kind.Precondition, "mount %s: this runtime handler cannot map the owners of files", m.Destination)
	}
	option := "ridmap"
	if i < len(in.MapTopOnly) && in.MapTopOnly[i] {
		option = "idmap"
	}
	m.Options = append(m.Options, option)
	m.UIDMappings, m.GIDMappings = linuxMapping(ids.Users), linuxMapping(ids.Groups)
	return nil
}

func linuxMapping(r idmap.Range) []rspec.LinuxIDMapping {
	return []rspec.LinuxIDMapping{{ContainerID: r.Container, HostID: r.Host, Size: r.Length}}
}

// initIdentity is the user of a shared PID namespace's init: one that exists in
// the pod's user namespace and that containers have the least use for.
func initIdentity(in *Input) User {
	uid, gid := uint32(initUser), uint32(initUser)
	if ids := UserNamespace(in.Pod); ids != nil {
		uid, gid = min(uid, ids.Users.Length-1), min(gid, ids.Groups.Length-1)
	}
	return User{UID: uid, GID: gid, AdditionalGIDs: []uint32{gid}}
}

// bindDevices takes devices that have another name in the container than on
// the node from the runtime's list: in a user namespace, where no device can be
// made, runtimes bind what has the same name on the node.
func bindDevices(in *Input, s *rspec.Spec) error {
	if in.Paths.UserNS == "" {
		return nil
	}
	for i, d := range in.Container.GetDevices() {
		base, host := path.Clean(d.GetContainerPath()), path.Clean(d.GetHostPath())
		if base == host {
			continue
		}
		for _, node := range in.Devices[i] {
			s.Linux.Devices = slices.DeleteFunc(s.Linux.Devices, func(have rspec.LinuxDevice) bool { return have.Path == node.Path })
			s.Mounts = append(s.Mounts, rspec.Mount{Destination: node.Path, Type: "bind", Source: host + strings.TrimPrefix(node.Path, base),
				Options: []string{"bind", "rprivate", "nosuid", "noexec"}})
		}
	}
	return nil
}
