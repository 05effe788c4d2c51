package spec

import (
	"strings"

	rspec "github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/internal/kind"
)

// applyAppArmor names the profile that confines the process. A profile that
// cannot be applied is an error: running without it would be silent.
func applyAppArmor(in *Input, s *rspec.Spec) error {
	p := appArmorProfile(in.security())
	if in.privileged() {
		p = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Unconfined}
	}
	if p == nil {
		if in.Facts.AppArmor {
			s.Process.ApparmorProfile = in.Facts.AppArmorDefault
		}
		return nil
	}
	if p.GetProfileType() == cri.SecurityProfile_Unconfined {
		if in.Facts.AppArmor {
			s.Process.ApparmorProfile = "unconfined"
		}
		return nil
	}
	if p.GetProfileType() == cri.SecurityProfile_Localhost {
		if !in.Facts.AppArmor {
			return kind.Errorf(kind.Precondition, "AppArmor profile %q is asked for, but AppArmor is not enabled on this node", clip(p.GetLocalhostRef()))
		}
		s.Process.ApparmorProfile = appArmorName(p)
		return nil
	}
	if !in.Facts.AppArmor {
		return nil // the runtime's default on a node without AppArmor is none
	}
	if in.Facts.AppArmorDefault == "" {
		return kind.Errorf(kind.Precondition, "the default AppArmor profile is asked for, but none is loaded on this node")
	}
	s.Process.ApparmorProfile = in.Facts.AppArmorDefault
	return nil
}

// appArmorName is a Localhost profile's own name. Kubernetes once marked such
// names with a prefix, which some clients still send.
func appArmorName(p *cri.SecurityProfile) string {
	return strings.TrimPrefix(p.GetLocalhostRef(), "localhost/")
}

// appArmorProfile is nil if none is asked for.
func appArmorProfile(sc *cri.LinuxContainerSecurityContext) *cri.SecurityProfile {
	p := sc.GetApparmor()
	if old := oldAppArmor(sc); p == nil && old != "" {
		p = profileFromString(old)
	}
	return p
}

func oldAppArmor(sc *cri.LinuxContainerSecurityContext) string {
	//lint:ignore SA1019 older kubelets send only this
	return sc.GetApparmorProfile()
}

func validateAppArmor(sc *cri.LinuxContainerSecurityContext) error {
	p := appArmorProfile(sc)
	if p == nil {
		if old := oldAppArmor(sc); old != "" {
			return kind.Errorf(kind.Invalid, "AppArmor profile %q", clip(old))
		}
		return nil
	}
	if _, ok := cri.SecurityProfile_ProfileType_name[int32(p.GetProfileType())]; !ok {
		return kind.Errorf(kind.Invalid, "AppArmor profile type %d", p.GetProfileType())
	}
	if p.GetProfileType() != cri.SecurityProfile_Localhost {
		return nil
	}
	if appArmorName(p) == "" {
		return kind.Errorf(kind.Invalid, "AppArmor profile without a name")
	}
	return checkText("AppArmor profile", p.GetLocalhostRef(), maxName)
}

// applySELinux sets the labels that are asked for.
func applySELinux(in *Input, s *rspec.Spec) error {
	o := in.security().GetSelinuxOptions()
	if in.privileged() || !labelled(o) {
		return nil
	}
	if err := needSELinux(in.Facts); err != nil {
		return err
	}
	level := choose(o.GetLevel(), "s0")
	s.Process.SelinuxLabel = strings.Join([]string{
		choose(o.GetUser(), "system_u"), choose(o.GetRole(), "system_r"), choose(o.GetType(), "container_t"), level}, ":")
	s.Linux.MountLabel = "system_u:object_r:container_file_t:" + level
	return nil
}

func labelled(o *cri.SELinuxOption) bool {
	return o.GetUser()+o.GetRole()+o.GetType()+o.GetLevel() != ""
}

// needSELinux makes an error of a label that could not be set: a process that
// runs without it would not be confined as its owner believes.
func needSELinux(f Facts) error {
	if f.SELinux {
		return nil
	}
	return kind.Errorf(kind.Precondition, "SELinux options are given, but SELinux is not enabled on this node")
}

// PodSupported tells of what a pod asks for and this node does not have. The
// kind is Precondition.
func PodSupported(p *cri.PodSandboxConfig, f Facts) error {
	sc := p.GetLinux().GetSecurityContext()
	if labelled(sc.GetSelinuxOptions()) && !sc.GetPrivileged() {
		return needSELinux(f)
	}
	return nil
}

func validateSELinux(o *cri.SELinuxOption) error {
	for what, v := range map[string]string{"user": o.GetUser(), "role": o.GetRole(), "type": o.GetType(), "level": o.GetLevel()} {
		if err := checkText("SELinux "+what, v, maxName); err != nil {
			return err
		}
		// Only a level has parts of its own.
		if what != "level" && strings.Contains(v, ":") {
			return kind.Errorf(kind.Invalid, "SELinux %s %q has a colon", what, clip(v))
		}
	}
	return nil
}
