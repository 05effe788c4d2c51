package namespace

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"noded.dev/noded/internal/idmap"
	"noded.dev/noded/internal/kind"
)

// NewUser makes a user namespace with a map and returns its descriptor, which
// is all that keeps it. Kinds as those of Create.
func NewUser(ids idmap.Mapping) (*os.File, error) {
	var ns *os.File
	err := hold(ids, 0, func(pid int) (err error) {
		ns, err = os.Open(nsPath(strconv.Itoa(pid), User))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("make user namespace: %w", err)
	}
	return ns, nil
}

func nsPath(pid, name string) string { return "/proc/" + pid + "/ns/" + name }

// hold runs use while a process lives in a new user namespace and in the new
// ones of flags, which that one owns: a process with several threads, as this
// is, cannot make one for itself. The others come when the map is there, or the
// files of a new network's loopback would belong to the node's root. The process is this program, traced:
// it stops before its first instruction and never gets any further.
func hold(ids idmap.Mapping, flags uintptr, use func(pid int) error) error {
	// Tracing, and Pdeathsig, are the thread's.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := &exec.Cmd{
		Path: "/proc/self/exe", Args: []string{"noded"}, Env: []string{}, Dir: "/",
		SysProcAttr: &syscall.SysProcAttr{
			Cloneflags: unix.CLONE_NEWUSER, Unshareflags: flags,
			UidMappings: sys(ids.Users), GidMappings: sys(ids.Groups), GidMappingsEnableSetgroups: true,
			Ptrace: true, Pdeathsig: unix.SIGKILL,
		},
	}
	if err := cmd.Start(); err != nil {
		return limited(err)
	}
	err := use(cmd.Process.Pid)
	if e := cmd.Process.Kill(); e != nil {
		return errors.Join(err, fmt.Errorf("end the holder of new namespaces: %w", e))
	}
	cmd.Wait() // its status says that it was killed
	return err
}

// makeOwned makes and pins the pod's user namespace and the others within it,
// all or none: one that is left of an attempt before belongs to a user
// namespace that may be gone.
func (r Request) makeOwned() error {
	flags, names := uintptr(0), []string{User}
	for _, f := range r.flavours() {
		flags |= uintptr(f.flag)
		names = append(names, f.name)
	}
	missing := false
	for _, name := range names {
		missing = missing || !Pinned(Path(r.Dir, name))
	}
	if !missing {
		return nil
	}
	for _, name := range names {
		if err := unpin(Path(r.Dir, name)); err != nil {
			return fmt.Errorf("remove %s namespace of an attempt before: %w", name, err)
		}
	}
	return hold(*r.IDs, flags, func(pid int) error {
		for _, name := range names {
			if err := pin(r.Dir, name, strconv.Itoa(pid)); err != nil {
				return err
			}
		}
		return nil
	})
}

// asOwner runs f as the root of the user namespace, on a thread that is this
// process's root otherwise: settings of an IPC namespace can be written by
// nobody else, whatever their capabilities (ipc_namespaces(7)).
func asOwner(ids *idmap.Mapping, f func() error) error {
	if ids == nil {
		return f()
	}
	uid, gid, err := ids.Root()
	if err != nil {
		return err
	}
	// The system calls themselves: Go's functions change every thread.
	const keep = ^uintptr(0)
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, keep, uintptr(gid), keep); errno != 0 {
		return fmt.Errorf("become the pod's root: %w", errno)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, keep, uintptr(uid), keep); errno != 0 {
		return fmt.Errorf("become the pod's root: %w", errno)
	}
	err = f()
	for _, call := range []uintptr{unix.SYS_SETRESUID, unix.SYS_SETRESGID} {
		if _, _, errno := unix.RawSyscall(call, keep, 0, keep); errno != 0 {
			return errors.Join(err, fmt.Errorf("become root again: %w", errno))
		}
	}
	return err
}

// pingGroups holds group ids, which the kernel takes as those of the writer's
// user namespace; the pod means its own.
const pingGroups = "net.ipv4.ping_group_range"

func pingRange(ids idmap.Mapping, value string) (string, error) {
	var out []string
	for _, field := range strings.Fields(value) {
		n, err := strconv.ParseUint(field, 10, 32)
		if err != nil {
			return "", kind.Errorf(kind.Invalid, "sysctl %s: %q is not a group id", pingGroups, field)
		}
		host, err := ids.Group(uint32(n))
		if err != nil {
			return "", fmt.Errorf("sysctl %s: %w", pingGroups, err)
		}
		out = append(out, strconv.FormatUint(uint64(host), 10))
	}
	return strings.Join(out, " "), nil
}

func sys(r idmap.Range) []syscall.SysProcIDMap {
	return []syscall.SysProcIDMap{{ContainerID: int(r.Container), HostID: int(r.Host), Size: int(r.Length)}}
}
