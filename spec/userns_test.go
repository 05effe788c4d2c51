package spec

import (
	"slices"
	"testing"

	rspec "github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/internal/idmap"
	"noded.dev/noded/internal/kind"
)

// usersInput is a container of a pod with a user namespace of its own.
func usersInput() Input {
	in := testInput()
	in.Pod.Linux.SecurityContext.NamespaceOptions = &cri.NamespaceOption{UsernsOptions: userNamespace(cri.NamespaceMode_POD, 65536)}
	in.Paths.UserNS = "/ns/user"
	in.Facts.IDMap = true
	return in
}

func TestUserNamespaceOfPod(t *testing.T) {
	in := usersInput()
	if got, want := UserNamespace(in.Pod), (idmap.Range{Host: 100000, Length: 65536}); got == nil || got.Users != want || got.Groups != want {
		t.Errorf("map %v", got)
	}
	for name, u := range map[string]*cri.UserNamespace{"none": nil, "node's": {Mode: cri.NamespaceMode_NODE}} {
		in.Pod.Linux.SecurityContext.NamespaceOptions.UsernsOptions = u
		if got := UserNamespace(in.Pod); got != nil {
			t.Errorf("%s: map %v", name, got)
		}
	}
}

func TestUsersSpec(t *testing.T) {
	in := usersInput()
	in.Container.Devices = []*cri.Device{{HostPath: "/dev/a", ContainerPath: "/dev/b", Permissions: "r"}, {HostPath: "/dev/c", ContainerPath: "/dev/c", Permissions: "r"}}
	in.Devices = [][]rspec.LinuxDevice{{{Path: "/dev/b", Type: "c", Major: 9, Minor: 1}}, {{Path: "/dev/c", Type: "c", Major: 9, Minor: 2}}}
	s := mustContainer(t, in)
	if !slices.Contains(s.Linux.Namespaces, rspec.LinuxNamespace{Type: rspec.UserNamespace, Path: "/ns/user"}) {
		t.Errorf("namespaces %v", s.Linux.Namespaces)
	}
	if s.Linux.UIDMappings != nil || s.Linux.GIDMappings != nil {
		t.Error("the map is written although the namespace is joined")
	}
	if len(s.Linux.MaskedPaths)+len(s.Linux.ReadonlyPaths) != 0 {
		t.Errorf("masked %v, read-only %v, the kubelet says none", s.Linux.MaskedPaths, s.Linux.ReadonlyPaths)
	}
	if len(s.Linux.Devices) != 1 || s.Linux.Devices[0].Path != "/dev/c" {
		t.Errorf("devices %v", s.Linux.Devices)
	}
	if m := mountAt(s, "/dev/b"); m == nil || m.Source != "/dev/a" || m.Type != "bind" {
		t.Errorf("renamed device: %v", m)
	}
	if len(s.Linux.Resources.Devices) != 3 {
		t.Errorf("rules %v", s.Linux.Resources.Devices)
	}
	if m := mountAt(s, "/sys"); m.Type != "sysfs" {
		t.Errorf("/sys: %v", m)
	}
	if m := mountAt(s, "/dev/pts"); !slices.Contains(m.Options, "gid=5") {
		t.Errorf("/dev/pts: %v", m)
	}
	// Lists that a kubelet sends count.
	in.Container.Linux.SecurityContext.MaskedPaths = []string{"/proc/kcore"}
	if s := mustContainer(t, in); !slices.Equal(s.Linux.MaskedPaths, []string{"/proc/kcore"}) {
		t.Errorf("masked %v", s.Linux.MaskedPaths)
	}
}

func mountAt(s *rspec.Spec, destination string) *rspec.Mount {
	for i := range s.Mounts {
		if s.Mounts[i].Destination == destination {
			return &s.Mounts[i]
		}
	}
	return nil
}

func TestUsersSpecFew(t *testing.T) {
	in := usersInput()
	in.Pod.Linux.SecurityContext.NamespaceOptions.UsernsOptions = userNamespace(cri.NamespaceMode_POD, 5)
	if m := mountAt(mustContainer(t, in), "/dev/pts"); slices.Contains(m.Options, "gid=5") {
		t.Errorf("/dev/pts has a group that does not exist: %v", m)
	}
	in.Paths.Self = "/bin/noded"
	s, err := Init(in)
	if err != nil {
		t.Fatal(err)
	}
	if u := s.Process.User; u.UID != 4 || u.GID != 4 {
		t.Errorf("init runs as %d:%d", u.UID, u.GID)
	}
	if !slices.ContainsFunc(s.Linux.Namespaces, func(n rspec.LinuxNamespace) bool { return n.Type == rspec.UserNamespace }) {
		t.Error("init is not in the pod's user namespace")
	}
}

// TestUsersHostNetwork: the node's sysfs can only be bound, and all of it.
func TestUsersHostNetwork(t *testing.T) {
	in := usersInput()
	in.Paths.NetNS, in.Paths.UTSNS = "", ""
	in.Pod.Linux.SecurityContext.NamespaceOptions.Network = cri.NamespaceMode_NODE
	m := mountAt(mustContainer(t, in), "/sys")
	if m.Type != "bind" || m.Source != "/sys" || !slices.Contains(m.Options, "rbind") || !slices.Contains(m.Options, "rro") {
		t.Errorf("/sys: %v", m)
	}
	in.Facts.RRO = false
	if m := mountAt(mustContainer(t, in), "/sys"); !slices.Contains(m.Options, "ro") {
		t.Errorf("/sys: %v", m)
	}
	in.Paths.OwnNet = true
	if m := mountAt(mustContainer(t, in), "/sys"); m.Type != "sysfs" {
		t.Errorf("/sys: %v", m)
	}
}

func TestUsersCgroupNamespace(t *testing.T) {
	in := usersInput()
	in.Facts.CgroupV2 = true
	in.Pod.Linux.SecurityContext.Privileged, in.Container.Linux.SecurityContext.Privileged = true, true
	s := mustContainer(t, in)
	if !slices.Contains(s.Linux.Namespaces, rspec.LinuxNamespace{Type: rspec.CgroupNamespace}) {
		t.Errorf("namespaces %v", s.Linux.Namespaces)
	}
}

func TestMountMaps(t *testing.T) {
	in := usersInput()
	in.MountSources = []string{"/h", "/i", "/j"}
	m := []*cri.IDMapping{{HostId: 100000, Length: 65536}}
	in.Container.Mounts = []*cri.Mount{
		{ContainerPath: "/h", HostPath: "/h", UidMappings: m, GidMappings: m}, {ContainerPath: "/i", HostPath: "/i", UidMappings: m, GidMappings: m},
		{ContainerPath: "/j", HostPath: "/j"},
	}
	in.MapTopOnly = []bool{false, true, false}
	s := mustContainer(t, in)
	for destination, option := range map[string]string{"/h": "ridmap", "/i": "idmap"} {
		m := mountAt(s, destination)
		want := []rspec.LinuxIDMapping{{HostID: 100000, Size: 65536}}
		if !slices.Contains(m.Options, option) || !slices.Equal(m.UIDMappings, want) || !slices.Equal(m.GIDMappings, want) {
			t.Errorf("%s: %v", destination, m)
		}
	}
	if m := mountAt(s, "/j"); m.UIDMappings != nil || slices.Contains(m.Options, "ridmap") {
		t.Errorf("/j: %v", m)
	}
	if s.Version != "1.1.0" {
		t.Errorf("version %s", s.Version)
	}
	in.Facts.IDMap = false
	wantKind(t, "handler without maps", in, kind.Precondition)
}

func TestUsersRefused(t *testing.T) {
	for name, change := range map[string]func(*Input){
		"user":               func(in *Input) { in.User.UID = 65536 },
		"group":              func(in *Input) { in.User.GID = 65536 },
		"supplemental group": func(in *Input) { in.User.AdditionalGIDs = []uint32{0, 70000} },
		"another user namespace": func(in *Input) {
			in.Container.Linux.SecurityContext.NamespaceOptions = &cri.NamespaceOption{UsernsOptions: userNamespace(cri.NamespaceMode_POD, 1000)}
		},
		"the node's user namespace": func(in *Input) {
			in.Container.Linux.SecurityContext.NamespaceOptions = &cri.NamespaceOption{UsernsOptions: &cri.UserNamespace{Mode: cri.NamespaceMode_NODE}}
		},
		"a user namespace in a pod without": func(in *Input) {
			in.Pod.Linux.SecurityContext.NamespaceOptions, in.Paths.UserNS = nil, ""
			in.Container.Linux.SecurityContext.NamespaceOptions = &cri.NamespaceOption{UsernsOptions: userNamespace(cri.NamespaceMode_POD, 65536)}
		},
		"the node's pid": func(in *Input) {
			in.Container.Linux.SecurityContext.NamespaceOptions = &cri.NamespaceOption{Pid: cri.NamespaceMode_NODE}
		},
		"bidirectional": func(in *Input) {
			in.Pod.Linux.SecurityContext.Privileged, in.Container.Linux.SecurityContext.Privileged = true, true
			in.MountSources = []string{"/h"}
			in.Container.Mounts = []*cri.Mount{{ContainerPath: "/h", HostPath: "/h", Propagation: cri.MountPropagation_PROPAGATION_BIDIRECTIONAL}}
		},
	} {
		in := usersInput()
		change(&in)
		wantKind(t, name, in, kind.Invalid)
	}
	in := usersInput()
	in.Container.Linux.SecurityContext.NamespaceOptions = &cri.NamespaceOption{UsernsOptions: userNamespace(cri.NamespaceMode_POD, 65536)}
	mustContainer(t, in)
	in.Paths.UserNS = ""
	wantKind(t, "not joined", in, kind.Internal)
}

func TestValidateUserNamespace(t *testing.T) {
	with := func(change func(*cri.NamespaceOption)) func(*cri.PodSandboxConfig) {
		return func(p *cri.PodSandboxConfig) {
			o := &cri.NamespaceOption{UsernsOptions: userNamespace(cri.NamespaceMode_POD, 65536)}
			change(o)
			p.Linux.SecurityContext.NamespaceOptions = o
		}
	}
	for name, change := range map[string]func(*cri.NamespaceOption){
		"TARGET":     func(o *cri.NamespaceOption) { o.UsernsOptions = &cri.UserNamespace{Mode: cri.NamespaceMode_TARGET} },
		"no mapping": func(o *cri.NamespaceOption) { o.UsernsOptions = &cri.UserNamespace{Mode: cri.NamespaceMode_POD} },
		"no groups":  func(o *cri.NamespaceOption) { o.UsernsOptions.Gids = nil },
		"more users": func(o *cri.NamespaceOption) {
			o.UsernsOptions.Uids = append(o.UsernsOptions.Uids, o.UsernsOptions.Uids[0])
		},
		"no root": func(o *cri.NamespaceOption) {
			o.UsernsOptions.Gids = []*cri.IDMapping{{ContainerId: 1, HostId: 9, Length: 9}}
		},
		"the node's root":  func(o *cri.NamespaceOption) { o.UsernsOptions.Uids = []*cri.IDMapping{{Length: 65536}} },
		"the last id":      func(o *cri.NamespaceOption) { o.UsernsOptions.Uids = []*cri.IDMapping{{HostId: 1<<32 - 1, Length: 1}} },
		"the node's pid":   func(o *cri.NamespaceOption) { o.Pid = cri.NamespaceMode_NODE },
		"the node's ipc":   func(o *cri.NamespaceOption) { o.Ipc = cri.NamespaceMode_NODE },
		"NODE and mapping": func(o *cri.NamespaceOption) { o.UsernsOptions.Mode = cri.NamespaceMode_NODE },
	} {
		in := testInput()
		with(change)(in.Pod)
		if err := ValidatePod(in.Pod); !kind.Is(err, kind.Invalid) {
			t.Errorf("%s: %v, want kind Invalid", name, err)
		}
	}
	for name, change := range map[string]func(*cri.NamespaceOption){
		"plain":              func(*cri.NamespaceOption) {},
		"the node's network": func(o *cri.NamespaceOption) { o.Network = cri.NamespaceMode_NODE },
		"the last ids": func(o *cri.NamespaceOption) {
			o.UsernsOptions.Uids = []*cri.IDMapping{{HostId: 1<<32 - 65537, Length: 65536}}
		},
		"another length": func(o *cri.NamespaceOption) { o.UsernsOptions.Uids = []*cri.IDMapping{{HostId: 1000, Length: 100000}} },
	} {
		in := testInput()
		with(change)(in.Pod)
		if err := ValidatePod(in.Pod); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
