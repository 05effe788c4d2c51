package spec

import (
	"path"
	"slices"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/internal/kind"
)

// procFiles may be covered by mounts: lxcfs shows a container its own figures
// in them, and OCI runtimes permit exactly these.
var procFiles = []string{
	"/proc/cpuinfo", "/proc/diskstats", "/proc/loadavg", "/proc/meminfo", "/proc/slabinfo", "/proc/stat",
	"/proc/swaps", "/proc/uptime",
}

// deviceFiles are not folders, so nothing can be mounted below them.
var deviceFiles = []string{"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty", "/dev/console", "/dev/ptmx"}

// bindOptions are the mount options of the CRI that a bind mount can have;
// all of them only restrict. Those with an "r" hold for what is mounted below too.
var bindOptions = []string{
	"noexec", "nodev", "nosuid", "noatime", "nodiratime", "relatime", "strictatime", "nosymfollow",
	"rnoexec", "rnodev", "rnosuid", "rnoatime", "rnodiratime", "rrelatime", "rstrictatime", "rnosymfollow",
}

// reservedPath is where a mount would change what the runtime itself relies on.
func reservedPath(p string) bool {
	return isBelow(p, "/proc") && !slices.Contains(procFiles, p)
}

func validateMounts(c *cri.ContainerConfig) error {
	if n := len(c.GetMounts()); n > maxMounts {
		return tooMany("mounts", n, maxMounts)
	}
	privileged := c.GetLinux().GetSecurityContext().GetPrivileged()
	seen := map[string]bool{}
	for _, m := range c.GetMounts() {
		if err := validateMountPlaces(m); err != nil {
			return err
		}
		p := path.Clean(m.GetContainerPath())
		if seen[p] {
			return kind.Errorf(kind.Invalid, "two mounts at %s", clip(p))
		}
		seen[p] = true
		if err := validateMountMode(m, privileged); err != nil {
			return kind.Errorf(kind.Of(err), "mount %s: %w", clip(p), err)
		}
	}
	return nil
}

func validateMountPlaces(m *cri.Mount) error {
	if err := validateAbsolute("mount container_path", m.GetContainerPath()); err != nil {
		return err
	}
	p := path.Clean(m.GetContainerPath())
	if reservedPath(p) {
		return kind.Errorf(kind.Invalid, "mount container_path %q is in /proc", clip(p))
	}
	for _, d := range deviceFiles {
		if p != d && isBelow(p, d) {
			return kind.Errorf(kind.Invalid, "mount container_path %q is below a device", clip(p))
		}
	}
	if m.GetImage().GetImage() == "" {
		if m.GetImageSubPath() != "" {
			return kind.Errorf(kind.Invalid, "mount %s: image_sub_path without an image", clip(p))
		}
		return validateAbsoluteOrRoot("mount host_path", m.GetHostPath())
	}
	if m.GetHostPath() != "" {
		return kind.Errorf(kind.Invalid, "mount %s: host_path and image exclude each other", clip(p))
	}
	sub := m.GetImageSubPath()
	if err := checkText("image_sub_path", sub, maxPath); err != nil {
		return err
	}
	if path.IsAbs(sub) || hasDotDot(sub) {
		return kind.Errorf(kind.Invalid, `image_sub_path %q is not relative or has ".."`, clip(sub))
	}
	return nil
}

// validateAbsoluteOrRoot is for host paths: node agents mount the node's root.
func validateAbsoluteOrRoot(what, p string) error {
	if path.IsAbs(p) && path.Clean(p) == "/" && len(p) <= maxPath {
		return nil
	}
	return validateAbsolute(what, p)
}

func validateMountMode(m *cri.Mount, privileged bool) error {
	if _, ok := cri.MountPropagation_name[int32(m.GetPropagation())]; !ok {
		return kind.Errorf(kind.Invalid, "propagation %d", m.GetPropagation())
	}
	if m.GetPropagation() == cri.MountPropagation_PROPAGATION_BIDIRECTIONAL && !privileged {
		return kind.Errorf(kind.Invalid, "bidirectional propagation needs a privileged container")
	}
	if m.GetPropagation() == cri.MountPropagation_PROPAGATION_BIDIRECTIONAL && m.GetImage().GetImage() != "" {
		return kind.Errorf(kind.Invalid, "an image takes no mounts, so propagation cannot be bidirectional")
	}
	if m.GetRecursiveReadOnly() {
		if !m.GetReadonly() {
			return kind.Errorf(kind.Invalid, "recursive_read_only without readonly")
		}
		if m.GetPropagation() != cri.MountPropagation_PROPAGATION_PRIVATE {
			return kind.Errorf(kind.Invalid, "recursive_read_only needs private propagation")
		}
	}
	if n := len(m.GetMountOptions()); n > maxMountOptions {
		return tooMany("mount options", n, maxMountOptions)
	}
	for _, o := range m.GetMountOptions() {
		if !slices.Contains(bindOptions, o) {
			return kind.Errorf(kind.Invalid, "mount option %q is not one of %v", clip(o), bindOptions)
		}
	}
	if len(m.GetUidMappings())+len(m.GetGidMappings()) > 0 {
		return validateMappings("map of ids", m.GetUidMappings(), m.GetGidMappings())
	}
	return nil
}
