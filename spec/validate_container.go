package spec

import (
	"path"
	"strings"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/internal/kind"
)

// ValidateContainer checks a container's configuration, in its pod's, without
// looking at the node. Kinds as ValidatePod's.
func ValidateContainer(pod *cri.PodSandboxConfig, c *cri.ContainerConfig) error {
	if pod == nil || pod.GetMetadata() == nil {
		return kind.Errorf(kind.Invalid, "container without its pod's configuration")
	}
	if c == nil {
		return kind.Errorf(kind.Invalid, "container without a configuration")
	}
	for _, check := range []func(*cri.ContainerConfig) error{
		validateContainerNames, validateLogPath, validateEnvs, validateMounts, validateDevices,
		func(c *cri.ContainerConfig) error { return validateResources(c.GetLinux().GetResources()) },
		validateContainerSecurity,
	} {
		if err := check(c); err != nil {
			return err
		}
	}
	if c.GetLinux().GetSecurityContext().GetPrivileged() && !pod.GetLinux().GetSecurityContext().GetPrivileged() {
		return kind.Errorf(kind.Invalid, "privileged container in a pod that is not")
	}
	return validateInPod(pod, c)
}

func validateContainerNames(c *cri.ContainerConfig) error {
	if c.GetMetadata() == nil {
		return kind.Errorf(kind.Invalid, "container without metadata")
	}
	if err := validateName("container name", c.GetMetadata().GetName()); err != nil {
		return err
	}
	if c.GetImage().GetImage() == "" {
		return kind.Errorf(kind.Invalid, "container without an image")
	}
	if err := checkText("image", c.GetImage().GetImage(), maxImageName); err != nil {
		return err
	}
	if _, ok := cri.Signal_name[int32(c.GetStopSignal())]; !ok {
		return kind.Errorf(kind.Invalid, "stop signal %d", c.GetStopSignal())
	}
	return validateLabels(c.GetLabels(), c.GetAnnotations())
}

// validateLogPath keeps the log below the pod's log directory.
func validateLogPath(c *cri.ContainerConfig) error {
	p := c.GetLogPath()
	if p == "" {
		return nil
	}
	if err := checkText("log path", p, maxPath); err != nil {
		return err
	}
	if path.IsAbs(p) || hasDotDot(p) || path.Clean(p) == "." {
		return kind.Errorf(kind.Invalid, `log path %q is not relative or has ".."`, clip(p))
	}
	return nil
}

func validateEnvs(c *cri.ContainerConfig) error {
	total := 0
	for _, kv := range c.GetEnvs() {
		if err := checkVariable(kv.GetKey(), kv.GetValue()); err != nil {
			return err
		}
		total += len(kv.GetKey()) + len(kv.GetValue())
	}
	if total > maxArgBytes {
		return tooLong("environment", total, maxArgBytes)
	}
	return nil
}

func validateContainerSecurity(c *cri.ContainerConfig) error {
	sc := c.GetLinux().GetSecurityContext()
	if sc.GetRunAsGroup() != nil && sc.GetRunAsUser() == nil && sc.GetRunAsUsername() == "" {
		return kind.Errorf(kind.Invalid, "run_as_group without run_as_user or run_as_username")
	}
	if err := validateIDs(sc.GetRunAsUser(), sc.GetRunAsGroup(), sc.GetSupplementalGroups()); err != nil {
		return err
	}
	if err := checkText("run_as_username", sc.GetRunAsUsername(), maxUsernameBytes); err != nil {
		return err
	}
	if sc.GetNoNewPrivs() && sc.GetPrivileged() {
		return kind.Errorf(kind.Invalid, "no_new_privs and privileged exclude each other")
	}
	if err := validateGroupsPolicy(sc.GetSupplementalGroupsPolicy()); err != nil {
		return err
	}
	if err := validatePaths("masked paths", sc.GetMaskedPaths()); err != nil {
		return err
	}
	if err := validatePaths("read-only paths", sc.GetReadonlyPaths()); err != nil {
		return err
	}
	if err := validateCapabilities(sc.GetCapabilities()); err != nil {
		return err
	}
	if err := validateSELinux(sc.GetSelinuxOptions()); err != nil {
		return err
	}
	if err := validateAppArmor(sc); err != nil {
		return err
	}
	if err := validateSeccomp(seccompProfile(sc)); err != nil {
		return err
	}
	return validateNamespaces(sc.GetNamespaceOptions(), true)
}

func validateDevices(c *cri.ContainerConfig) error {
	if n := len(c.GetDevices()); n > maxDevices {
		return tooMany("devices", n, maxDevices)
	}
	for _, d := range c.GetDevices() {
		for what, p := range map[string]string{"device host_path": d.GetHostPath(), "device container_path": d.GetContainerPath()} {
			if err := validateAbsolute(what, p); err != nil {
				return err
			}
		}
		p := path.Clean(d.GetContainerPath())
		if p == "/dev" && path.Clean(d.GetHostPath()) != "/dev" || reservedPath(p) || isBelow(p, "/sys") {
			return kind.Errorf(kind.Invalid, "device container_path %q", clip(p))
		}
		if !devicePermissions(d.GetPermissions()) {
			return kind.Errorf(kind.Invalid, "device permissions %q are not some of r, w and m", clip(d.GetPermissions()))
		}
	}
	return nil
}

func devicePermissions(p string) bool {
	return p != "" && len(p) <= 3 && strings.Trim(p, "rwm") == "" &&
		strings.Count(p, "r") <= 1 && strings.Count(p, "w") <= 1 && strings.Count(p, "m") <= 1
}

// validateAbsolute accepts an absolute path that is not the root once cleaned.
func validateAbsolute(what, p string) error {
	if err := checkText(what, p, maxPath); err != nil {
		return err
	}
	if !path.IsAbs(p) || path.Clean(p) == "/" {
		return kind.Errorf(kind.Invalid, "%s %q is not an absolute path below the root", what, clip(p))
	}
	for _, part := range strings.Split(p, "/") {
		if len(part) > maxPathPart {
			return tooLong("part of "+what, len(part), maxPathPart)
		}
	}
	return nil
}

func isBelow(p, dir string) bool { return p == dir || strings.HasPrefix(p, dir+"/") }
