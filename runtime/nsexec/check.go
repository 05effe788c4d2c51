package nsexec

import (
	"fmt"
	"os"
	"path"
	"strings"

	rspec "github.com/opencontainers/runtime-spec/specs-go"

	"noded.dev/noded/internal/kind"
)

// check refuses what is malformed and what only the runtime can do.
func check(r Request) error {
	p := r.Process
	switch {
	case p == nil || len(p.Args) == 0:
		return kind.Errorf(kind.Invalid, "exec without a command")
	case r.Cgroup == "":
		return kind.Errorf(kind.Invalid, "exec without the container's cgroup")
	case p.Args[0] == "":
		return kind.Errorf(kind.Invalid, "exec of a command with an empty name")
	case !path.IsAbs(p.Cwd):
		return kind.Errorf(kind.Invalid, "working directory %q is not absolute", p.Cwd)
	case p.Scheduler != nil, p.IOPriority != nil, p.ExecCPUAffinity != nil:
		return unsupported("scheduling attributes")
	}
	for _, s := range append([]string{p.Cwd}, p.Args...) {
		if strings.ContainsRune(s, 0) {
			return kind.Errorf(kind.Invalid, "command or working directory %q has a NUL", s)
		}
	}
	if ok, err := protected(); err != nil {
		return err
	} else if !ok {
		return unsupported("this process's program is not protected; see Protect")
	}
	if err := checkLinux(r.Linux); err != nil {
		return err
	}
	if err := checkLabels(p); err != nil {
		return err
	}
	return checkNamespaces(r)
}

func checkLinux(l *rspec.Linux) error {
	switch {
	case l == nil:
		return nil
	case l.Personality != nil:
		return unsupported("a personality")
	case l.IntelRdt != nil:
		return unsupported("a resource director class")
	case l.MemoryPolicy != nil:
		return unsupported("a memory policy")
	}
	return nil
}

// checkLabels leaves a label that this kernel does not know to the runtime,
// which knows whether to ignore it.
func checkLabels(p *rspec.Process) error {
	if p.SelinuxLabel != "" {
		if _, err := os.Stat("/sys/fs/selinux/enforce"); err != nil {
			return unsupported("an SELinux label on a host without SELinux")
		}
	}
	if p.ApparmorProfile != "" {
		b, err := os.ReadFile("/sys/module/apparmor/parameters/enabled")
		if err != nil || len(b) == 0 || b[0] != 'Y' {
			return unsupported("an AppArmor profile on a host without AppArmor")
		}
	}
	return nil
}

// checkNamespaces looks for one that cannot be entered here (a time namespace),
// for a user namespace that is not the container's as it was made, and that the
// container still runs.
func checkNamespaces(r Request) error {
	if path, ok := userNamespace(r.Linux); !ok {
		return unsupported("a user namespace without a path")
	} else if err := sameNamespace(r, "user", path); err != nil {
		return err
	}
	if _, err := os.Stat("/proc/self/ns/time"); !os.IsNotExist(err) { // not before Linux 5.6
		if err := sameNamespace(r, "time", "/proc/self/ns/time"); err != nil {
			return err
		}
	}
	// Only now is it sure that the files above were those of the container.
	if ended(r.InitPidfd, 0) {
		return kind.Errorf(kind.Precondition, "container is not running")
	}
	return nil
}

// userNamespace is the path of the container's user namespace, by default this
// process's; false if the spec has it made by the runtime.
func userNamespace(l *rspec.Linux) (path string, ok bool) {
	if l != nil {
		for _, ns := range l.Namespaces {
			if ns.Type == rspec.UserNamespace {
				return ns.Path, ns.Path != ""
			}
		}
	}
	return "/proc/self/ns/user", true
}

// sameNamespace fails if the container's first process is in another namespace
// than the one at path.
func sameNamespace(r Request, kind, path string) error {
	want, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("compare namespaces: %w", err)
	}
	its, err := os.Stat(fmt.Sprintf("/proc/%d/ns/%s", r.InitPid, kind))
	if err != nil {
		return alive(r, fmt.Errorf("compare namespaces: %w", err))
	}
	if !os.SameFile(want, its) {
		return unsupported("another %s namespace", kind)
	}
	return nil
}
