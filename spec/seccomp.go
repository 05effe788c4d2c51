package spec

import (
	"encoding/json"
	"path"
	"slices"
	"strings"

	"github.com/moby/profiles/seccomp"
	rspec "github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/internal/kind"
)

// applySeccomp sets the system call filter. Privileged containers and
// requests without a profile have none, as the CRI says.
func applySeccomp(in *Input, s *rspec.Spec) error {
	p := seccompProfile(in.security())
	if in.privileged() || p.GetProfileType() == cri.SecurityProfile_Unconfined {
		return nil
	}
	if !in.Facts.Seccomp {
		return kind.Errorf(kind.Precondition, "a seccomp profile is asked for, but this kernel has no seccomp filters")
	}
	if p.GetProfileType() == cri.SecurityProfile_Localhost {
		if in.SeccompLocalhost == nil {
			return kind.Errorf(kind.Internal, "seccomp profile %q was not read", clip(p.GetLocalhostRef()))
		}
		s.Linux.Seccomp = in.SeccompLocalhost
		return nil
	}
	filter, err := defaultSeccomp(s)
	if err != nil {
		return err
	}
	s.Linux.Seccomp = filter
	return nil
}

// defaultSeccomp is the field's default profile for the capabilities in s,
// without socketcall(2): that call hides its arguments from a filter, and so
// opens the AF_ALG and AF_VSOCK sockets that the profile refuses. Kernels since
// 4.3 have direct calls on every architecture, which C libraries use.
func defaultSeccomp(s *rspec.Spec) (*rspec.LinuxSeccomp, error) {
	filter, err := seccomp.GetDefaultProfile(s)
	if err != nil {
		return nil, kind.Errorf(kind.Internal, "default seccomp profile: %w", err)
	}
	for i := range filter.Syscalls {
		filter.Syscalls[i].Names = slices.DeleteFunc(slices.Clone(filter.Syscalls[i].Names),
			func(name string) bool { return name == "socketcall" })
	}
	filter.Syscalls = slices.DeleteFunc(filter.Syscalls, func(c rspec.LinuxSyscall) bool { return len(c.Names) == 0 })
	return filter, nil
}

// seccompProfile is never nil: no profile is the unconfined one. Older kubelets
// send a string instead.
func seccompProfile(sc *cri.LinuxContainerSecurityContext) *cri.SecurityProfile {
	if sc.GetSeccomp() != nil {
		return sc.GetSeccomp()
	}
	//lint:ignore SA1019 older kubelets send only this
	return profileFromString(sc.GetSeccompProfilePath())
}

// profileFromString reads the CRI's deprecated form; nil if it is malformed.
func profileFromString(s string) *cri.SecurityProfile {
	switch {
	case s == "" || s == "unconfined":
		return &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Unconfined}
	case s == "runtime/default" || s == "docker/default":
		return &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault}
	case strings.HasPrefix(s, "localhost/"):
		return &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: strings.TrimPrefix(s, "localhost/")}
	}
	return nil
}

// SeccompPath is the file that the caller has to read into
// Input.SeccompLocalhost (by ParseSeccomp); "" if none is asked for.
func SeccompPath(c *cri.ContainerConfig) string {
	sc := c.GetLinux().GetSecurityContext()
	p := seccompProfile(sc)
	if sc.GetPrivileged() || p.GetProfileType() != cri.SecurityProfile_Localhost {
		return ""
	}
	return p.GetLocalhostRef()
}

// SeccompPathLimit is the size in bytes of the largest profile that is read.
const SeccompPathLimit = maxSeccompBytes

// ParseSeccomp reads a profile in the OCI's form. kind.Invalid if it is not
// one; it never means "no filter".
func ParseSeccomp(data []byte) (*rspec.LinuxSeccomp, error) {
	if len(data) > maxSeccompBytes {
		return nil, tooLong("seccomp profile", len(data), maxSeccompBytes)
	}
	var p rspec.LinuxSeccomp
	if err := json.Unmarshal(data, &p); err != nil {
		return nil, kind.Errorf(kind.Invalid, "seccomp profile: %w", err)
	}
	if !knownAction(p.DefaultAction) {
		return nil, kind.Errorf(kind.Invalid, "seccomp profile: default action %q", clip(string(p.DefaultAction)))
	}
	for _, c := range p.Syscalls {
		if !knownAction(c.Action) || len(c.Names) == 0 {
			return nil, kind.Errorf(kind.Invalid, "seccomp profile: rule for %v with action %q", clip(strings.Join(c.Names, ",")), clip(string(c.Action)))
		}
	}
	// A notify listener is a socket of the node that a profile must not choose.
	if p.ListenerPath != "" {
		return nil, kind.Errorf(kind.Unimplemented, "seccomp profile: listenerPath is not supported")
	}
	return &p, nil
}

func knownAction(a rspec.LinuxSeccompAction) bool {
	switch a {
	case rspec.ActKill, rspec.ActKillProcess, rspec.ActKillThread, rspec.ActTrap, rspec.ActErrno,
		rspec.ActTrace, rspec.ActAllow, rspec.ActLog, rspec.ActNotify:
		return true
	}
	return false
}

func validateSeccomp(p *cri.SecurityProfile) error {
	if p == nil {
		return kind.Errorf(kind.Invalid, "seccomp profile is none of runtime/default, unconfined and localhost/<path>")
	}
	switch p.GetProfileType() {
	case cri.SecurityProfile_RuntimeDefault, cri.SecurityProfile_Unconfined:
		return nil
	case cri.SecurityProfile_Localhost:
		ref := p.GetLocalhostRef()
		if err := checkText("seccomp profile path", ref, maxPath); err != nil {
			return err
		}
		if !path.IsAbs(ref) || path.Clean(ref) != ref || ref == "/" {
			return kind.Errorf(kind.Invalid, "seccomp profile path %q is not a clean absolute path", clip(ref))
		}
		return nil
	}
	return kind.Errorf(kind.Invalid, "seccomp profile type %d", p.GetProfileType())
}
