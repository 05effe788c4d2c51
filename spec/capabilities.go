package spec

import (
	"slices"
	"strings"

	rspec "github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/internal/capability"
	"noded.dev/noded/internal/kind"
)

// allCapability stands for every capability that noded has itself.
const allCapability = "ALL"

// defaultCapabilities are what an ordinary container has in this field.
var defaultCapabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID",
	"CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
}

// applyCapabilities sets the capability sets. Inheritable stays empty, or a
// program with inheritable file capabilities would gain them on execve.
func applyCapabilities(in *Input, s *rspec.Spec) error {
	node := in.Facts.Capabilities
	if in.privileged() {
		s.Process.Capabilities = capabilitySets(node, nil, in.User.UID)
		return nil
	}
	c := in.security().GetCapabilities()
	ambient := capabilityNames(c.GetAddAmbientCapabilities())
	if slices.Contains(ambient, allCapability) {
		ambient = slices.Clone(node)
	}
	list := grant(node, c)
	for _, name := range append(slices.Clone(list), ambient...) {
		if !slices.Contains(node, name) {
			return kind.Errorf(kind.Precondition, "%s is asked for, but noded does not have it on this node", name)
		}
	}
	for _, name := range ambient {
		list = appendNew(list, name)
	}
	s.Process.Capabilities = capabilitySets(list, ambient, in.User.UID)
	return nil
}

// grant works in the order of the other CRI implementations: ALL added, then
// ALL dropped, then single ones added, then single ones dropped; so that
// "drop ALL, add NET_BIND_SERVICE" leaves one.
func grant(node []string, c *cri.Capability) []string {
	add, drop := capabilityNames(c.GetAddCapabilities()), capabilityNames(c.GetDropCapabilities())
	var list []string
	for _, name := range defaultCapabilities {
		// A default that the node itself lacks is no reason to fail.
		if slices.Contains(node, name) {
			list = append(list, name)
		}
	}
	if slices.Contains(add, allCapability) {
		list = slices.Clone(node)
	}
	if slices.Contains(drop, allCapability) {
		list = nil
	}
	for _, name := range add {
		if name != allCapability {
			list = appendNew(list, name)
		}
	}
	return slices.DeleteFunc(list, func(name string) bool { return slices.Contains(drop, name) })
}

// capabilitySets follows execve(2): a user that is not root starts without
// permitted and effective capabilities, except ambient ones. Those must be
// inheritable too, which the kernel demands (capabilities(7)).
func capabilitySets(list, ambient []string, uid uint32) *rspec.LinuxCapabilities {
	sets := &rspec.LinuxCapabilities{Bounding: list, Permitted: list, Effective: list, Ambient: ambient, Inheritable: ambient}
	if uid != 0 {
		sets.Permitted, sets.Effective = ambient, ambient
	}
	return sets
}

// capabilityNames gives names their kernel form: "net_admin" is CAP_NET_ADMIN.
func capabilityNames(names []string) []string {
	var list []string
	for _, name := range names {
		name = strings.ToUpper(name)
		if name != allCapability && !strings.HasPrefix(name, "CAP_") {
			name = "CAP_" + name
		}
		list = appendNew(list, name)
	}
	return list
}

func appendNew(list []string, name string) []string {
	if slices.Contains(list, name) {
		return list
	}
	return append(list, name)
}

func validateCapabilities(c *cri.Capability) error {
	for what, names := range map[string][]string{
		"add": c.GetAddCapabilities(), "drop": c.GetDropCapabilities(), "add ambient": c.GetAddAmbientCapabilities(),
	} {
		for _, name := range capabilityNames(names) {
			if name != allCapability && !slices.Contains(capability.Names, name) {
				return kind.Errorf(kind.Invalid, "%s capability %q: there is none of this name", what, clip(name))
			}
		}
	}
	return nil
}

// applyNoNewPrivileges keeps set-user-id programs from gaining privileges.
func applyNoNewPrivileges(in *Input, s *rspec.Spec) error {
	s.Process.NoNewPrivileges = in.security().GetNoNewPrivs()
	return nil
}
