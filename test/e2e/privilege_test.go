package e2e

import (
	"math/bits"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/test/node"
)

type security = cri.LinuxContainerSecurityContext

// refusedContainer creates a container that must not be, and returns the error's text.
func refusedContainer(t *testing.T, p *node.Pod, want codes.Code, edit func(*security)) string {
	t.Helper()
	config := node.ContainerConfig("refused", "true")
	edit(config.Linux.SecurityContext)
	_, err := p.TryCreate(config)
	wantCode(t, err, want)
	return status.Convert(err).Message()
}

// capabilitySets prints the five sets of proc_pid_status(5) in this order.
const capabilitySets = `for s in Inh Prm Eff Bnd Amb; do awk -v s=Cap$s: '$1==s{print $2}' /proc/self/status; done`

// TestCapabilities gives and takes capabilities by all the names they go by.
func TestCapabilities(t *testing.T) {
	skipOnPeer(t, "it is older than ambient capabilities")
	n := start(t)
	own, err := os.ReadFile("/proc/self/status")
	must(t, err)
	all := line(string(own), "CapBnd")
	without := func(set string, numbers ...int) string {
		v, err := strconv.ParseUint(set, 16, 64)
		must(t, err)
		for _, n := range numbers {
			v &^= 1 << n
		}
		return strings.Repeat("0", 16-len(strconv.FormatUint(v, 16))) + strconv.FormatUint(v, 16)
	}
	const none, usual, kill, bind = "0000000000000000", "00000000a80425fb", 5, "0000000000000400"
	user := func(s *security) { s.RunAsUser = &cri.Int64Value{Value: 1000} }
	p := n.RunPod(t)
	for name, c := range map[string]struct {
		add, drop, ambient string
		more               func(*security)
		want               [5]string // inheritable, permitted, effective, bounding, ambient
	}{
		"usual":                   {"", "", "", nil, [5]string{none, usual, usual, usual, none}},
		"with the prefix":         {"CAP_NET_ADMIN", "CAP_KILL", "", nil, [5]string{none, "00000000a80435db", "00000000a80435db", "00000000a80435db", none}},
		"without it":              {"net_admin", "Kill", "", nil, [5]string{none, "00000000a80435db", "00000000a80435db", "00000000a80435db", none}},
		"all":                     {"ALL", "", "", nil, [5]string{none, all, all, all, none}},
		"all but one":             {"ALL", "KILL", "", nil, [5]string{none, without(all, kill), without(all, kill), without(all, kill), none}},
		"none":                    {"", "ALL", "", nil, [5]string{none, none, none, none, none}},
		"none but one":            {"NET_BIND_SERVICE", "all", "", nil, [5]string{none, bind, bind, bind, none}},
		"user":                    {"NET_BIND_SERVICE", "", "", user, [5]string{none, none, none, usual, none}},
		"ambient of a user":       {"", "ALL", "NET_BIND_SERVICE", user, [5]string{bind, bind, bind, bind, bind}},
		"ambient with the prefix": {"", "ALL", "CAP_NET_BIND_SERVICE", user, [5]string{bind, bind, bind, bind, bind}},
		"ambient of root":         {"", "ALL", "NET_BIND_SERVICE", nil, [5]string{bind, bind, bind, bind, bind}},
	} {
		t.Run(name, func(t *testing.T) {
			edit := func(config *cri.ContainerConfig) {
				config.Linux.SecurityContext.Capabilities = &cri.Capability{
					AddCapabilities: strings.Fields(c.add), DropCapabilities: strings.Fields(c.drop), AddAmbientCapabilities: strings.Fields(c.ambient)}
				if c.more != nil {
					c.more(config.Linux.SecurityContext)
				}
			}
			want := strings.Join(c.want[:], "\n") + "\n"
			if got := p.Output(t, capabilitySets, edit); got != want {
				t.Errorf("first process: %q, want %q", got, want)
			}
			if got := p.Run(t, "sleep 1000", edit).Shell(t, capabilitySets); got != want {
				t.Errorf("later process: %q, want %q", got, want)
			}
		})
	}
	for _, unknown := range []string{"CAP_NO_SUCH", "NET", "CAP_", "", "CAP_CAP_KILL"} {
		for _, c := range []*cri.Capability{{AddCapabilities: []string{unknown}}, {DropCapabilities: []string{unknown}}, {AddAmbientCapabilities: []string{unknown}}} {
			refusedContainer(t, p, codes.InvalidArgument, func(s *security) { s.Capabilities = c })
		}
	}
	if v, err := strconv.ParseUint(all, 16, 64); err == nil && bits.OnesCount64(v) < 41 {
		text := refusedContainer(t, p, codes.FailedPrecondition, func(s *security) { s.Capabilities = &cri.Capability{AddCapabilities: []string{missingCapability(v)}} })
		if !strings.Contains(text, missingCapability(v)) {
			t.Error(text)
		}
	}
}

// missingCapability names a capability that this machine's root has not got, of those that are often taken away.
func missingCapability(set uint64) string {
	for number, name := range map[int]string{24: "CAP_SYS_RESOURCE", 16: "CAP_SYS_MODULE", 25: "CAP_SYS_TIME", 38: "CAP_PERFMON", 39: "CAP_BPF", 40: "CAP_CHECKPOINT_RESTORE"} {
		if set&(1<<number) == 0 {
			return name
		}
	}
	return "CAP_WAKE_ALARM"
}

// TestIdentity resolves users and groups, and tells in the status what came of it.
func TestIdentity(t *testing.T) {
	skipOnPeer(t, "it is older than policies of groups")
	n := start(t)
	p := n.RunPod(t)
	id := func(v int64) *cri.Int64Value { return &cri.Int64Value{Value: v} }
	for name, c := range map[string]struct {
		edit     func(*security)
		uid, gid int64
		groups   string
	}{
		"merged":          {func(s *security) { s.RunAsUser, s.SupplementalGroups = id(1000), []int64{3000} }, 1000, 1000, "1000 2000 3000"},
		"merged by name":  {func(s *security) { s.RunAsUsername, s.SupplementalGroups = "web", []int64{3000} }, 1000, 1000, "1000 2000 3000"},
		"merged, no more": {func(s *security) { s.RunAsUser = id(1000) }, 1000, 1000, "1000 2000"},
		"strict": {func(s *security) {
			s.RunAsUser, s.SupplementalGroups, s.SupplementalGroupsPolicy = id(1000), []int64{3000}, cri.SupplementalGroupsPolicy_Strict
		}, 1000, 1000, "1000 3000"},
		"strict, no more": {func(s *security) {
			s.RunAsUser, s.SupplementalGroupsPolicy = id(1000), cri.SupplementalGroupsPolicy_Strict
		}, 1000, 1000, "1000"},
		"strict with group": {func(s *security) {
			s.RunAsUser, s.RunAsGroup, s.SupplementalGroupsPolicy = id(1000), id(55), cri.SupplementalGroupsPolicy_Strict
		}, 1000, 55, "55"},
		"merged with group":  {func(s *security) { s.RunAsUser, s.RunAsGroup = id(1000), id(55) }, 1000, 55, "55 2000"},
		"group without name": {func(s *security) { s.RunAsUser, s.RunAsGroup = id(4321), id(4322) }, 4321, 4322, "4322"},
	} {
		t.Run(name, func(t *testing.T) {
			ctr := p.Run(t, "sleep 1000", func(config *cri.ContainerConfig) { c.edit(config.Linux.SecurityContext) })
			got := strings.Fields(ctr.Shell(t, "id -u; id -g; awk '$1==\"Groups:\"{$1=\"\";print}' /proc/1/status | tr ' ' '\\n' | sort -n"))
			want := append([]string{strconv.FormatInt(c.uid, 10), strconv.FormatInt(c.gid, 10)}, strings.Fields(c.groups)...)
			if strings.Join(got, " ") != strings.Join(want, " ") {
				t.Errorf("process has %v, want %v", got, want)
			}
			u := ctr.Status(t).User.GetLinux()
			var told []string
			for _, g := range u.GetSupplementalGroups() {
				told = append(told, strconv.FormatInt(g, 10))
			}
			if u.GetUid() != c.uid || u.GetGid() != c.gid || strings.Join(told, " ") != c.groups {
				t.Errorf("status tells %v", u)
			}
		})
	}
	for name, c := range map[string]struct {
		edit func(*security)
		want codes.Code
	}{
		"group without a user":    {func(s *security) { s.RunAsGroup = id(5) }, codes.InvalidArgument},
		"name not in the image":   {func(s *security) { s.RunAsUsername = "nobody-knows" }, codes.InvalidArgument},
		"negative user":           {func(s *security) { s.RunAsUser = id(-1) }, codes.InvalidArgument},
		"user above all":          {func(s *security) { s.RunAsUser = id(1 << 32) }, codes.InvalidArgument},
		"negative group":          {func(s *security) { s.SupplementalGroups = []int64{-5} }, codes.InvalidArgument},
		"unknown policy":          {func(s *security) { s.SupplementalGroupsPolicy = 7 }, codes.InvalidArgument},
		"privileged in a pod not": {func(s *security) { s.Privileged = true }, codes.InvalidArgument},
	} {
		t.Run(name, func(t *testing.T) { refusedContainer(t, p, c.want, c.edit) })
	}
	t.Run("group without a user of a pod", func(t *testing.T) {
		config := n.PodConfig(t)
		config.Linux.SecurityContext.RunAsGroup = id(5)
		_, err := n.TryPod(t, config)
		wantCode(t, err, codes.InvalidArgument)
	})
}

// TestSeccompProfiles reads profiles of the node, and refuses what is none.
func TestSeccompProfiles(t *testing.T) {
	skipOnPeer(t, "its codes differ")
	n := start(t)
	p := n.RunPod(t)
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		must(t, os.WriteFile(path, []byte(text), 0o600))
		return path
	}
	profile := func(path string) func(*security) {
		return func(s *security) {
			s.Seccomp = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: path}
		}
	}
	good := file("good.json", `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["chmod","fchmodat","fchmodat2"],"action":"SCMP_ACT_ERRNO","errnoRet":38}]}`)
	script := "touch /tmp/x; chmod 700 /tmp/x 2>/dev/null || echo no"
	if got := p.Output(t, script, func(c *cri.ContainerConfig) { profile(good)(c.Linux.SecurityContext) }); got != "no\n" {
		t.Errorf("by the profile: %q", got)
	}
	old := func(c *cri.ContainerConfig) {
		//lint:ignore SA1019 older kubelets send only this
		c.Linux.SecurityContext.SeccompProfilePath = "localhost/" + good
	}
	if got := p.Output(t, script, old); got != "no\n" {
		t.Errorf("by the old form: %q", got)
	}
	must(t, os.Symlink("good.json", filepath.Join(dir, "link.json")))
	if got := p.Output(t, script, func(c *cri.ContainerConfig) { profile(filepath.Join(dir, "link.json"))(c.Linux.SecurityContext) }); got != "no\n" {
		t.Errorf("by a link: %q", got)
	}
	for name, c := range map[string]struct {
		path string
		want codes.Code
	}{
		"missing":        {filepath.Join(dir, "none.json"), codes.NotFound},
		"not JSON":       {file("bad.json", "{"), codes.InvalidArgument},
		"empty":          {file("empty.json", ""), codes.InvalidArgument},
		"no profile":     {file("other.json", `{"a":1}`), codes.InvalidArgument},
		"unknown action": {file("action.json", `{"defaultAction":"SCMP_ACT_MAYBE"}`), codes.InvalidArgument},
		"relative":       {"good.json", codes.InvalidArgument},
		"dots":           {dir + "/x/../good.json", codes.InvalidArgument},
		"no path":        {"", codes.InvalidArgument},
		"folder":         {dir, codes.InvalidArgument},
		"never answers":  {"/dev/zero", codes.InvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			if text := refusedContainer(t, p, c.want, profile(c.path)); !strings.Contains(text, "seccomp") {
				t.Errorf("error %q", text)
			}
		})
	}
	refusedContainer(t, p, codes.InvalidArgument, func(s *security) { s.Seccomp = &cri.SecurityProfile{ProfileType: 9} })
}

// TestModules asks for what a security module of the kernel does. Where the
// kernel has it not, what would confine is refused and what would not is fine.
func TestModules(t *testing.T) {
	skipOnPeer(t, "it runs unconfined")
	n := start(t)
	p := n.RunPod(t)
	localhost := &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: "no-such-profile"}
	if enabled, _ := os.ReadFile("/sys/module/apparmor/parameters/enabled"); len(enabled) == 0 || enabled[0] != 'Y' {
		for name, edit := range map[string]func(*security){
			"profile": func(s *security) { s.Apparmor = localhost },
			//lint:ignore SA1019 older kubelets send only this
			"profile, old way": func(s *security) { s.ApparmorProfile = "localhost/no-such-profile" },
			//lint:ignore SA1019 as above
			"both ways": func(s *security) { s.Apparmor, s.ApparmorProfile = localhost, "runtime/default" },
		} {
			if text := refusedContainer(t, p, codes.FailedPrecondition, edit); !strings.Contains(text, "AppArmor is not enabled") {
				t.Errorf("%s: %s", name, text)
			}
		}
		for name, edit := range map[string]func(*security){
			"default":    func(s *security) { s.Apparmor = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault} },
			"unconfined": func(s *security) { s.Apparmor = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Unconfined} },
		} {
			if got := p.Output(t, "echo runs", func(c *cri.ContainerConfig) { edit(c.Linux.SecurityContext) }); got != "runs\n" {
				t.Errorf("%s: %q", name, got)
			}
		}
	}
	if _, err := os.Stat("/sys/fs/selinux/enforce"); err != nil {
		options := &cri.SELinuxOption{Type: "container_t", Level: "s0:c1,c2"}
		if text := refusedContainer(t, p, codes.FailedPrecondition, func(s *security) { s.SelinuxOptions = options }); !strings.Contains(text, "SELinux is not enabled") {
			t.Error(text)
		}
		config := n.PodConfig(t)
		config.Linux.SecurityContext.SelinuxOptions = options
		_, err := n.TryPod(t, config)
		wantCode(t, err, codes.FailedPrecondition)
		p.Output(t, "true", func(c *cri.ContainerConfig) { c.Linux.SecurityContext.SelinuxOptions = &cri.SELinuxOption{} })
	}
	refusedContainer(t, p, codes.InvalidArgument, func(s *security) { s.SelinuxOptions = &cri.SELinuxOption{Type: "a:b"} })
	refusedContainer(t, p, codes.InvalidArgument, func(s *security) { s.Apparmor = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost} })
}
