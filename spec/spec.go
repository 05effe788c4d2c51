package spec

import (
	"fmt"
	"slices"

	rspec "github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/internal/kind"
)

// rule fills one part of a container's spec. It reads the input and what
// earlier rules wrote, and fails with a kinded error.
type rule struct {
	name  string
	apply func(*Input, *rspec.Spec) error
}

// containerRules are in order: environment after identity, seccomp after the
// capabilities it depends on, version last because it looks at all others.
func containerRules() []rule {
	return []rule{
		{"process", applyProcess},
		{"user", applyUser},
		{"user namespace", checkIDs},
		{"environment", applyEnv},
		{"argument size", checkArgumentSize},
		{"rlimits", applyRlimits},
		{"oom score", applyOOMScore},
		{"root", applyRoot},
		{"namespaces", applyNamespaces},
		{"mounts", applyMounts},
		{"image volumes", checkVolumes},
		{"devices", applyDevices},
		{"bound devices", bindDevices},
		{"resources", applyResources},
		{"cgroup", applyCgroup},
		{"capabilities", applyCapabilities},
		{"no new privileges", applyNoNewPrivileges},
		{"paths", applyPaths},
		{"seccomp", applySeccomp},
		{"apparmor", applyAppArmor},
		{"selinux", applySELinux},
		{"annotations", applyAnnotations},
		{"version", applyVersion},
	}
}

// Container builds the OCI spec of a container. Errors are of kind Invalid
// (request or image malformed), Precondition (the node lacks what is asked
// for), Unimplemented or Exhausted (a limit of limits.go).
func Container(in Input) (*rspec.Spec, error) {
	if err := ValidateContainer(in.Pod, in.Container); err != nil {
		return nil, err
	}
	return build(&in, containerRules())
}

// Recheck applies to a spec that was added to since, as by CDI devices, the
// rules that look at all of it.
func Recheck(in Input, s *rspec.Spec) error {
	if err := checkArgumentSize(&in, s); err != nil {
		return err
	}
	return applyVersion(&in, s)
}

func build(in *Input, rules []rule) (*rspec.Spec, error) {
	s := &rspec.Spec{
		Process: &rspec.Process{},
		Root:    &rspec.Root{},
		Linux:   &rspec.Linux{Resources: &rspec.LinuxResources{}},
	}
	for _, r := range rules {
		if err := r.apply(in, s); err != nil {
			return nil, fmt.Errorf("%s: %w", r.name, err)
		}
	}
	return s, nil
}

// applyRoot points at the assembled root filesystem.
func applyRoot(in *Input, s *rspec.Spec) error {
	if in.Paths.RootFS == "" {
		return kind.Errorf(kind.Internal, "no root filesystem path")
	}
	s.Root.Path = in.Paths.RootFS
	s.Root.Readonly = in.security().GetReadonlyRootfs()
	return nil
}

// applyCgroup names the cgroup; the runtime creates it and starts the process in it.
func applyCgroup(in *Input, s *rspec.Spec) error {
	s.Linux.CgroupsPath = in.Cgroup
	return nil
}

// security is never nil, so that rules need no checks.
func (in *Input) security() *cri.LinuxContainerSecurityContext {
	if sc := in.Container.GetLinux().GetSecurityContext(); sc != nil {
		return sc
	}
	return &cri.LinuxContainerSecurityContext{}
}

func (in *Input) privileged() bool { return in.security().GetPrivileged() }

// Hostname is a pod's host name: the one it asks for, the node's in the node's
// network namespace, otherwise the first 12 characters of the pod's id.
func Hostname(pod *cri.PodSandboxConfig, podID, node string) string {
	if pod.GetHostname() != "" {
		return pod.GetHostname()
	}
	if pod.GetLinux().GetSecurityContext().GetNamespaceOptions().GetNetwork() == cri.NamespaceMode_NODE {
		return node
	}
	return podID[:min(12, len(podID))]
}

// Warning is something of a request that was not done as asked, although the
// container can run. Key is the same for every occurrence on a node, so that
// the caller logs it once.
type Warning struct{ Key, Text string }

// Warnings lists what Container does not do as asked.
func Warnings(in Input) []Warning {
	var all []Warning
	add := func(key, text string) {
		if text != "" {
			all = append(all, Warning{key, text})
		}
	}
	add("oom-score", oomScoreWarning(&in))
	add("swap", swapWarning(&in))
	add("hugepages", hugePagesWarning(&in))
	add("image-env", imageEnvWarning(&in))
	_, err := ImageStopSignal(in.Image.StopSignal)
	if err != nil {
		add("stop-signal", err.Error()+"; SIGTERM is used")
	}
	return all
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
