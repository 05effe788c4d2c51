package spec

import (
	"regexp"
	"slices"
	"strings"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/internal/kind"
)

// ipcSysctls belong to the IPC namespace (ipc_namespaces(7)), beside fs.mqueue.*.
// Any other kernel.* is the node's.
var ipcSysctls = []string{
	"kernel.msg_next_id", "kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.sem_next_id",
	"kernel.shm_next_id", "kernel.shm_rmid_forced", "kernel.shmall", "kernel.shmmax", "kernel.shmmni",
}

var (
	sysctlName  = regexp.MustCompile(`^[a-z0-9][a-zA-Z0-9_-]*(\.[a-zA-Z0-9_-]+)+$`)
	sysctlValue = regexp.MustCompile(`^[A-Za-z0-9 \t.,:_-]*$`)
)

// validateSysctls lets through only what belongs to a namespace that is the
// pod's own, spelt so that it can only be one key and one value.
func validateSysctls(p *cri.PodSandboxConfig) error {
	sysctls := p.GetLinux().GetSysctls()
	if len(sysctls) > maxSysctls {
		return tooMany("sysctls", len(sysctls), maxSysctls)
	}
	for _, name := range sortedKeys(sysctls) {
		value := sysctls[name]
		if len(name) > maxName || !sysctlName.MatchString(name) {
			return kind.Errorf(kind.Invalid, "sysctl name %q", clip(name))
		}
		if len(value) > maxSysctlValue {
			return tooLong("sysctl "+name, len(value), maxSysctlValue)
		}
		if !sysctlValue.MatchString(value) {
			return kind.Errorf(kind.Invalid, "sysctl %s: value %q", name, clip(value))
		}
		if err := sysctlNamespace(name, podNamespaces(p)); err != nil {
			return err
		}
	}
	return nil
}

func sysctlNamespace(name string, o *cri.NamespaceOption) error {
	switch {
	case strings.HasPrefix(name, "net."):
		if o.GetNetwork() != cri.NamespaceMode_POD {
			return kind.Errorf(kind.Invalid, "sysctl %s needs a network namespace of the pod", name)
		}
	case strings.HasPrefix(name, "fs.mqueue.") || slices.Contains(ipcSysctls, name):
		if o.GetIpc() != cri.NamespaceMode_POD {
			return kind.Errorf(kind.Invalid, "sysctl %s needs an IPC namespace of the pod", name)
		}
	default:
		return kind.Errorf(kind.Invalid, "sysctl %s does not belong to a namespace of the pod", name)
	}
	return nil
}
