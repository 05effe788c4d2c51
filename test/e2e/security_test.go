package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func seccomp(c *cri.ContainerConfig, kind cri.SecurityProfile_ProfileType, path string) {
	c.Linux.SecurityContext.Seccomp = &cri.SecurityProfile{ProfileType: kind, LocalhostRef: path}
}

// TestSecurity checks each setting by what the kernel says of the process, and
// that a process run later in the container has the same.
func TestSecurity(t *testing.T) {
	n := start(t)
	profile := filepath.Join(t.TempDir(), "profile.json")
	must(t, os.WriteFile(profile, []byte(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO"}]}`), 0o600))
	own, err := os.ReadFile("/proc/self/status")
	must(t, err)
	caps := func(add, drop string) func(*cri.LinuxContainerSecurityContext) {
		return func(s *cri.LinuxContainerSecurityContext) {
			s.Capabilities = &cri.Capability{AddCapabilities: strings.Fields(add), DropCapabilities: strings.Fields(drop)}
		}
	}
	profiled := func(kind cri.SecurityProfile_ProfileType, path string) func(*cri.LinuxContainerSecurityContext) {
		return func(s *cri.LinuxContainerSecurityContext) {
			s.Seccomp = &cri.SecurityProfile{ProfileType: kind, LocalhostRef: path}
		}
	}
	const usual = "00000000a80425fb"
	for name, c := range map[string]struct {
		edit         func(*cri.LinuxContainerSecurityContext)
		script, want string
	}{
		"usual capabilities":     {caps("", ""), field("CapEff"), usual},
		"none inheritable":       {caps("", ""), field("CapInh"), "0000000000000000"},
		"added":                  {caps("NET_ADMIN", ""), field("CapEff"), "00000000a80435fb"},
		"dropped":                {caps("", "CHOWN KILL"), field("CapEff"), "00000000a80425da"},
		"all dropped, one added": {caps("NET_BIND_SERVICE", "ALL"), field("CapBnd"), "0000000000000400"},
		"none of another user": {func(s *cri.LinuxContainerSecurityContext) { s.RunAsUser = &cri.Int64Value{Value: 1000} },
			field("CapEff"), "0000000000000000"},
		"privileged":        {privileged, field("CapEff"), line(string(own), "CapBnd")},
		"no new privileges": {func(s *cri.LinuxContainerSecurityContext) { s.NoNewPrivs = true }, field("NoNewPrivs"), "1"},
		"new privileges":    {func(s *cri.LinuxContainerSecurityContext) {}, field("NoNewPrivs"), "0"},
		"root read-only":    {func(s *cri.LinuxContainerSecurityContext) { s.ReadonlyRootfs = true }, "touch /x 2>/dev/null || echo no; touch /dev/shm/x && echo yes", "no\nyes"},
		"root writable":     {func(s *cri.LinuxContainerSecurityContext) {}, "touch /x && echo yes", "yes"},
		"masked paths": {func(s *cri.LinuxContainerSecurityContext) { s.MaskedPaths = []string{"/etc/passwd", "/home"} },
			"cat /etc/passwd; ls /home", ""},
		"read-only paths": {func(s *cri.LinuxContainerSecurityContext) { s.ReadonlyPaths = []string{"/home"} },
			"touch /home/x 2>/dev/null || echo no", "no"},
		"proc masked by default": {func(s *cri.LinuxContainerSecurityContext) {
			s.MaskedPaths, s.ReadonlyPaths = []string{"/proc/keys", "/proc/kcore"}, []string{"/proc/sys"}
		}, "head -c1 /proc/keys | wc -c; echo 1 2>/dev/null >/proc/sys/kernel/domainname || echo no", "0\nno"},
		"sys read-only":           {func(s *cri.LinuxContainerSecurityContext) {}, "awk '$2==\"/sys\"{print substr($4,1,2)}' /proc/mounts", "ro"},
		"sys of privileged":       {privileged, "awk '$2==\"/sys\"{print substr($4,1,2)}' /proc/mounts", "rw"},
		"devices of privileged":   {privileged, "test -c /dev/loop-control && echo yes", "yes"},
		"unconfined":              {profiled(cri.SecurityProfile_Unconfined, ""), field("Seccomp"), "0"},
		"default profile":         {profiled(cri.SecurityProfile_RuntimeDefault, ""), field("Seccomp"), "2"},
		"default profile refuses": {profiled(cri.SecurityProfile_RuntimeDefault, ""), "unshare -U true 2>/dev/null || echo no", "no"},
		"own profile":             {profiled(cri.SecurityProfile_Localhost, profile), "mkdir /tmp/x 2>/dev/null || echo no; touch /tmp/y && echo yes", "no\nyes"},
	} {
		t.Run(name, func(t *testing.T) {
			if name == "sys of privileged" {
				// A network namespace has one sysfs, as writable as its first mount.
				skipOnPeer(t, "its pause container mounts it read-only first")
			}
			p := n.RunPod(t, func(config *cri.PodSandboxConfig) {
				var s cri.LinuxContainerSecurityContext
				c.edit(&s)
				config.Linux.SecurityContext.Privileged = s.Privileged
			})
			edit := func(config *cri.ContainerConfig) { c.edit(config.Linux.SecurityContext) }
			if got := strings.TrimSpace(p.Output(t, c.script, edit)); got != c.want {
				t.Errorf("first process: %q, want %q", got, c.want)
			}
			if got := strings.TrimSpace(p.Run(t, "sleep 1000", edit).Shell(t, c.script)); got != c.want {
				t.Errorf("later process: %q, want %q", got, c.want)
			}
		})
	}
}

func privileged(s *cri.LinuxContainerSecurityContext) { s.Privileged = true }

// field is a script that prints a field of proc_pid_status(5).
func field(name string) string {
	return "awk '$1==\"" + name + ":\"{print $2}' /proc/self/status"
}

func line(status, name string) string {
	for _, l := range strings.Split(status, "\n") {
		if v, ok := strings.CutPrefix(l, name+":"); ok {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// TestNoDescriptorsLeak lists what a container's processes have open.
func TestNoDescriptorsLeak(t *testing.T) {
	n := start(t)
	p := n.RunPod(t)
	c := p.Run(t, "exec sleep 1000")
	pids := c.Pids(t)
	if len(pids) != 1 {
		t.Fatalf("processes %v", pids)
	}
	for _, script := range []string{"ls /proc/1/fd", "sleep 3 & until grep -q sleep /proc/$!/comm; do :; done; ls /proc/$!/fd"} {
		if got := strings.Fields(c.Shell(t, script)); strings.Join(got, " ") != "0 1 2" {
			t.Errorf("%s: %q", script, got)
		}
	}
	if err := unix.Kill(pids[0], 0); err != nil {
		t.Error(err)
	}
}
