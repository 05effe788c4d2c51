package spec

import (
	rspec "github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/internal/kind"
)

const (
	initPath   = "/noded"
	initUser   = 65535    // belongs to nobody: no container can trace the init or enter its root
	initMemory = 64 << 20 // bytes; the process needs about 10 MiB, most of it the shared binary
	initPids   = 64       // its threads
	// initOOMScore protects the init as the kubelet protects its own pods:
	// its death would end the whole pod.
	initOOMScore = -998
)

// Init builds the spec of the process that is number 1 of a shared PID
// namespace and reaps what the pod's containers leave behind. Its root is an
// empty folder (Paths.RootFS, mode 0755) with only noded's binary in it.
// Container and Image of the input are not used.
func Init(in Input) (*rspec.Spec, error) {
	if err := ValidatePod(in.Pod); err != nil {
		return nil, err
	}
	if in.Paths.Self == "" {
		return nil, kind.Errorf(kind.Internal, "no path of the noded binary")
	}
	in.Container = &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: "init"},
		Linux: &cri.LinuxContainerConfig{
			Resources: &cri.LinuxContainerResources{MemoryLimitInBytes: initMemory, OomScoreAdj: initOOMScore},
			SecurityContext: &cri.LinuxContainerSecurityContext{
				ReadonlyRootfs: true,
				NoNewPrivs:     true,
				Capabilities:   &cri.Capability{DropCapabilities: []string{allCapability}},
				Seccomp:        initSeccomp(in.Facts),
			},
		},
	}
	in.User = initIdentity(&in)
	in.Paths.PIDNS, in.Paths.HostPID = "", false
	in.Annotations, in.PidsLimit, in.MountSources, in.Devices = nil, initPids, nil, nil
	return build(&in, []rule{
		{"process", initProcess},
		{"user", applyUser},
		{"oom score", applyOOMScore},
		{"root", applyRoot},
		{"namespaces", applyNamespaces},
		{"mounts", initMounts},
		{"devices", applyDevices},
		{"resources", applyResources},
		{"cgroup", applyCgroup},
		{"capabilities", applyCapabilities},
		{"no new privileges", applyNoNewPrivileges},
		{"paths", applyPaths},
		{"seccomp", applySeccomp},
		{"annotations", applyAnnotations},
		{"version", applyVersion},
	})
}

func initSeccomp(f Facts) *cri.SecurityProfile {
	if !f.Seccomp {
		return nil
	}
	return &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault}
}

func initProcess(_ *Input, s *rspec.Spec) error {
	s.Process.Args = []string{initPath, "init"}
	s.Process.Cwd = "/"
	// One processor and a small heap are plenty for reaping.
	s.Process.Env = []string{"GOMAXPROCS=1", "GOMEMLIMIT=16MiB"}
	return nil
}

// initMounts has what OCI runtimes need to start a process, and the binary.
func initMounts(in *Input, s *rspec.Spec) error {
	s.Mounts = []rspec.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "noexec", "strictatime", "mode=755", "size=64k"}},
		{Destination: initPath, Type: "bind", Source: in.Paths.Self, Options: []string{"bind", "rprivate", "nosuid", "nodev", "ro"}},
	}
	return nil
}
