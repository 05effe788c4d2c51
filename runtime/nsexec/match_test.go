package nsexec

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	mobyseccomp "github.com/moby/profiles/seccomp"
	rspec "github.com/opencontainers/runtime-spec/specs-go"
)

// probe prints everything that the two ways of running a process must agree on.
const probe = `cat /proc/self/status | grep -E '^(Umask|Uid|Gid|Groups|Cap|NoNewPrivs|Seccomp|SigBlk|SigCgt|Speculation|Cpus_allowed|Mems_allowed|Threads|TracerPid)'
cat /proc/self/limits
cat /proc/self/cgroup
for n in cgroup ipc mnt net pid uts user time pid_for_children time_for_children; do readlink /proc/self/ns/$n; done
pwd; readlink /proc/self/cwd; readlink /proc/self/root
ls /proc/$$/fd
cat /proc/self/oom_score_adj
cat /proc/self/attr/current 2>/dev/null; cat /proc/self/personality /proc/self/coredump_filter /proc/self/timerslack_ns
env
id
stat -c '%u %g %a' /proc/$$/exe /proc/$$/fd
busybox awk '/_ses.nsx/{print $5,$6,$7}' /proc/keys 2>/dev/null | busybox sort -u
cat /proc/self/loginuid; echo; cat /proc/self/sessionid; echo
`

func privileged(s *rspec.Spec) {
	var all []string
	names := capabilityNames()
	own, _ := os.ReadFile("/proc/self/status")
	var bounding uint64
	for _, l := range strings.Split(string(own), "\n") {
		if v, ok := strings.CutPrefix(l, "CapBnd:"); ok {
			fmt.Sscanf(strings.TrimSpace(v), "%x", &bounding)
		}
	}
	for i, n := range names {
		if bounding&(1<<i) != 0 {
			all = append(all, n)
		}
	}
	s.Process.Capabilities = &rspec.LinuxCapabilities{Bounding: all, Effective: all, Permitted: all}
	s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = nil, nil
}

func defaultSeccomp(t testing.TB) func(*rspec.Spec) {
	return func(s *rspec.Spec) {
		profile, err := mobyseccomp.GetDefaultProfile(s)
		if err != nil {
			t.Fatal(err)
		}
		s.Linux.Seccomp = profile
	}
}

// TestMatchesRuntime compares a process run here with one run by runc exec.
func TestMatchesRuntime(t *testing.T) {
	umask := uint32(0o027)
	containers := []struct {
		name   string
		change func(*rspec.Spec)
	}{
		{"plain", nil},
		{"privileged", privileged},
		{"seccomp", defaultSeccomp(t)},
		{"seccomp and no_new_privs", func(s *rspec.Spec) {
			s.Process.NoNewPrivileges = true
			defaultSeccomp(t)(s)
		}},
		{"cgroup namespace, umask", func(s *rspec.Spec) {
			s.Process.User.Umask = &umask
			s.Linux.Namespaces = append(withoutCgroupNamespace(s), rspec.LinuxNamespace{Type: rspec.CgroupNamespace})
		}},
		{"first process of a user", func(s *rspec.Spec) {
			s.Process.User.UID, s.Process.User.GID, s.Process.Rlimits = 1000, 1000, nil
		}},
		{"user namespace", users(t)},
		{"privileged in a user namespace", func(s *rspec.Spec) { privileged(s); users(t)(s) }},
		{"user namespace, seccomp, user", func(s *rspec.Spec) {
			s.Process.User.UID, s.Process.User.GID = 1000, 1000
			users(t)(s)
			defaultSeccomp(t)(s)
		}},
		{"host network and pid", func(s *rspec.Spec) {
			s.Linux.Namespaces = slices.DeleteFunc(s.Linux.Namespaces, func(n rspec.LinuxNamespace) bool {
				return n.Type == rspec.PIDNamespace || n.Type == rspec.NetworkNamespace
			})
			s.Mounts = slices.DeleteFunc(s.Mounts, func(m rspec.Mount) bool { return m.Destination == "/sys" || m.Destination == "/sys/fs/cgroup" })
		}},
	}
	processes := []struct {
		name   string
		change func(*rspec.Process)
	}{
		{"root", func(*rspec.Process) {}},
		{"user with groups", func(p *rspec.Process) {
			p.User.UID, p.User.GID, p.User.AdditionalGids = 1000, 1001, []uint32{1001, 5, 7}
		}},
		{"unknown user, cwd", func(p *rspec.Process) {
			p.User.UID, p.Cwd = 4242, "/tmp"
		}},
		{"ambient capabilities", func(p *rspec.Process) {
			c := []string{"CAP_NET_BIND_SERVICE", "CAP_KILL"}
			p.User.UID, p.User.GID = 1000, 1000
			p.Capabilities = &rspec.LinuxCapabilities{Bounding: c, Effective: c, Permitted: c, Inheritable: c, Ambient: c[:1]}
		}},
		{"no capabilities, unknown one", func(p *rspec.Process) {
			p.Capabilities = &rspec.LinuxCapabilities{Bounding: []string{"CAP_FROM_THE_FUTURE"}}
		}},
		{"limits and environment", func(p *rspec.Process) {
			p.Rlimits = []rspec.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 77, Hard: 99}, {Type: "RLIMIT_CORE", Soft: 1, Hard: 2}, {Type: "RLIMIT_NPROC", Soft: 500, Hard: 600}}
			p.Env = append(slices.Clone(p.Env), "A=1", "A=2", "HOME=/x", "EMPTY=")
		}},
		{"oom score of the first process", func(p *rspec.Process) { p.OOMScoreAdj = nil }},
		{"no_new_privs", func(p *rspec.Process) { p.NoNewPrivileges = true }},
	}
	for _, ct := range containers {
		t.Run(ct.name, func(t *testing.T) {
			c := start(t, ct.change)
			for _, pr := range processes {
				p := c.process("sh", "-c", probe)
				pr.change(p)
				here, err := c.here(p)
				if err != nil {
					t.Errorf("%s: %v", pr.name, err)
					continue
				}
				compare(t, pr.name, here, c.there(p))
			}
		})
	}
}

// withoutCgroupNamespace drops the one that "runc spec" asks for on a v2 host.
func withoutCgroupNamespace(s *rspec.Spec) []rspec.LinuxNamespace {
	return slices.DeleteFunc(s.Linux.Namespaces, func(n rspec.LinuxNamespace) bool { return n.Type == rspec.CgroupNamespace })
}

func compare(t *testing.T, name string, here, there result) {
	t.Helper()
	if here.code != there.code {
		t.Errorf("%s: exit code %d here, %d by the runtime", name, here.code, there.code)
	}
	a := lines(here.out)
	b := slices.DeleteFunc(lines(there.out), func(l string) bool { return strings.Contains(l, "level=warning") })
	for i, l := range a {
		if !slices.Contains(b, l) {
			t.Errorf("%s: only here: line %d: %q", name, i, l)
		}
	}
	for i, l := range b {
		if !slices.Contains(a, l) {
			t.Errorf("%s: only by the runtime: line %d: %q", name, i, l)
		}
	}
	if len(a) != len(b) {
		t.Errorf("%s: %d lines here, %d by the runtime", name, len(a), len(b))
	}
}
