package spec

import (
	"net/netip"
	"path"
	"regexp"
	"strings"
	"unicode"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/internal/kind"
)

// ValidatePod checks a pod's configuration without looking at the node.
// kind.Invalid, Exhausted (too many of something) or Unimplemented.
func ValidatePod(p *cri.PodSandboxConfig) error {
	if p == nil {
		return kind.Errorf(kind.Invalid, "pod without a configuration")
	}
	for _, check := range []func(*cri.PodSandboxConfig) error{
		validatePodNames, validateDNS, validatePorts, validateLogDirectory, validatePodSecurity,
		func(p *cri.PodSandboxConfig) error { return validateNamespaces(podNamespaces(p), false) },
		func(p *cri.PodSandboxConfig) error { return validateCgroupParent(p.GetLinux().GetCgroupParent()) },
		validateSysctls, validateOwned,
	} {
		if err := check(p); err != nil {
			return err
		}
	}
	for what, r := range map[string]*cri.LinuxContainerResources{"overhead": p.GetLinux().GetOverhead(), "resources": p.GetLinux().GetResources()} {
		if err := validateResources(r); err != nil {
			return kind.Errorf(kind.Invalid, "pod %s: %w", what, err)
		}
	}
	return nil
}

func podNamespaces(p *cri.PodSandboxConfig) *cri.NamespaceOption {
	return p.GetLinux().GetSecurityContext().GetNamespaceOptions()
}

var hostnamePattern = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9._-]*[a-zA-Z0-9])?$`)

func validatePodNames(p *cri.PodSandboxConfig) error {
	m := p.GetMetadata()
	if m == nil {
		return kind.Errorf(kind.Invalid, "pod without metadata")
	}
	for _, f := range []struct{ what, value string }{
		{"pod name", m.GetName()}, {"pod namespace", m.GetNamespace()}, {"pod uid", m.GetUid()},
	} {
		if err := validateName(f.what, f.value); err != nil {
			return err
		}
	}
	if h := p.GetHostname(); h != "" {
		if len(h) > maxHostname {
			return tooLong("hostname", len(h), maxHostname)
		}
		if !hostnamePattern.MatchString(h) {
			return kind.Errorf(kind.Invalid, "hostname %q is not made of letters, digits, dots and dashes", h)
		}
	}
	return validateLabels(p.GetLabels(), p.GetAnnotations())
}

// validateName keeps names usable as parts of paths and as words in logs.
func validateName(what, name string) error {
	if name == "" {
		return kind.Errorf(kind.Invalid, "%s is empty", what)
	}
	if err := checkText(what, name, maxName); err != nil {
		return err
	}
	if name == "." || name == ".." || strings.Contains(name, "/") {
		return kind.Errorf(kind.Invalid, "%s %q has a slash or is a folder link", what, clip(name))
	}
	return nil
}

func validateLabels(labels, annotations map[string]string) error {
	for what, m := range map[string]map[string]string{"labels": labels, "annotations": annotations} {
		total := 0
		for k, v := range m {
			total += len(k) + len(v)
		}
		if total > maxLabelBytes {
			return tooLong(what, total, maxLabelBytes)
		}
	}
	return nil
}

// validateDNS keeps each entry one word of resolv.conf.
func validateDNS(p *cri.PodSandboxConfig) error {
	d := p.GetDnsConfig()
	for what, list := range map[string][]string{"DNS servers": d.GetServers(), "DNS searches": d.GetSearches(), "DNS options": d.GetOptions()} {
		if len(list) > maxDNS {
			return tooMany(what, len(list), maxDNS)
		}
		for _, v := range list {
			if err := checkText(what, v, maxDNSEntry); err != nil {
				return err
			}
			if v == "" || strings.ContainsFunc(v, unicode.IsSpace) {
				return kind.Errorf(kind.Invalid, "%s: %q is empty or has a space", what, clip(v))
			}
		}
	}
	for _, s := range d.GetServers() {
		if _, err := netip.ParseAddr(s); err != nil {
			return kind.Errorf(kind.Invalid, "DNS server %q is not an address", clip(s))
		}
	}
	return nil
}

// validatePorts accepts mappings in the node's network too: the kubelet sends
// them there, where they mean nothing.
func validatePorts(p *cri.PodSandboxConfig) error {
	if n := len(p.GetPortMappings()); n > maxPorts {
		return tooMany("port mappings", n, maxPorts)
	}
	for _, m := range p.GetPortMappings() {
		if _, ok := cri.Protocol_name[int32(m.GetProtocol())]; !ok {
			return kind.Errorf(kind.Invalid, "port mapping protocol %d", m.GetProtocol())
		}
		if h := m.GetHostPort(); h < 0 || h > 65535 {
			return kind.Errorf(kind.Invalid, "host port %d is not within 0 and 65535", h)
		}
		if c := m.GetContainerPort(); c < 0 || c > 65535 || c == 0 && m.GetHostPort() != 0 {
			return kind.Errorf(kind.Invalid, "container port %d is not within 1 and 65535", c)
		}
		if ip := m.GetHostIp(); ip != "" {
			if _, err := netip.ParseAddr(ip); err != nil {
				return kind.Errorf(kind.Invalid, "host address %q of a port mapping", clip(ip))
			}
		}
	}
	return nil
}

func validateLogDirectory(p *cri.PodSandboxConfig) error {
	dir := p.GetLogDirectory()
	if dir == "" {
		return nil
	}
	if err := checkText("log directory", dir, maxPath); err != nil {
		return err
	}
	if !path.IsAbs(dir) || hasDotDot(dir) {
		return kind.Errorf(kind.Invalid, `log directory %q is not absolute or has ".."`, clip(dir))
	}
	return nil
}

func hasDotDot(p string) bool {
	for _, part := range strings.Split(p, "/") {
		if part == ".." {
			return true
		}
	}
	return false
}

// validateCgroupParent catches what no cgroup driver accepts; the driver's own
// form is checked where it is used.
func validateCgroupParent(parent string) error {
	if err := checkText("cgroup parent", parent, maxPath); err != nil {
		return err
	}
	if hasDotDot(parent) {
		return kind.Errorf(kind.Invalid, `cgroup parent %q has ".."`, clip(parent))
	}
	return nil
}

func validatePodSecurity(p *cri.PodSandboxConfig) error {
	sc := p.GetLinux().GetSecurityContext()
	if sc.GetRunAsGroup() != nil && sc.GetRunAsUser() == nil {
		return kind.Errorf(kind.Invalid, "run_as_group without run_as_user")
	}
	if err := validateIDs(sc.GetRunAsUser(), sc.GetRunAsGroup(), sc.GetSupplementalGroups()); err != nil {
		return err
	}
	if err := validateGroupsPolicy(sc.GetSupplementalGroupsPolicy()); err != nil {
		return err
	}
	if err := validateSELinux(sc.GetSelinuxOptions()); err != nil {
		return err
	}
	if sc.GetSeccomp() == nil {
		return nil
	}
	return validateSeccomp(sc.GetSeccomp())
}

func validateGroupsPolicy(p cri.SupplementalGroupsPolicy) error {
	if _, ok := cri.SupplementalGroupsPolicy_name[int32(p)]; !ok {
		return kind.Errorf(kind.Invalid, "supplemental groups policy %d", p)
	}
	return nil
}

func validateIDs(user, group *cri.Int64Value, groups []int64) error {
	check := func(what string, id int64) error {
		if id < 0 || id > maxID {
			return kind.Errorf(kind.Invalid, "%s %d is not within 0 and %d", what, id, maxID)
		}
		return nil
	}
	if user != nil {
		if err := check("user id", user.GetValue()); err != nil {
			return err
		}
	}
	if group != nil {
		if err := check("group id", group.GetValue()); err != nil {
			return err
		}
	}
	if len(groups) > maxGroups {
		return tooMany("supplemental groups", len(groups), maxGroups)
	}
	for _, g := range groups {
		if err := check("supplemental group", g); err != nil {
			return err
		}
	}
	return nil
}

// validateNamespaces checks modes. TARGET is for a container's processes only.
func validateNamespaces(o *cri.NamespaceOption, container bool) error {
	for what, mode := range map[string]cri.NamespaceMode{"network": o.GetNetwork(), "ipc": o.GetIpc()} {
		if mode != cri.NamespaceMode_POD && mode != cri.NamespaceMode_NODE && mode != cri.NamespaceMode_CONTAINER {
			return kind.Errorf(kind.Invalid, "%s namespace mode %s: the CRI has POD, CONTAINER and NODE", what, mode)
		}
	}
	switch mode := o.GetPid(); mode {
	case cri.NamespaceMode_POD, cri.NamespaceMode_CONTAINER, cri.NamespaceMode_NODE:
	case cri.NamespaceMode_TARGET:
		if !container {
			return kind.Errorf(kind.Invalid, "pid namespace mode TARGET is for containers")
		}
		if o.GetTargetId() == "" {
			return kind.Errorf(kind.Invalid, "pid namespace mode TARGET without a target_id")
		}
	default:
		return kind.Errorf(kind.Invalid, "pid namespace mode %s", mode)
	}
	return validateUserNamespace(o.GetUsernsOptions())
}
