package namespace

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"noded.dev/noded/internal/kind"
)

// maxSysctl is the kernel's page: /proc/sys takes no longer write.
const maxSysctl = 4096

// ipcSysctls are the kernel.* settings that belong to the IPC namespace
// (ipc_namespaces(7)); all of fs.mqueue.* do too.
var ipcSysctls = []string{
	"kernel.auto_msgmni", "kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.msg_next_id", "kernel.sem",
	"kernel.sem_next_id", "kernel.shmall", "kernel.shmmax", "kernel.shmmni", "kernel.shm_next_id", "kernel.shm_rmid_forced",
}

// validateSysctl refuses what would be written to the host or could smuggle a
// second setting (CVE-2022-0811).
func (r Request) validateSysctl(key, value string) error {
	name := dotted(key)
	if path := sysctlPath(key); filepath.Clean(path) != path || strings.ContainsAny(key, "\x00\n= \t+") {
		return kind.Errorf(kind.Invalid, "sysctl %q: malformed name", key)
	}
	if strings.ContainsAny(value, "\x00\n") || len(value) >= maxSysctl {
		return kind.Errorf(kind.Invalid, "sysctl %q: a value is one line of less than %d bytes", key, maxSysctl)
	}
	switch {
	case strings.HasPrefix(name, "net."):
		return r.needs(r.Net, key, "network")
	case belongsToIPC(name):
		return r.needs(r.IPC, key, "IPC")
	case name == "kernel.hostname", name == "kernel.domainname":
		return r.needs(r.UTS, key, "UTS")
	}
	return kind.Errorf(kind.Invalid, "sysctl %q belongs to no namespace of a pod and would change the host", key)
}

func (Request) needs(has bool, key, what string) error {
	if has {
		return nil
	}
	return kind.Errorf(kind.Invalid, "sysctl %q needs a %s namespace of the pod's own", key, what)
}

// dotted gives a key with dots between its parts: sysctl(8) also takes slashes,
// then dots belong to a name (net/ipv4/conf/eth0.1/forwarding).
func dotted(key string) string {
	sep := strings.IndexAny(key, "./")
	if sep < 0 || key[sep] == '.' {
		return key
	}
	swap := strings.NewReplacer("/", ".", ".", "/")
	return swap.Replace(key)
}

func sysctlPath(key string) string {
	swap := strings.NewReplacer(".", "/", "/", ".")
	return "/proc/sys/" + swap.Replace(dotted(key))
}

// writeSysctl sets a value for the calling thread's namespaces: what /proc/sys
// shows is chosen by the namespaces of the thread that opens the file.
func (r Request) writeSysctl(key, value string) error {
	name := dotted(key)
	switch {
	case r.IDs != nil && name == pingGroups:
		value, err := pingRange(*r.IDs, value)
		if err != nil {
			return err
		}
		return writeSysctl(key, value)
	case belongsToIPC(name):
		return asOwner(r.IDs, func() error { return writeSysctl(key, value) })
	}
	return writeSysctl(key, value)
}

func belongsToIPC(name string) bool {
	return strings.HasPrefix(name, "fs.mqueue.") || slices.Contains(ipcSysctls, name)
}

func writeSysctl(key, value string) error {
	f, err := os.OpenFile(sysctlPath(key), os.O_WRONLY|unix.O_CLOEXEC, 0)
	if errors.Is(err, os.ErrNotExist) {
		return kind.Errorf(kind.Invalid, "sysctl %q: this kernel has no such setting", key)
	}
	if err != nil {
		return fmt.Errorf("sysctl %q: %w", key, err)
	}
	if _, err := f.WriteString(value); err != nil {
		err = errors.Join(fmt.Errorf("sysctl %q to %q: %w", key, value, err), f.Close())
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ERANGE) {
			return kind.Wrap(kind.Invalid, err)
		}
		return err
	}
	return f.Close()
}
