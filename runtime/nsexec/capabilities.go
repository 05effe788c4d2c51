package nsexec

import (
	"slices"

	rspec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// capabilities are the five sets as bits.
type capabilities struct {
	set                                              bool // false: the spec leaves them alone
	bounding, effective, permitted, inheritable, amb uint64
}

func newCapabilities(c *rspec.LinuxCapabilities) capabilities {
	if c == nil {
		return capabilities{}
	}
	return capabilities{
		set:         true,
		bounding:    capabilityBits(c.Bounding),
		effective:   capabilityBits(c.Effective),
		permitted:   capabilityBits(c.Permitted),
		inheritable: capabilityBits(c.Inheritable),
		amb:         capabilityBits(c.Ambient),
	}
}

// capabilityBits skips unknown names, as runc does: they are those of a kernel
// newer than noded.
func capabilityBits(names []string) uint64 {
	known := capabilityNames()
	var bits uint64
	for _, n := range names {
		if i := slices.Index(known, n); i >= 0 {
			bits |= 1 << i
		}
	}
	return bits
}

// capabilityNames are those of linux/capability.h by number.
func capabilityNames() []string {
	return []string{
		"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID",
		"CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST",
		"CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO",
		"CAP_SYS_CHROOT", "CAP_SYS_PTRACE", "CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE",
		"CAP_SYS_RESOURCE", "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE",
		"CAP_AUDIT_CONTROL", "CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM",
		"CAP_BLOCK_SUSPEND", "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
	}
}

// bound plans to drop what is not in the bounding set, also capabilities that
// only the kernel knows; EINVAL is one that it does not.
func (c capabilities) bound(s *script) {
	if !c.set {
		return
	}
	s.step("drop bounding capabilities")
	for i := range 64 {
		if c.bounding&(1<<i) == 0 {
			s.prctl(unix.PR_CAPBSET_DROP, uintptr(i)).allow(unix.EINVAL)
		}
	}
}

// apply plans the other sets. An ambient capability that cannot be raised
// (it is not inheritable too) is left out, as by runc.
func (c capabilities) apply(s *script) {
	if !c.set {
		return
	}
	s.step("set capabilities")
	head := &unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := new([2]unix.CapUserData)
	for i := range data {
		shift := 32 * i
		data[i] = unix.CapUserData{
			Effective:   uint32(c.effective >> shift),
			Permitted:   uint32(c.permitted >> shift),
			Inheritable: uint32(c.inheritable >> shift),
		}
	}
	s.call(unix.SYS_CAPSET, address(s, head), address(s, data))
	s.step("set ambient capabilities")
	s.prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL).allow(unix.EINVAL)
	for i := range 64 {
		if c.amb&(1<<i) != 0 {
			s.prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, uintptr(i)).allow(unix.EPERM, unix.EINVAL)
		}
	}
}
