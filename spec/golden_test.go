package spec

import (
	"testing"

	rspec "github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestGolden holds whole specs: a change of any rule shows up here as a
// difference that a reviewer can read.
func TestGolden(t *testing.T) {
	for name, change := range map[string]func(*Input){
		"plain":      func(*Input) {},
		"rich":       makeRich,
		"privileged": makePrivileged,
		"host-v2": func(in *Input) {
			in.Facts.CgroupV2 = true
			in.Pod.Linux.SecurityContext.NamespaceOptions = &cri.NamespaceOption{Network: cri.NamespaceMode_NODE, Ipc: cri.NamespaceMode_NODE, Pid: cri.NamespaceMode_NODE}
			in.Container.Linux.SecurityContext.NamespaceOptions = in.Pod.Linux.SecurityContext.NamespaceOptions
			in.Pod.Hostname = ""
			in.Paths = Paths{RootFS: "/rootfs", Shm: "/dev/shm", HostPID: true}
			in.Container.Linux.Resources.Unified = map[string]string{"memory.high": "1000000"}
		},
	} {
		in := testInput()
		change(&in)
		checkGolden(t, name, mustContainer(t, in))
	}
	in := testInput()
	in.Paths.Self = "/usr/bin/noded"
	s, err := Init(in)
	if err != nil {
		t.Fatal(err)
	}
	s.Linux.Seccomp = nil // its own test; the profile's version would change the file
	checkGolden(t, "init", s)
}

// makeRich asks for something of everything.
func makeRich(in *Input) {
	c := in.Container
	c.Command, c.Args, c.WorkingDir, c.Tty = []string{"/bin/sh"}, []string{"-c", "exit"}, "/work", true
	c.Envs = []*cri.KeyValue{{Key: "MODE", Value: []byte("pod")}, {Key: "EXTRA", Value: []byte("a=b=c")}}
	c.Mounts = []*cri.Mount{
		{ContainerPath: "/data/inner", HostPath: "/h/inner", Propagation: cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER},
		{ContainerPath: "/data", HostPath: "/h/data", Readonly: true, RecursiveReadOnly: true},
		{ContainerPath: "/etc/hosts", HostPath: "/h/hosts", MountOptions: []string{"noexec"}},
	}
	in.MountSources = []string{"/h/inner", "/h/data", "/h/hosts"}
	c.Devices = []*cri.Device{{ContainerPath: "/dev/fuse", HostPath: "/dev/fuse", Permissions: "rw"}}
	in.Devices = [][]rspec.LinuxDevice{{{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229}}}
	c.Linux.Resources = &cri.LinuxContainerResources{
		CpuShares: 512, CpuQuota: 50000, CpuPeriod: 100000, CpusetCpus: "0-1", MemoryLimitInBytes: 64 << 20, OomScoreAdj: 900,
		HugepageLimits: []*cri.HugepageLimit{{PageSize: "2MB", Limit: 0}},
	}
	sc := c.Linux.SecurityContext
	sc.Capabilities = &cri.Capability{AddCapabilities: []string{"net_admin"}, DropCapabilities: []string{"ALL", "CAP_KILL"}}
	sc.NoNewPrivs, sc.ReadonlyRootfs = true, true
	in.User = User{UID: 1000, GID: 1000, AdditionalGIDs: []uint32{1000, 2000}, Home: "/home/app"}
	in.PidsLimit = 100
	in.Rlimits = []rspec.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 1 << 20, Hard: 1 << 20}}
	in.Facts.Rlimits = []rspec.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 20000}}
	in.Annotations = map[string]string{"example.com/allowed": "yes"}
}

func makePrivileged(in *Input) {
	in.Pod.Linux.SecurityContext.Privileged = true
	in.Container.Linux.SecurityContext.Privileged = true
	in.Container.Linux.SecurityContext.MaskedPaths = []string{"/proc/kcore"}
	in.Container.Linux.SecurityContext.Seccomp = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault}
	in.Container.Mounts = []*cri.Mount{{ContainerPath: "/dev", HostPath: "/dev", Propagation: cri.MountPropagation_PROPAGATION_BIDIRECTIONAL}}
	in.MountSources = []string{"/dev"}
	in.Facts.HostDevices = []rspec.LinuxDevice{{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229}}
}
