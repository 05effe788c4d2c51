package sandbox

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"

	rspec "github.com/opencontainers/runtime-spec/specs-go"
)

// sameProcess compares what CRIU restores as it was (the process with its
// credentials, filters and limits, and the tree of mounts) with what the new
// spec says. Where sources of mounts and paths of namespaces lead, and the
// resources, are the new spec's alone.
func sameProcess(then, now *rspec.Spec) error {
	for _, part := range []struct {
		name      string
		then, now any
	}{
		{"command", then.Process.Args, now.Process.Args},
		{"working directory", then.Process.Cwd, now.Process.Cwd},
		{"user", then.Process.User, now.Process.User},
		{"environment", withoutHost(then.Process.Env), withoutHost(now.Process.Env)},
		{"terminal", then.Process.Terminal, now.Process.Terminal},
		{"capabilities", then.Process.Capabilities, now.Process.Capabilities},
		{"no_new_privileges", then.Process.NoNewPrivileges, now.Process.NoNewPrivileges},
		{"rlimits", then.Process.Rlimits, now.Process.Rlimits},
		{"oom score", then.Process.OOMScoreAdj, now.Process.OOMScoreAdj},
		{"AppArmor profile", then.Process.ApparmorProfile, now.Process.ApparmorProfile},
		{"SELinux label", then.Process.SelinuxLabel, now.Process.SelinuxLabel},
		{"seccomp profile", then.Linux.Seccomp, now.Linux.Seccomp},
		{"masked paths", then.Linux.MaskedPaths, now.Linux.MaskedPaths},
		{"read-only paths", then.Linux.ReadonlyPaths, now.Linux.ReadonlyPaths},
		{"read-only root filesystem", then.Root.Readonly, now.Root.Readonly},
		{"root filesystem's propagation", then.Linux.RootfsPropagation, now.Linux.RootfsPropagation},
		{"mounts", withoutSources(then.Mounts), withoutSources(now.Mounts)},
		{"namespaces", withoutPaths(then.Linux.Namespaces), withoutPaths(now.Linux.Namespaces)},
		{"user id mappings", then.Linux.UIDMappings, now.Linux.UIDMappings},
		{"group id mappings", then.Linux.GIDMappings, now.Linux.GIDMappings},
		{"devices", then.Linux.Devices, now.Linux.Devices},
		{"sysctls", then.Linux.Sysctl, now.Linux.Sysctl},
	} {
		if !equal(part.then, part.now) {
			return fmt.Errorf("the request's %s cannot be applied: the checkpointed process has another", part.name)
		}
	}
	return nil
}

// equal compares as JSON, in which one of the two comes: nil and empty are the same.
func equal(a, b any) bool {
	return reflect.DeepEqual(plain(a), plain(b))
}

func plain(v any) any {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	var out any
	if json.Unmarshal(text, &out) != nil {
		return nil
	}
	if list, ok := out.([]any); ok && len(list) == 0 {
		return nil
	}
	return out
}

// withoutHost leaves out the host name: that of a pod that asks for none is
// made of its id.
func withoutHost(env []string) []string {
	return slices.DeleteFunc(slices.Clone(env), func(v string) bool { return strings.HasPrefix(v, "HOSTNAME=") })
}

func withoutSources(mounts []rspec.Mount) []rspec.Mount {
	out := make([]rspec.Mount, len(mounts))
	for i, m := range mounts {
		out[i] = m
		if m.Type == "bind" {
			out[i].Source = ""
		}
	}
	return out
}

// withoutPaths says of each namespace whether it is joined.
func withoutPaths(list []rspec.LinuxNamespace) []rspec.LinuxNamespace {
	out := make([]rspec.LinuxNamespace, len(list))
	for i, n := range list {
		out[i].Type = n.Type
		if n.Path != "" {
			out[i].Path = "joined"
		}
	}
	return out
}
