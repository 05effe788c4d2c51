package spec

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"noded.dev/noded/internal/kind"
)

// Limits of what a request or an image may ask for. Errors give name and value.
const (
	maxName          = 253         // bytes of a pod's or container's name, namespace and uid (a DNS subdomain)
	maxHostname      = 64          // bytes; the kernel's __NEW_UTS_LEN
	maxPath          = 4095        // bytes; PATH_MAX without its NUL
	maxPathPart      = 255         // bytes of one part of a path; NAME_MAX
	maxImageName     = 4096        // bytes of an image reference
	maxLabelBytes    = 1 << 20     // keys and values of all labels, and of all annotations
	maxMounts        = 2048        // CRI mounts of a container
	maxDevices       = 4096        // device nodes of a container
	maxArgString     = 128<<10 - 1 // bytes of one argument or variable; MAX_ARG_STRLEN of execve(2)
	maxArgBytes      = 2 << 20     // all arguments and variables with their pointers; ARG_MAX for a stack of 8 MiB
	maxID            = 1<<31 - 1   // user and group ids, as Kubernetes limits them
	maxGroups        = 65536       // supplementary groups; NGROUPS_MAX
	maxSysctls       = 256         // per pod
	maxSysctlValue   = 4096        // bytes
	maxPorts         = 1024        // port mappings of a pod
	maxDNS           = 64          // servers, searches and options of a pod, each
	maxDNSEntry      = 2048        // bytes of one of them
	maxUnified       = 128         // cgroup v2 keys of a container
	maxUnifiedValue  = 4096        // bytes
	maxSeccompBytes  = 1 << 20     // bytes of a Localhost profile
	maxCPU           = 8191        // highest CPU number in a cpuset; the kernel's NR_CPUS limit
	maxMemoryNode    = 1023        // highest memory node in a cpuset
	maxMemory        = 1 << 60     // bytes of a memory limit
	maxCPUShares     = 1 << 18     // the kernel's MAX_SHARES
	minCPUShares     = 2           // the kernel's MIN_SHARES
	minCPUPeriod     = 1000        // µs
	maxCPUPeriod     = 1000000     // µs
	minCPUQuota      = 1000        // µs
	maxCPUQuota      = 1<<44 - 1   // µs; the kernel's MAX_BW
	maxMountOptions  = 16          // per mount
	maxVolumes       = 1024        // of an image
	maxUsernameBytes = 256
)

// tooLong says which limit a value breaks.
func tooLong(what string, n, limit int) error {
	return kind.Errorf(kind.Invalid, "%s: %d bytes, the limit is %d", what, n, limit)
}

func tooMany(what string, n, limit int) error {
	return kind.Errorf(kind.Exhausted, "%d %s, the limit is %d", n, what, limit)
}

// checkText refuses what cannot be part of a line: control characters (they
// forge lines in hosts, passwd and logs) and bytes that JSON cannot carry.
func checkText(what, value string, limit int) error {
	if len(value) > limit {
		return tooLong(what, len(value), limit)
	}
	if !utf8.ValidString(value) {
		return kind.Errorf(kind.Invalid, "%s is not valid UTF-8", what)
	}
	if strings.ContainsFunc(value, unicode.IsControl) {
		return kind.Errorf(kind.Invalid, "%s has a control character: %q", what, clip(value))
	}
	return nil
}

// clip keeps error messages short.
func clip(s string) string {
	if len(s) > 64 {
		return s[:64] + "…"
	}
	return s
}
