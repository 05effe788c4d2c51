package spec

import (
	"slices"
	"strings"
	"testing"

	rspec "github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/internal/kind"
)

// TestCapabilities: the order of ALL and single names, V49, and ids that are
// not root.
func TestCapabilities(t *testing.T) {
	node := []string{"CAP_CHOWN", "CAP_KILL", "CAP_NET_ADMIN", "CAP_SYS_ADMIN", "CAP_NET_RAW"}
	defaults := []string{"CAP_CHOWN", "CAP_NET_RAW", "CAP_KILL"} // those of the default that the node has
	for name, c := range map[string]struct {
		add, drop, want []string
	}{
		"default":           {nil, nil, defaults},
		"add":               {[]string{"NET_ADMIN"}, nil, append(slices.Clone(defaults), "CAP_NET_ADMIN")},
		"prefix and case":   {[]string{"cap_net_admin", "NET_ADMIN"}, nil, append(slices.Clone(defaults), "CAP_NET_ADMIN")},
		"drop":              {nil, []string{"KILL"}, []string{"CAP_CHOWN", "CAP_NET_RAW"}},
		"drop ALL":          {nil, []string{"ALL"}, nil},
		"drop all, add one": {[]string{"KILL"}, []string{"all"}, []string{"CAP_KILL"}},
		"add ALL":           {[]string{"ALL"}, nil, node},
		"add ALL, drop one": {[]string{"ALL"}, []string{"SYS_ADMIN"}, []string{"CAP_CHOWN", "CAP_KILL", "CAP_NET_ADMIN", "CAP_NET_RAW"}},
		"B35 ALL both ways": {[]string{"ALL"}, []string{"ALL"}, nil},
		"add and drop":      {[]string{"NET_ADMIN"}, []string{"NET_ADMIN"}, defaults},
	} {
		in := testInput()
		in.Facts.Capabilities = node
		in.Container.Linux.SecurityContext.Capabilities = &cri.Capability{AddCapabilities: c.add, DropCapabilities: c.drop}
		got := mustContainer(t, in).Process.Capabilities
		for _, set := range [][]string{got.Bounding, got.Permitted, got.Effective} {
			if !slices.Equal(set, c.want) {
				t.Errorf("%s: %v, want %v", name, set, c.want)
			}
		}
		if len(got.Inheritable)+len(got.Ambient) > 0 {
			t.Errorf("V49 %s: inheritable %v, ambient %v", name, got.Inheritable, got.Ambient)
		}
		in.User.UID = 1000
		got = mustContainer(t, in).Process.Capabilities
		if !slices.Equal(got.Bounding, c.want) || len(got.Permitted)+len(got.Effective)+len(got.Inheritable) > 0 {
			t.Errorf("V49 %s: a user that is not root has %+v", name, got)
		}
	}
	in := testInput()
	in.Facts.Capabilities = node
	in.Container.Linux.SecurityContext.Capabilities = &cri.Capability{AddCapabilities: []string{"SYS_RESOURCE"}}
	wantKind(t, "a capability that the node lacks", in, kind.Precondition)
	in.Container.Linux.SecurityContext.Capabilities = &cri.Capability{DropCapabilities: []string{"SYS_RESOURCE"}}
	mustContainer(t, in)
	makePrivileged(&in)
	in.User.UID = 1000
	if got := mustContainer(t, in).Process.Capabilities; !slices.Equal(got.Bounding, node) || len(got.Effective)+len(got.Inheritable) > 0 {
		t.Errorf("V49 privileged with uid 1000: %+v", got)
	}
}

// TestSeccomp: V51 (the socket families and socketcall), V52, and that the
// filter knows the capabilities.
func TestSeccomp(t *testing.T) {
	in := testInput()
	sc := in.Container.Linux.SecurityContext
	sc.Seccomp = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault}
	filter := mustContainer(t, in).Linux.Seccomp
	for _, family := range []uint64{38, 40} {
		if allowed(filter, "socket", family) {
			t.Errorf("V51: socket(%d) is allowed", family)
		}
	}
	if !allowed(filter, "socket", 2) || allowed(filter, "socketcall", 1) || allowed(filter, "mount", 0) {
		t.Error("V51: socket(AF_INET), socketcall or mount is wrong")
	}
	sc.Capabilities = &cri.Capability{AddCapabilities: []string{"SYS_ADMIN"}}
	if !allowed(mustContainer(t, in).Linux.Seccomp, "mount", 0) {
		t.Error("mount is refused although CAP_SYS_ADMIN is given")
	}
	in.Facts.Seccomp = false
	wantKind(t, "no seccomp in the kernel", in, kind.Precondition)
	for name, p := range map[string]*cri.SecurityProfile{"none": nil, "unconfined": {ProfileType: cri.SecurityProfile_Unconfined}} {
		sc.Seccomp = p
		if mustContainer(t, in).Linux.Seccomp != nil {
			t.Errorf("%s: a filter", name)
		}
	}
	in.Facts.Seccomp = true
	sc.Seccomp = localhostProfile("/var/lib/kubelet/seccomp/p.json")
	if got := SeccompPath(in.Container); got != "/var/lib/kubelet/seccomp/p.json" {
		t.Errorf("path %q", got)
	}
	wantKind(t, "V52 profile that was not read", in, kind.Internal)
	in.SeccompLocalhost = &rspec.LinuxSeccomp{DefaultAction: rspec.ActLog}
	if got := mustContainer(t, in).Linux.Seccomp; got != in.SeccompLocalhost {
		t.Errorf("%+v", got)
	}
	sc.Seccomp = nil
	//lint:ignore SA1019 older kubelets send only this
	sc.SeccompProfilePath = "localhost//p.json"
	if got := SeccompPath(in.Container); got != "/p.json" {
		t.Errorf("deprecated path %q", got)
	}
	//lint:ignore SA1019 as above
	sc.SeccompProfilePath = "what/ever"
	wantKind(t, "V52 unknown profile", in, kind.Invalid)
}

// allowed interprets a filter for one call with one first argument.
func allowed(f *rspec.LinuxSeccomp, name string, arg uint64) bool {
	for _, c := range f.Syscalls {
		if c.Action != rspec.ActAllow || !slices.Contains(c.Names, name) {
			continue
		}
		match := true
		for _, a := range c.Args {
			match = match && a.Index == 0 && (a.Op == rspec.OpLessThan && arg < a.Value ||
				a.Op == rspec.OpEqualTo && arg == a.Value || a.Op == rspec.OpGreaterThan && arg > a.Value)
		}
		if match {
			return true
		}
	}
	return false
}

// TestParseSeccomp: V52. Nothing malformed is "no filter".
func TestParseSeccomp(t *testing.T) {
	for name, data := range map[string]string{
		"empty": "", "text": "hello", "empty object": "{}", "array": "[]", "null": "null",
		"action": `{"defaultAction":"SCMP_ACT_NOPE"}`, "rule": `{"defaultAction":"SCMP_ACT_LOG","syscalls":[{"names":[],"action":"SCMP_ACT_ALLOW"}]}`,
		"10 MiB": `{"defaultAction":"SCMP_ACT_LOG"}` + strings.Repeat(" ", 10<<20),
	} {
		if p, err := ParseSeccomp([]byte(data)); !kind.Is(err, kind.Invalid) || p != nil {
			t.Errorf("%s: %v, %v", name, p, err)
		}
	}
	if _, err := ParseSeccomp([]byte(`{"defaultAction":"SCMP_ACT_NOTIFY","listenerPath":"/run/x"}`)); !kind.Is(err, kind.Unimplemented) {
		t.Errorf("listener: %v", err)
	}
	p, err := ParseSeccomp([]byte(`{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW"}]}`))
	if err != nil || len(p.Syscalls) != 1 {
		t.Errorf("%+v, %v", p, err)
	}
}

// TestAppArmor: B35. Asked for and not there is an error, never silence.
func TestAppArmor(t *testing.T) {
	for _, c := range []struct {
		name     string
		enabled  bool
		profile  *cri.SecurityProfile
		fallback string
		want     string
		fail     kind.Kind
	}{
		{name: "off, none"},
		{name: "off, unconfined", profile: &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Unconfined}},
		{name: "off, default", profile: &cri.SecurityProfile{}},
		{name: "off, localhost", profile: localhostProfile("p"), fail: kind.Precondition},
		{name: "on, none", enabled: true, fallback: "d", want: "d"},
		{name: "on, default", enabled: true, profile: &cri.SecurityProfile{}, fallback: "d", want: "d"},
		{name: "on, default, none loaded", enabled: true, profile: &cri.SecurityProfile{}, fail: kind.Precondition},
		{name: "on, localhost", enabled: true, profile: localhostProfile("p"), want: "p"},
		{name: "on, localhost by its old name", enabled: true, profile: localhostProfile("localhost/p"), want: "p"},
		{name: "on, unconfined", enabled: true, profile: &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Unconfined}, fallback: "d", want: "unconfined"},
	} {
		in := testInput()
		in.Facts.AppArmor, in.Facts.AppArmorDefault = c.enabled, c.fallback
		in.Container.Linux.SecurityContext.Apparmor = c.profile
		if c.fail != 0 {
			wantKind(t, c.name, in, c.fail)
		} else if got := mustContainer(t, in).Process.ApparmorProfile; got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

func TestSELinux(t *testing.T) {
	in := testInput()
	in.Container.Linux.SecurityContext.SelinuxOptions = &cri.SELinuxOption{Type: "spc_t", Level: "s0:c1,c2"}
	in.Pod.Linux.SecurityContext.SelinuxOptions = in.Container.Linux.SecurityContext.SelinuxOptions
	wantKind(t, "a label where SELinux is off", in, kind.Precondition)
	if err := PodSupported(in.Pod, in.Facts); !kind.Is(err, kind.Precondition) {
		t.Errorf("a pod's label where SELinux is off: %v", err)
	}
	in.Facts.SELinux = true
	if got := mustContainer(t, in).Process.SelinuxLabel; got != "system_u:system_r:spc_t:s0:c1,c2" {
		t.Error(got)
	}
	if err := PodSupported(in.Pod, in.Facts); err != nil {
		t.Error(err)
	}
	in.Facts.SELinux = false
	in.Container.Linux.SecurityContext.SelinuxOptions = &cri.SELinuxOption{}
	if got := mustContainer(t, in).Process.SelinuxLabel; got != "" {
		t.Errorf("empty options: %q", got)
	}
}

// TestPaths: V50. An absent list has the defaults, unless privileged.
func TestPaths(t *testing.T) {
	in := testInput()
	s := mustContainer(t, in)
	for _, p := range []string{"/sys/devices/virtual/powercap", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/sched_debug", "/proc/acpi", "/proc/scsi", "/sys/firmware"} {
		if !slices.Contains(s.Linux.MaskedPaths, p) {
			t.Errorf("V50: %s is not masked", p)
		}
	}
	in.Container.Linux.SecurityContext.MaskedPaths = []string{"/bin/ls/"}
	if got := mustContainer(t, in).Linux.MaskedPaths; !slices.Equal(got, []string{"/bin/ls"}) {
		t.Error(got)
	}
	makePrivileged(&in)
	if s = mustContainer(t, in); len(s.Linux.MaskedPaths)+len(s.Linux.ReadonlyPaths) > 0 {
		t.Error("masked although privileged")
	}
}
