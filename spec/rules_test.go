package spec

import (
	"encoding/json"
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	rspec "github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"

	"noded.dev/noded/internal/kind"
)

// TestCommandLine is the kubelet's table of command and args against the
// image's entrypoint and arguments.
func TestCommandLine(t *testing.T) {
	for _, c := range []struct {
		entrypoint, cmd, command, args, want []string
	}{
		{[]string{"e"}, []string{"c"}, nil, nil, []string{"e", "c"}},
		{[]string{"e"}, []string{"c"}, []string{"x"}, nil, []string{"x"}},
		{[]string{"e"}, []string{"c"}, nil, []string{"y"}, []string{"e", "y"}},
		{[]string{"e"}, []string{"c"}, []string{"x"}, []string{"y"}, []string{"x", "y"}},
		{nil, []string{"c"}, nil, nil, []string{"c"}},
		{nil, []string{"c"}, nil, []string{"y"}, []string{"y"}},
		{[]string{"e"}, nil, nil, nil, []string{"e"}},
		{[]string{}, []string{}, []string{}, []string{"y", ""}, []string{"y", ""}},
	} {
		in := testInput()
		in.Image.Entrypoint, in.Image.Cmd = c.entrypoint, c.cmd
		in.Container.Command, in.Container.Args = c.command, c.args
		if got := mustContainer(t, in).Process.Args; !slices.Equal(got, c.want) {
			t.Errorf("%+v: %q", c, got)
		}
	}
	in := testInput()
	in.Image.Entrypoint, in.Image.Cmd = nil, nil
	wantKind(t, "B22 nothing to run", in, kind.Invalid)
	in.Image.Cmd = []string{""}
	wantKind(t, "B22 empty command of the image", in, kind.Invalid)
}

func TestWorkingDir(t *testing.T) {
	for _, c := range []struct{ image, request, want string }{
		{"", "", "/"}, {"/srv", "", "/srv"}, {"srv", "", "/srv"}, {"/srv", "/w/", "/w"},
		{"/../../../noded-canary", "", "/noded-canary"},
	} {
		in := testInput()
		in.Image.WorkingDir, in.Container.WorkingDir = c.image, c.request
		if got := mustContainer(t, in).Process.Cwd; got != c.want {
			t.Errorf("%+v: %q", c, got)
		}
	}
	for _, dir := range []string{"/proc/self/fd/3", "proc/self/fd/255", "/proc/1/cwd", "/proc/thread-self/root", "/a\nb", "/a\x00"} {
		in := testInput()
		in.Image.WorkingDir = dir
		wantKind(t, "V47 V44 image cwd "+dir, in, kind.Invalid)
	}
}

// TestEnv: V45, B21. Order, defaults, and what becomes of malformed entries.
func TestEnv(t *testing.T) {
	t.Setenv("NODED_SECRET", "canary")
	in := testInput()
	in.Container.Tty = true
	in.Image.Env = []string{"NODED_SECRET", "*", "=x", "A=b=c", "MODE=image", "BAD=\x00", "EMPTY=", "MODE=again"}
	in.Container.Envs = []*cri.KeyValue{{Key: "MODE", Value: []byte("pod")}, {Key: "Z", Value: nil}}
	want := []string{"PATH=" + defaultPath, "HOSTNAME=web-0", "TERM=xterm", "A=b=c", "MODE=pod", "EMPTY=", "Z=", "HOME=/root"}
	if got := mustContainer(t, in).Process.Env; !slices.Equal(got, want) {
		t.Errorf("environment is\n%q, want\n%q", got, want)
	}
	if keys := warningKeys(in); !slices.Contains(keys, "image-env") {
		t.Errorf("no warning about dropped variables: %v", keys)
	}
	in.Image.Env = []string{"PATH=", "HOME=/h"}
	got := mustContainer(t, in).Process.Env
	if !slices.Contains(got, "PATH=") || !slices.Contains(got, "HOME=/h") {
		t.Errorf("the image's own values are gone: %q", got)
	}
	// V44: the byte 0x0a, not the two characters of an escape.
	for _, home := range []string{"/root\nm::0:0::/:/bin/sh", "/root\r", "/root\x00"} {
		in.Image.Env = []string{"HOME=" + home}
		wantKind(t, "V44 image HOME", in, kind.Invalid)
	}
	in.Image.Env = nil
	in.User.Home = "/root\nm::0:0::/"
	wantKind(t, "V44 home of the user", in, kind.Invalid)
	in = testInput()
	for range 100000 {
		in.Image.Env = append(in.Image.Env, "K"+string(rune('a'+len(in.Image.Env)%26))+strings.Repeat("x", len(in.Image.Env)%97)+"=0123456789")
	}
	if _, err := Container(in); err != nil {
		t.Errorf("B21 many equal variables: %v", err)
	}
	in.Image.Env = []string{"A=" + strings.Repeat("x", 2<<20)}
	wantKind(t, "B21 long variable of the image", in, kind.Invalid)
}

func warningKeys(in Input) []string {
	var keys []string
	for _, w := range Warnings(in) {
		keys = append(keys, w.Key)
	}
	return keys
}

func TestHostname(t *testing.T) {
	in := testInput()
	if got := Hostname(in.Pod, in.PodID, "node"); got != "web-0" {
		t.Error(got)
	}
	in.Pod.Hostname = ""
	if got := Hostname(in.Pod, in.PodID, "node"); got != "aabbccddeeff" {
		t.Error(got)
	}
	in.Pod.Linux.SecurityContext.NamespaceOptions = &cri.NamespaceOption{Network: cri.NamespaceMode_NODE}
	if got := Hostname(in.Pod, in.PodID, "node"); got != "node" {
		t.Error(got)
	}
}

// TestAnnotations: V54. What changes runtimes or systemd needs an entry that
// names its family.
func TestAnnotations(t *testing.T) {
	all := map[string]string{
		"org.systemd.property.ExecStartPre": "x", "run.oci.hooks.stdout": "x", "krun.cpus": "1", "org.criu.config": "x",
		"module.wasm.image/variant": "x", "io.kubernetes.cri.sandbox-id": "x", "example.com/a": "1", "example.com/b": "2",
	}
	for _, c := range []struct {
		allow []string
		want  []string
	}{
		{nil, nil},
		{[]string{"*"}, []string{"example.com/a", "example.com/b"}},
		{[]string{"example.com/a"}, []string{"example.com/a"}},
		{[]string{"org.*", "run*", "k*"}, nil},
		{[]string{"run.oci.*"}, []string{"run.oci.hooks.stdout"}},
		{[]string{"org.systemd.property.ExecStartPre"}, []string{"org.systemd.property.ExecStartPre"}},
	} {
		if got := sortedKeys(AllowAnnotations(all, c.allow)); !slices.Equal(got, c.want) {
			t.Errorf("%v: %v, want %v", c.allow, got, c.want)
		}
	}
	in := testInput()
	in.Pod.Annotations, in.Container.Annotations = all, all
	in.Annotations = map[string]string{annotationPodID: "forged", "example.com/a": "1"}
	got := mustContainer(t, in).Annotations
	if got[annotationPodID] != in.PodID || got["example.com/a"] != "1" || got["example.com/b"] != "" {
		t.Error(got)
	}
}

// TestImageLabels: V41. Labels of an image are nowhere in the spec.
func TestImageLabels(t *testing.T) {
	in := testInput()
	plain, err := json.Marshal(mustContainer(t, in))
	if err != nil {
		t.Fatal(err)
	}
	in.Image.Labels = map[string]string{
		"containerd.io/restart.loguri": "binary:///bin/sh?-c=touch", "noded.x": "1", "io.kubernetes.pod.name": "evil",
		"org.systemd.property.ExecStartPre": "x", "long": strings.Repeat("x", 1<<20),
	}
	labelled, err := json.Marshal(mustContainer(t, in))
	if err != nil {
		t.Fatal(err)
	}
	if string(plain) != string(labelled) {
		t.Error("V41: labels changed the spec")
	}
}

// TestVolumes: V40.
func TestVolumes(t *testing.T) {
	set := func(paths ...string) ocispec.ImageConfig {
		v := map[string]struct{}{}
		for _, p := range paths {
			v[p] = struct{}{}
		}
		return ocispec.ImageConfig{Volumes: v}
	}
	got, err := Volumes(set("/../../../../noded-canary/", "data", "/data/"))
	if err != nil || !slices.Equal(got, []string{"/data", "/noded-canary"}) {
		t.Errorf("%v, %v", got, err)
	}
	for _, bad := range []string{"/", "", "/proc", "/x/../proc/sys", "/a\nb", "/a\x00", "/" + strings.Repeat("a/", 4000)} {
		in := testInput()
		in.Image.Volumes = set(bad).Volumes
		wantKind(t, "V40 volume "+clip(bad), in, kind.Invalid)
	}
}

func TestVersion(t *testing.T) {
	if v := Version(&rspec.Spec{}); v != "1.0.2" {
		t.Error(v)
	}
	s := &rspec.Spec{Mounts: []rspec.Mount{{UIDMappings: []rspec.LinuxIDMapping{{}}}}, Process: &rspec.Process{ExecCPUAffinity: &rspec.CPUAffinity{}}}
	if v := Version(s); v != "1.2.1" {
		t.Error(v)
	}
	in := testInput()
	in.Facts.RuntimeSpecMax = ""
	if err := applyVersion(&in, s); !kind.Is(err, kind.Precondition) {
		t.Errorf("a handler that is too old: %v", err)
	}
	in.Facts.RuntimeSpecMax = "1.0.0"
	wantKind(t, "a handler older than all", in, kind.Precondition)
	in.Facts.RuntimeSpecMax = "1.3.0-rc.1"
	mustContainer(t, in)
}

// TestStopSignal: B24.
func TestStopSignal(t *testing.T) {
	for _, c := range []struct {
		request cri.Signal
		image   string
		want    int
	}{
		{0, "", 15}, {0, "SIGINT", 2}, {0, "int", 2}, {0, "9", 9}, {0, "SIGRTMIN", 34}, {0, "RTMIN+3", 37}, {0, "SIGRTMAX-1", 63},
		{cri.Signal_SIGNAL_SIGUSR1, "SIGINT", 10}, {cri.Signal_SIGNAL_SIGRTMINPLUS1, "", 35}, {cri.Signal_SIGNAL_SIGRTMAXMINUS14, "", 50},
		{cri.Signal_SIGNAL_SIGCLD, "", 17}, {cri.Signal_SIGNAL_SIGRTMAX, "", 64}, {cri.Signal_SIGNAL_SIGPOLL, "", 29}, {cri.Signal_SIGNAL_SIGIOT, "", 6},
		{0, "SIGFOO", 15}, {0, "9999", 15}, {0, "-1", 15}, {0, "0", 15}, {0, "RTMIN+99", 15}, {0, "RTMIN3", 15}, {0, "RTMIN+-1", 15},
	} {
		in := testInput()
		in.Container.StopSignal, in.Image.StopSignal = c.request, c.image
		if got := StopSignal(in.Container, in.Image); got != c.want {
			t.Errorf("%v %q: %d, want %d", c.request, c.image, got, c.want)
		}
	}
	for n := range cri.Signal_name {
		if n == 0 {
			continue
		}
		if _, err := parseSignal(criSignalName(cri.Signal(n))); err != nil {
			t.Errorf("%s: %v", cri.Signal(n), err)
		}
	}
	in := testInput()
	in.Image.StopSignal = "SIGFOO"
	if !slices.Contains(warningKeys(in), "stop-signal") {
		t.Error("B24: no warning")
	}
}

// TestResources: zero is left out, swap follows memory, clamps and warnings.
// A namespace that each container has for itself is made, not joined.
func TestOwnNamespaces(t *testing.T) {
	in := testInput()
	in.Paths.NetNS, in.Paths.IPCNS, in.Paths.OwnNet, in.Paths.OwnIPC = "", "", true, true
	got := map[rspec.LinuxNamespaceType]string{}
	for _, ns := range mustContainer(t, in).Linux.Namespaces {
		got[ns.Type] = "made" + ns.Path
	}
	if got[rspec.NetworkNamespace] != "made" || got[rspec.IPCNamespace] != "made" {
		t.Errorf("namespaces %v", got)
	}
}

// CPUs and memory nodes that the node does not have are the request's mistake.
func TestResourcesOnNode(t *testing.T) {
	f := Facts{CPUs: 2, MemoryNodes: 1}
	for _, c := range []struct {
		cpus, mems string
		ok         bool
	}{{"0-1", "0", true}, {"", "", true}, {"2", "", false}, {"0,99", "", false}, {"0", "1", false}} {
		_, err := Resources(&cri.LinuxContainerResources{CpusetCpus: c.cpus, CpusetMems: c.mems}, f)
		if (err == nil) != c.ok || err != nil && !kind.Is(err, kind.Invalid) {
			t.Errorf("CPUs %q, memory nodes %q: %v", c.cpus, c.mems, err)
		}
	}
	if _, err := Resources(&cri.LinuxContainerResources{CpusetCpus: "99"}, Facts{}); err != nil {
		t.Errorf("on a node whose CPUs are unknown: %v", err)
	}
}

func TestResources(t *testing.T) {
	f := testInput().Facts
	r, err := Resources(&cri.LinuxContainerResources{CpuQuota: -1, MemoryLimitInBytes: -1}, f)
	if err != nil || *r.CPU.Quota != -1 || r.CPU.Shares != nil || *r.Memory.Swap != -1 {
		t.Errorf("%+v, %v", r, err)
	}
	r, err = Resources(&cri.LinuxContainerResources{}, f)
	if err != nil || r.CPU != nil || r.Memory != nil || r.HugepageLimits != nil {
		t.Errorf("%+v, %v", r, err)
	}
	f.Swap, f.HugePages = false, nil
	wish := &cri.LinuxContainerResources{MemoryLimitInBytes: 10 << 20, MemorySwapLimitInBytes: 20 << 20, HugepageLimits: []*cri.HugepageLimit{{PageSize: "2MB", Limit: 1}}}
	r, err = Resources(wish, f)
	if err != nil || r.Memory.Swap != nil || r.HugepageLimits != nil {
		t.Errorf("%+v, %v", r, err)
	}
	in := testInput()
	in.Facts, in.Container.Linux.Resources = f, wish
	in.Facts.OOMScoreFloor, wish.OomScoreAdj = 0, -998
	if keys := warningKeys(in); !slices.Equal(keys, []string{"oom-score", "swap", "hugepages"}) {
		t.Error(keys)
	}
	if got := *mustContainer(t, in).Process.OOMScoreAdj; got != 0 {
		t.Errorf("B34: score %d is not clamped", got)
	}
	merged := MergeResources(&cri.LinuxContainerResources{CpuShares: 2, MemoryLimitInBytes: 1, MemorySwapLimitInBytes: 2, CpusetCpus: "0"}, &cri.LinuxContainerResources{MemoryLimitInBytes: 5})
	if merged.CpuShares != 2 || merged.MemoryLimitInBytes != 5 || merged.MemorySwapLimitInBytes != 0 || merged.CpusetCpus != "0" {
		t.Errorf("%+v", merged)
	}
}

// TestMountPrecondition: what the kubelet looks for when recursive read-only
// mounts are not there.
func TestMountPrecondition(t *testing.T) {
	in := testInput()
	makeRich(&in)
	in.Facts.RRO = false
	_, err := Container(in)
	if !kind.Is(err, kind.Precondition) || !errors.Is(err, crierrors.ErrRROUnsupported) {
		t.Errorf("%v", err)
	}
}

// TestRecheck: what was added to a finished spec counts for its version and its
// limits.
func TestRecheck(t *testing.T) {
	in := testInput()
	s, err := Container(in)
	if err != nil {
		t.Fatal(err)
	}
	in.Facts.RuntimeSpecMax = "1.2.0"
	s.Linux.NetDevices = map[string]rspec.LinuxNetDevice{"eth9": {}}
	if err := Recheck(in, s); !kind.Is(err, kind.Precondition) {
		t.Errorf("a spec that is newer than its handler: %v", err)
	}
	in.Facts.RuntimeSpecMax = "1.3.0"
	if err := Recheck(in, s); err != nil || s.Version != "1.3.0" {
		t.Errorf("version %s, %v", s.Version, err)
	}
	s.Process.Env = append(s.Process.Env, "BIG="+strings.Repeat("x", maxArgString))
	if err := Recheck(in, s); !kind.Is(err, kind.Invalid) {
		t.Errorf("a variable that is too long: %v", err)
	}
}

// TestPure: building a spec twice gives the same, and leaves its input alone.
func TestPure(t *testing.T) {
	in, untouched := testInput(), testInput()
	makeRich(&in)
	makeRich(&untouched)
	first, second := mustContainer(t, in), mustContainer(t, in)
	if !reflect.DeepEqual(first, second) {
		t.Error("two specs of one input differ")
	}
	if !reflect.DeepEqual(in, untouched) {
		t.Error("the input was changed")
	}
}
