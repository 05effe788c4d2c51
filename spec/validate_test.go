package spec

import (
	"fmt"
	"math"
	"strings"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/internal/kind"
)

// TestValidatePod: one change of a good pod, and the kind it must fail with.
func TestValidatePod(t *testing.T) {
	if err := ValidatePod(testInput().Pod); err != nil {
		t.Fatalf("a good pod: %v", err)
	}
	if err := ValidatePod(nil); !kind.Is(err, kind.Invalid) {
		t.Errorf("no pod: %v", err)
	}
	type pod = *cri.PodSandboxConfig
	security := func(p pod) *cri.LinuxSandboxSecurityContext { return p.Linux.SecurityContext }
	namespaces := func(p pod) *cri.NamespaceOption {
		security(p).NamespaceOptions = &cri.NamespaceOption{}
		return security(p).NamespaceOptions
	}
	for name, change := range map[string]func(pod){
		"B28 no metadata":          func(p pod) { p.Metadata = nil },
		"B28 empty name":           func(p pod) { p.Metadata.Name = "" },
		"B28 empty uid":            func(p pod) { p.Metadata.Uid = "" },
		"B28 empty namespace":      func(p pod) { p.Metadata.Namespace = "" },
		"B28 long name":            func(p pod) { p.Metadata.Name = strings.Repeat("x", 1<<20) },
		"B28 invalid UTF-8":        func(p pod) { p.Metadata.Name = "\xff" },
		"B28 labels":               func(p pod) { p.Labels = manyLabels(100000) },
		"B28 annotations":          func(p pod) { p.Annotations = manyLabels(100000) },
		"V81 uid with dots":        func(p pod) { p.Metadata.Uid = "../../.." },
		"V81 name with slash":      func(p pod) { p.Metadata.Name = "a/b" },
		"V81 log directory dots":   func(p pod) { p.LogDirectory = "/var/log/pods/../../../noded-canary" },
		"V81 log directory":        func(p pod) { p.LogDirectory = "pods" },
		"V81 log directory line":   func(p pod) { p.LogDirectory = "/a\n" },
		"V44 hostname line":        func(p pod) { p.Hostname = "a\n1.2.3.4 b" },
		"hostname length":          func(p pod) { p.Hostname = strings.Repeat("a", 65) },
		"DNS server":               func(p pod) { p.DnsConfig = &cri.DNSConfig{Servers: []string{"ns.example"}} },
		"DNS search space":         func(p pod) { p.DnsConfig = &cri.DNSConfig{Searches: []string{"a b"}} },
		"DNS option line":          func(p pod) { p.DnsConfig = &cri.DNSConfig{Options: []string{"a\nnameserver 1.1.1.1"}} },
		"port protocol":            func(p pod) { p.PortMappings = []*cri.PortMapping{{Protocol: 9, ContainerPort: 1}} },
		"port host":                func(p pod) { p.PortMappings = []*cri.PortMapping{{HostPort: 65536, ContainerPort: 1}} },
		"port host negative":       func(p pod) { p.PortMappings = []*cri.PortMapping{{HostPort: -1, ContainerPort: 1}} },
		"port container":           func(p pod) { p.PortMappings = []*cri.PortMapping{{HostPort: 80}} },
		"port address":             func(p pod) { p.PortMappings = []*cri.PortMapping{{HostPort: 80, ContainerPort: 80, HostIp: "x"}} },
		"B36 cgroup parent dots":   func(p pod) { p.Linux.CgroupParent = "../../" },
		"B36 cgroup parent NUL":    func(p pod) { p.Linux.CgroupParent = "/a\x00b" },
		"B36 cgroup parent length": func(p pod) { p.Linux.CgroupParent = "/" + strings.Repeat("a", 4096) },
		"run_as_group alone":       func(p pod) { security(p).RunAsGroup = &cri.Int64Value{Value: 1} },
		"B35 run_as_user -1":       func(p pod) { security(p).RunAsUser = &cri.Int64Value{Value: -1} },
		"groups policy":            func(p pod) { security(p).SupplementalGroupsPolicy = 9 },
		"seccomp":                  func(p pod) { security(p).Seccomp = &cri.SecurityProfile{ProfileType: 2} },
		"SELinux":                  func(p pod) { security(p).SelinuxOptions = &cri.SELinuxOption{Type: "a:b"} },
		"overhead":                 func(p pod) { p.Linux.Overhead = &cri.LinuxContainerResources{CpuShares: -1} },
		"B33 network mode":         func(p pod) { namespaces(p).Network = 7 },
		"B33 network TARGET":       func(p pod) { namespaces(p).Network = cri.NamespaceMode_TARGET },
		"B33 sysctl without net": func(p pod) {
			namespaces(p).Network = cri.NamespaceMode_CONTAINER
			p.Linux.Sysctls = map[string]string{"net.ipv4.ip_forward": "1"}
		},
		"B33 ipc TARGET":  func(p pod) { namespaces(p).Ipc = cri.NamespaceMode_TARGET },
		"B33 pid TARGET":  func(p pod) { n := namespaces(p); n.Pid, n.TargetId = cri.NamespaceMode_TARGET, "x" },
		"B33 userns mode": func(p pod) { namespaces(p).UsernsOptions = &cri.UserNamespace{Mode: cri.NamespaceMode_CONTAINER} },
		"B33 userns NODE mapped": func(p pod) {
			namespaces(p).UsernsOptions = userNamespace(cri.NamespaceMode_NODE, 1)
		},
		"B33 userns length 0": func(p pod) { namespaces(p).UsernsOptions = userNamespace(cri.NamespaceMode_POD, 0) },
		"B33 userns 2^32": func(p pod) {
			namespaces(p).UsernsOptions = userNamespace(cri.NamespaceMode_POD, math.MaxUint32)
		},
	} {
		in := testInput()
		change(in.Pod)
		if err := ValidatePod(in.Pod); !kind.Is(err, kind.Invalid) {
			t.Errorf("%s: %v, want kind Invalid", name, err)
		}
	}
	in := testInput()
	in.Pod.PortMappings = make([]*cri.PortMapping, maxPorts+1)
	if err := ValidatePod(in.Pod); !kind.Is(err, kind.Exhausted) {
		t.Errorf("many ports: %v, want kind Exhausted", err)
	}
}

func userNamespace(mode cri.NamespaceMode, length uint32) *cri.UserNamespace {
	m := []*cri.IDMapping{{HostId: 100000, Length: length}}
	return &cri.UserNamespace{Mode: mode, Uids: m, Gids: m}
}

func manyLabels(n int) map[string]string {
	m := map[string]string{}
	for i := range n {
		m[fmt.Sprintf("label-%07d", i)] = "value"
	}
	return m
}

// TestPodAccepted: what kubelets and crictl really send.
func TestPodAccepted(t *testing.T) {
	for name, p := range map[string]*cri.PodSandboxConfig{
		"smallest": {Metadata: &cri.PodSandboxMetadata{Name: "a", Namespace: "b", Uid: "c"}},
		"host network with ports": {
			Metadata:     &cri.PodSandboxMetadata{Name: "a", Namespace: "b", Uid: "c"},
			PortMappings: []*cri.PortMapping{{HostPort: 80, ContainerPort: 80, Protocol: cri.Protocol_SCTP, HostIp: "::1"}, {ContainerPort: 90}},
			Linux: &cri.LinuxPodSandboxConfig{
				CgroupParent: "/kubepods/burstable/pod1",
				SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: &cri.NamespaceOption{
					Network: cri.NamespaceMode_NODE, Pid: cri.NamespaceMode_CONTAINER, UsernsOptions: &cri.UserNamespace{Mode: cri.NamespaceMode_NODE}}},
			},
			LogDirectory: "/var/log/pods/b_a_c/",
			DnsConfig:    &cri.DNSConfig{Servers: []string{"10.0.0.1", "fe80::1%eth0"}, Searches: []string{"svc.local"}, Options: []string{"ndots:5"}},
		},
	} {
		if err := ValidatePod(p); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestSysctls: V53, B32. A value cannot smuggle a second sysctl, and only what
// belongs to a namespace of the pod passes.
func TestSysctls(t *testing.T) {
	host := &cri.NamespaceOption{Network: cri.NamespaceMode_NODE, Ipc: cri.NamespaceMode_NODE}
	for _, c := range []struct {
		name, value string
		namespaces  *cri.NamespaceOption
		ok          bool
	}{
		{"net.ipv4.ip_forward", "1", nil, true},
		{"net.ipv4.ip_local_port_range", "1024\t65535", nil, true},
		{"net.ipv4.ip_local_reserved_ports", "80,443-450", nil, true},
		{"net.ipv4.conf.eth0-1.rp_filter", "-1", nil, true},
		{"kernel.shm_rmid_forced", "1", nil, true},
		{"kernel.sem", "250 32000 32 128", nil, true},
		{"fs.mqueue.msg_max", "10", nil, true},
		{"kernel.shm_rmid_forced", "1+kernel.core_pattern=|/bin/sh", nil, false},
		{"kernel.shm_rmid_forced", "1\nkernel.core_pattern=x", nil, false},
		{"kernel.shm_rmid_forced", "a=b", nil, false},
		{"kernel.shm_rmid_forced", "/x", nil, false},
		{"kernel.shm_rmid_forced", "1\x00", nil, false},
		{"kernel.shm_rmid_forced", strings.Repeat("1", maxSysctlValue+1), nil, false},
		{"kernel.shm_rmid_forced", "1", host, false},
		{"fs.mqueue.msg_max", "1", host, false},
		{"net.ipv4.ip_forward", "1", host, false},
		{"kernel.core_pattern", "x", nil, false},
		{"kernel.hostname", "x", nil, false},
		{"kernel.shmmax.x", "1", nil, false},
		{"vm.swappiness", "1", nil, false},
		{"net", "1", nil, false},
		{"net.", "1", nil, false},
		{"net..x", "1", nil, false},
		{"net/ipv4/ip_forward", "1", nil, false},
		{"net.ipv4/../../kernel.core_pattern", "1", nil, false},
		{"net.ipv4.a=b", "1", nil, false},
		{"", "1", nil, false},
		{"net.\n", "1", nil, false},
	} {
		in := testInput()
		in.Pod.Linux.Sysctls = map[string]string{c.name: c.value}
		in.Pod.Linux.SecurityContext.NamespaceOptions = c.namespaces
		err := ValidatePod(in.Pod)
		if c.ok != (err == nil) || err != nil && !kind.Is(err, kind.Invalid) {
			t.Errorf("%q=%q: %v, want ok %v", c.name, clip(c.value), err, c.ok)
		}
	}
}

// containerRejects fails for each change of a good container that builds.
func containerRejects(t *testing.T, changes map[string]func(*cri.ContainerConfig)) {
	t.Helper()
	for name, change := range changes {
		in := testInput()
		in.Facts.CgroupV2 = !strings.HasSuffix(name, "on v1")
		change(in.Container)
		wantKind(t, name, in, kind.Invalid)
	}
}

// TestValidateProcess: names, command, environment, identity and security.
func TestValidateProcess(t *testing.T) {
	type config = *cri.ContainerConfig
	security := func(c config) *cri.LinuxContainerSecurityContext { return c.Linux.SecurityContext }
	env := func(key, value string) func(config) {
		return func(c config) { c.Envs = []*cri.KeyValue{{Key: key, Value: []byte(value)}} }
	}
	containerRejects(t, map[string]func(config){
		"B28 no metadata":        func(c config) { c.Metadata = nil },
		"B28 empty name":         func(c config) { c.Metadata.Name = "" },
		"B28 no image":           func(c config) { c.Image = nil },
		"B28 labels":             func(c config) { c.Labels = manyLabels(100000) },
		"B24 stop signal":        func(c config) { c.StopSignal = 9999 },
		"V81 log path dots":      func(c config) { c.LogPath = "../../x" },
		"V81 log path absolute":  func(c config) { c.LogPath = "/abs" },
		"V81 log path inner":     func(c config) { c.LogPath = "a/../../x" },
		"V81 log path itself":    func(c config) { c.LogPath = "." },
		"env without name":       env("", "x"),
		"env name with =":        env("A=B", "x"),
		"env NUL":                env("A", "x\x00"),
		"B21 env value":          env("A", strings.Repeat("x", 2<<20)),
		"env not UTF-8":          env("A", "\xff\xfe"),
		"V44 HOME line":          env("HOME", "/root\nm::0:0::/:/bin/sh"),
		"V44 HOME return":        env("HOME", "/root\r"),
		"V44 cwd line":           func(c config) { c.WorkingDir = "/a\nb" },
		"V47 cwd descriptor":     func(c config) { c.WorkingDir = "/proc/self/fd/7" },
		"V47 cwd of a process":   func(c config) { c.WorkingDir = "/x/../proc/1/cwd" },
		"cwd relative":           func(c config) { c.WorkingDir = "a" },
		"B22 empty command":      func(c config) { c.Command = []string{""} },
		"B22 command NUL":        func(c config) { c.Command = []string{"/bin/sh", "a\x00"} },
		"B22 long argument":      func(c config) { c.Command = []string{"/bin/sh", strings.Repeat("x", 2<<20)} },
		"B22 many arguments":     func(c config) { c.Args = make([]string, 300000) },
		"B35 group alone":        func(c config) { security(c).RunAsGroup = &cri.Int64Value{} },
		"B35 user -1":            func(c config) { security(c).RunAsUser = &cri.Int64Value{Value: -1} },
		"B35 user 2^31":          func(c config) { security(c).RunAsUser = &cri.Int64Value{Value: 1 << 31} },
		"B35 user 2^32":          func(c config) { security(c).RunAsUser = &cri.Int64Value{Value: 1 << 32} },
		"supplemental group":     func(c config) { security(c).SupplementalGroups = []int64{-5} },
		"V44 user name line":     func(c config) { security(c).RunAsUsername = "a\nb" },
		"B35 capability":         func(c config) { security(c).Capabilities = &cri.Capability{AddCapabilities: []string{"CAP_FOO"}} },
		"B35 ambient":            func(c config) { security(c).Capabilities = &cri.Capability{AddAmbientCapabilities: []string{"FOO"}} },
		"B35 masked relative":    func(c config) { security(c).MaskedPaths = []string{"a"} },
		"read-only root":         func(c config) { security(c).ReadonlyPaths = []string{"/"} },
		"V52 seccomp empty":      func(c config) { security(c).Seccomp = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost} },
		"V52 seccomp relative":   func(c config) { security(c).Seccomp = localhostProfile("../../x") },
		"V52 seccomp unclean":    func(c config) { security(c).Seccomp = localhostProfile("/a/../b") },
		"V52 seccomp type":       func(c config) { security(c).Seccomp = &cri.SecurityProfile{ProfileType: 9} },
		"AppArmor without name":  func(c config) { security(c).Apparmor = localhostProfile("") },
		"privileged in ordinary": func(c config) { security(c).Privileged = true },
		"B33 TARGET of nothing": func(c config) {
			security(c).NamespaceOptions = &cri.NamespaceOption{Pid: cri.NamespaceMode_TARGET}
		},
		"B33 pid mode": func(c config) { security(c).NamespaceOptions = &cri.NamespaceOption{Pid: 8} },
	})
	in := testInput()
	in.Container = nil
	wantKind(t, "no container", in, kind.Invalid)
	in = testInput()
	in.Pod.Metadata = nil
	wantKind(t, "no pod metadata", in, kind.Invalid)
	in = testInput()
	makePrivileged(&in)
	in.Container.Linux.SecurityContext.NoNewPrivs = true
	wantKind(t, "B35 no_new_privs and privileged", in, kind.Invalid)
}

// TestValidateResources: devices and limits.
func TestValidateResources(t *testing.T) {
	type config = *cri.ContainerConfig
	resources := func(c config) *cri.LinuxContainerResources { return c.Linux.Resources }
	device := func(host, container, permissions string) func(config) {
		return func(c config) {
			c.Devices = []*cri.Device{{HostPath: host, ContainerPath: container, Permissions: permissions}}
		}
	}
	containerRejects(t, map[string]func(config){
		"B31 permissions":   device("/dev/fuse", "/dev/fuse", "xyz"),
		"B31 none":          device("/dev/fuse", "/dev/fuse", ""),
		"B31 twice":         device("/dev/fuse", "/dev/fuse", "rr"),
		"B31 traversal":     device("/dev/fuse", "/dev/../..", "r"),
		"B31 proc":          device("/dev/fuse", "/proc/x", "r"),
		"B31 relative":      device("dev/fuse", "/dev/fuse", "r"),
		"B31 over /dev":     device("/dev/fuse", "/dev", "r"),
		"B34 shares":        func(c config) { resources(c).CpuShares = 1 },
		"B34 shares 2^40":   func(c config) { resources(c).CpuShares = 1 << 40 },
		"B34 quota":         func(c config) { resources(c).CpuQuota = -2 },
		"B34 quota largest": func(c config) { resources(c).CpuQuota = math.MaxInt64 },
		"B34 period":        func(c config) { resources(c).CpuPeriod = 1 },
		"B34 memory":        func(c config) { resources(c).MemoryLimitInBytes = -5 },
		"B34 memory most":   func(c config) { resources(c).MemoryLimitInBytes = math.MaxInt64 },
		"B34 swap": func(c config) {
			resources(c).MemoryLimitInBytes, resources(c).MemorySwapLimitInBytes = 100<<20, 50<<20
		},
		"B34 cpuset range":     func(c config) { resources(c).CpusetCpus = "0-999999" },
		"B34 cpuset word":      func(c config) { resources(c).CpusetCpus = "a" },
		"B34 cpuset reversed":  func(c config) { resources(c).CpusetCpus = "3-1" },
		"B34 cpuset sign":      func(c config) { resources(c).CpusetCpus = "+1" },
		"B34 cpuset empty":     func(c config) { resources(c).CpusetMems = "0,," },
		"B34 hugepage 3KB":     func(c config) { resources(c).HugepageLimits = []*cri.HugepageLimit{{PageSize: "3KB"}} },
		"B34 hugepage of none": func(c config) { resources(c).HugepageLimits = []*cri.HugepageLimit{{PageSize: "4MB"}} },
		"B34 hugepage path":    func(c config) { resources(c).HugepageLimits = []*cri.HugepageLimit{{PageSize: "../x"}} },
		"B34 oom high":         func(c config) { resources(c).OomScoreAdj = 10000 },
		"B34 oom low":          func(c config) { resources(c).OomScoreAdj = -10000 },
		"B34 unified on v1":    func(c config) { resources(c).Unified = map[string]string{"memory.high": "1"} },
		"V55 unified path":     func(c config) { resources(c).Unified = map[string]string{"../memory.high": "1"} },
		"V55 unified dots":     func(c config) { resources(c).Unified = map[string]string{"memory..high": "1"} },
		"V55 unified core":     func(c config) { resources(c).Unified = map[string]string{"cgroup.procs": "1"} },
		"V55 unified NUL":      func(c config) { resources(c).Unified = map[string]string{"memory.high": "1\x00"} },
	})
}

func localhostProfile(ref string) *cri.SecurityProfile {
	return &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: ref}
}

// TestValidateMounts: B30, V58, V59.
func TestValidateMounts(t *testing.T) {
	at := func(path string) *cri.Mount { return &cri.Mount{ContainerPath: path, HostPath: "/h"} }
	from := func(path string) *cri.Mount { return &cri.Mount{ContainerPath: "/c", HostPath: path} }
	for name, c := range map[string]struct {
		mounts []*cri.Mount
		want   kind.Kind
	}{
		"empty":                {[]*cri.Mount{at("")}, kind.Invalid},
		"relative":             {[]*cri.Mount{at("a")}, kind.Invalid},
		"relative dots":        {[]*cri.Mount{at("a/../..")}, kind.Invalid},
		"root":                 {[]*cri.Mount{at("/")}, kind.Invalid},
		"root in disguise":     {[]*cri.Mount{at("/dev/..")}, kind.Invalid},
		"V59 proc":             {[]*cri.Mount{at("/proc")}, kind.Invalid},
		"V59 proc unclean":     {[]*cri.Mount{at("//x/../proc/")}, kind.Invalid},
		"V59 proc self":        {[]*cri.Mount{at("/proc/self")}, kind.Invalid},
		"below a device":       {[]*cri.Mount{at("/dev/null/x")}, kind.Invalid},
		"NUL":                  {[]*cri.Mount{at("/a\x00b")}, kind.Invalid},
		"newline":              {[]*cri.Mount{at("/a\nb")}, kind.Invalid},
		"long part":            {[]*cri.Mount{at("/" + strings.Repeat("a", 256))}, kind.Invalid},
		"duplicate":            {[]*cri.Mount{at("/a"), at("/b/../a/")}, kind.Invalid},
		"V58 source 70000":     {[]*cri.Mount{from("/" + strings.Repeat("a/", 35000))}, kind.Invalid},
		"source relative":      {[]*cri.Mount{from("a")}, kind.Invalid},
		"source empty":         {[]*cri.Mount{from("")}, kind.Invalid},
		"propagation":          {[]*cri.Mount{{ContainerPath: "/c", HostPath: "/h", Propagation: 7}}, kind.Invalid},
		"bidirectional":        {[]*cri.Mount{{ContainerPath: "/c", HostPath: "/h", Propagation: 2}}, kind.Invalid},
		"rro writable":         {[]*cri.Mount{{ContainerPath: "/c", HostPath: "/h", RecursiveReadOnly: true}}, kind.Invalid},
		"rro shared":           {[]*cri.Mount{{ContainerPath: "/c", HostPath: "/h", Readonly: true, RecursiveReadOnly: true, Propagation: 1}}, kind.Invalid},
		"option":               {[]*cri.Mount{{ContainerPath: "/c", HostPath: "/h", MountOptions: []string{"suid"}}}, kind.Invalid},
		"image and host":       {[]*cri.Mount{{ContainerPath: "/c", HostPath: "/h", Image: &cri.ImageSpec{Image: "x"}}}, kind.Invalid},
		"sub path alone":       {[]*cri.Mount{{ContainerPath: "/c", HostPath: "/h", ImageSubPath: "a"}}, kind.Invalid},
		"sub path dots":        {[]*cri.Mount{{ContainerPath: "/c", Image: &cri.ImageSpec{Image: "x"}, ImageSubPath: "a/../../b"}}, kind.Invalid},
		"id map of users only": {[]*cri.Mount{{ContainerPath: "/c", HostPath: "/h", UidMappings: []*cri.IDMapping{{HostId: 1, Length: 1}}}}, kind.Invalid},
		"id map of nobody":     {[]*cri.Mount{{ContainerPath: "/c", HostPath: "/h", UidMappings: []*cri.IDMapping{{}}, GidMappings: []*cri.IDMapping{{}}}}, kind.Invalid},
		"id map overflows":     {[]*cri.Mount{{ContainerPath: "/c", HostPath: "/h", UidMappings: []*cri.IDMapping{{HostId: 1, Length: math.MaxUint32}}, GidMappings: []*cri.IDMapping{{HostId: 1, Length: 1}}}}, kind.Invalid},
		"B30 ten thousand":     {make([]*cri.Mount, 10000), kind.Exhausted},
		"fine: whole host":     {[]*cri.Mount{from("/")}, -1},
		"fine: sys":            {[]*cri.Mount{at("/sys")}, -1},
		"fine: cgroup":         {[]*cri.Mount{at("/sys/fs/cgroup")}, -1},
		"fine: lxcfs":          {[]*cri.Mount{at("/proc/meminfo")}, -1},
		"fine: image":          {[]*cri.Mount{{ContainerPath: "/c", Image: &cri.ImageSpec{Image: "x"}, ImageSubPath: "a/b"}}, -1},
		"fine: slave":          {[]*cri.Mount{{ContainerPath: "/c", HostPath: "/h", Propagation: 1}}, -1},
		"fine: over a file":    {[]*cri.Mount{at("/dev/termination-log"), at("/etc/hosts"), at("/dev/shm"), at("/dev/null")}, -1},
		"fine: with options":   {[]*cri.Mount{{ContainerPath: "/c", HostPath: "/h", MountOptions: []string{"noexec", "nosuid", "nodev"}}}, -1},
	} {
		in := testInput()
		in.Container.Mounts = c.mounts
		err := ValidateContainer(in.Pod, in.Container)
		if c.want == -1 && err != nil || c.want != -1 && !kind.Is(err, c.want) {
			t.Errorf("%s: %v of kind %v, want %v", name, err, kind.Of(err), c.want)
		}
	}
}
