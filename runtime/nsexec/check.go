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
	case len(l.UIDMappings) > 0 || len(l.GIDMappings) > 0:
		return unsupported("a user namespace")
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

// checkNamespaces looks for those that a process with several threads cannot
// enter (user and time, see setns(2)), and that the container still runs.
func checkNamespaces(r Request) error {
	for _, ns := range []string{"user", "time"} {
		own, err := os.Stat("/proc/self/ns/" + ns)
		if os.IsNotExist(err) && ns == "time" {
			continue // Linux before 5.6
		}
		if err != nil {
			return fmt.Errorf("compare namespaces: %w", err)
		}
		its, err := os.Stat(fmt.Sprintf("/proc/%d/ns/%s", r.InitPid, ns))
		if err != nil {
			return alive(r, fmt.Errorf("compare namespaces: %w", err))
		}
		if !os.SameFile(own, its) {
			return unsupported("a %s namespace", ns)
		}
	}
	// Only now is it sure that the files above were those of the container.
	if ended(r.InitPidfd, 0) {
		return kind.Errorf(kind.Precondition, "container is not running")
	}
	return nil
}
