package spec

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	rspec "github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/internal/facts"
	"noded.dev/noded/internal/hostdev"
)

// runcBench runs specs with a real runc on a root filesystem of busybox.
type runcBench struct {
	runc, dir, rootfs string
	facts             Facts
	count             int
}

// newRuncBench skips where the real thing cannot run.
func newRuncBench(t *testing.T) *runcBench {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	runc := os.Getenv("NODED_TEST_RUNC")
	if runc == "" {
		runc, _ = exec.LookPath("runc") //nolint:errcheck // "" skips
	}
	const busybox = "/bin/busybox"
	if _, err := os.Stat(busybox); runc == "" || err != nil {
		t.Skip("needs runc and a static busybox")
	}
	b := &runcBench{runc: runc, dir: t.TempDir()}
	b.rootfs = filepath.Join(b.dir, "rootfs")
	for _, d := range []string{"bin", "etc", "tmp", "proc", "dev", "sys"} {
		if err := os.MkdirAll(filepath.Join(b.rootfs, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	data, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(b.rootfs, "bin/busybox"), data, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("busybox", filepath.Join(b.rootfs, "bin/sh")); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(b.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	b.facts = realFacts(t)
	return b
}

// realFacts converts this machine's facts as the command does.
func realFacts(t *testing.T) Facts {
	t.Helper()
	n, err := facts.Read(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	return Facts{CgroupV2: n.CgroupV2, Seccomp: n.Seccomp, AppArmor: n.AppArmor, SELinux: n.SELinux,
		Capabilities: n.Capabilities, Swap: n.Swap, HugePages: n.Huge, Rlimits: n.Rlimits,
		OOMScoreFloor: n.OOMScoreFloor, RuntimeSpecMax: "1.3.0", Hostname: n.Hostname, RRO: true}
}

// input is a container that runs a shell script; its namespaces are its own.
func (b *runcBench) input(script string) Input {
	b.count++
	in := testInput()
	in.ID = fmt.Sprintf("noded-spec-test-%d-%d", os.Getpid(), b.count)
	in.Paths = Paths{RootFS: b.rootfs}
	in.Cgroup = "/" + in.ID // runc removes no parents
	in.Facts = b.facts
	in.Image.Entrypoint, in.Image.Cmd, in.Image.WorkingDir = []string{"/bin/sh", "-c", script}, nil, ""
	return in
}

// run returns what the container printed.
func (b *runcBench) run(t *testing.T, s *rspec.Spec, id string) string {
	t.Helper()
	bundle := filepath.Join(b.dir, id)
	if err := os.Mkdir(bundle, 0o755); err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(bundle, "config.json"), data, 0o644); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, b.runc, "--root", filepath.Join(b.dir, "state"), "run", "--bundle", bundle, id)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("runc run: %v\n%s%s", err, out.String(), errs.String())
	}
	return out.String()
}

// buildProbe compiles the program of testdata/probe.
func buildProbe(t *testing.T, file string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", file, "./testdata/probe")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
}

// ownNamespaces gives the container namespaces of its own; in noded they are
// pinned beforehand.
func ownNamespaces(s *rspec.Spec) {
	s.Linux.Namespaces = append(s.Linux.Namespaces,
		rspec.LinuxNamespace{Type: rspec.NetworkNamespace}, rspec.LinuxNamespace{Type: rspec.IPCNamespace}, rspec.LinuxNamespace{Type: rspec.UTSNamespace})
}

const showStatus = `busybox id; busybox grep -E "^(Cap|NoNewPrivs|Seccomp:)" /proc/self/status; busybox cat /proc/self/oom_score_adj`

// runcCase is a container's script and what its output has and has not.
type runcCase struct {
	name, script string
	change       func(*testing.T, *Input)
	want, absent []string
}

// TestRealProcess: who a process is in a real container, and what it may do.
func TestRealProcess(t *testing.T) {
	b := newRuncBench(t)
	b.check(t, []runcCase{
		{name: "plain", script: showStatus,
			want: []string{"uid=0 gid=0 groups=0", "CapInh:\t0000000000000000", "CapEff:\t00000000a80425fb", "CapBnd:\t00000000a80425fb", "CapAmb:\t0000000000000000", "NoNewPrivs:\t0", "Seccomp:\t0"}},
		// V48: the primary group is among the groups. V49: no inheritable or
		// effective capabilities for a user that is not root.
		{name: "V48 V49 user", script: showStatus,
			change: func(_ *testing.T, in *Input) {
				in.User = User{UID: 1000, GID: 1001, AdditionalGIDs: []uint32{1001, 2000}}
				in.Container.Linux.SecurityContext.NoNewPrivs = true
				in.Container.Linux.SecurityContext.Seccomp = &cri.SecurityProfile{}
				in.Container.Linux.Resources.OomScoreAdj = 500
			},
			want: []string{"uid=1000 gid=1001 groups=1001,2000", "CapInh:\t0000000000000000", "CapPrm:\t0000000000000000", "CapEff:\t0000000000000000", "CapBnd:\t00000000a80425fb", "NoNewPrivs:\t1", "Seccomp:\t2", "\n500\n"}},
		{name: "drop all", script: showStatus,
			change: func(_ *testing.T, in *Input) {
				in.Container.Linux.SecurityContext.Capabilities = &cri.Capability{DropCapabilities: []string{"ALL"}, AddCapabilities: []string{"KILL"}}
			},
			want: []string{"CapEff:\t0000000000000020", "CapBnd:\t0000000000000020"}},
		{name: "ambient", script: showStatus,
			change: func(_ *testing.T, in *Input) {
				in.User = User{UID: 1000, GID: 1000, AdditionalGIDs: []uint32{1000}}
				in.Container.Linux.SecurityContext.Capabilities = &cri.Capability{AddAmbientCapabilities: []string{"KILL"}}
			},
			want: []string{"CapEff:\t0000000000000020", "CapAmb:\t0000000000000020"}},
		// The score below what this process may set is raised, not an error.
		{name: "oom score", script: showStatus,
			change: func(_ *testing.T, in *Input) { in.Container.Linux.Resources.OomScoreAdj = -998 },
			want:   []string{fmt.Sprintf("\n%d\n", max(-998, b.facts.OOMScoreFloor))}},
		// V51: EPERM is the filter's answer; a kernel without the families says EAFNOSUPPORT.
		{name: "V51 sockets", script: "/bin/probe",
			change: func(t *testing.T, in *Input) {
				buildProbe(t, filepath.Join(b.rootfs, "bin/probe"))
				in.Container.Linux.SecurityContext.Seccomp = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault}
			},
			want: []string{"family 38: operation not permitted", "family 40: operation not permitted", "family 1: ok", "family 2: ok"}},
		{name: "privileged", script: showStatus + `; busybox grep -E " (/sys|/sys/fs/cgroup) " /proc/self/mounts; busybox ls /dev | busybox grep -c .`,
			change: func(t *testing.T, in *Input) {
				makePrivileged(in)
				in.Container.Mounts, in.MountSources = nil, nil
				all, err := hostdev.All()
				if err != nil {
					t.Fatal(err)
				}
				in.Facts.HostDevices = all
			},
			want: []string{"Seccomp:\t0", " /sys sysfs rw", "CapInh:\t0000000000000000"}},
	})
}

// TestRealPlace: what a process sees around it in a real container.
func TestRealPlace(t *testing.T) {
	b := newRuncBench(t)
	b.check(t, []runcCase{
		// V50, and what else must not be seen.
		{name: "V50 masked", script: `for f in keys timer_list interrupts; do busybox test -s /proc/$f && echo "seen $f"; busybox head -c1 /proc/$f | busybox grep -c .; done; busybox ls /sys/firmware; busybox ls /sys/devices/virtual/powercap 2>/dev/null; (echo x >/proc/sys/kernel/domainname) 2>&1; busybox grep -q . /proc/cpuinfo && echo cpuinfo`,
			want: []string{"0\n0\n0\n", "Read-only file system", "cpuinfo"}, absent: []string{"acpi", "rapl", "1\n"}},
		{name: "mounts", script: `busybox cat /proc/self/mounts; echo x >/ro/f; echo y >/rw/f; busybox cat /rw/inner/f`,
			change: func(t *testing.T, in *Input) {
				dir := t.TempDir()
				for _, d := range []string{"inner", "rw", "rw/inner", "ro"} {
					if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
						t.Fatal(err)
					}
				}
				if err := os.WriteFile(filepath.Join(dir, "inner/f"), []byte("inner\n"), 0o644); err != nil {
					t.Fatal(err)
				}
				in.Container.Linux.SecurityContext.ReadonlyRootfs = true
				in.Container.Mounts = []*cri.Mount{
					{ContainerPath: "/rw/inner", HostPath: dir + "/inner", Propagation: cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER},
					{ContainerPath: "/rw", HostPath: dir + "/rw", MountOptions: []string{"noexec"}},
					{ContainerPath: "/ro", HostPath: dir + "/ro", Readonly: true, RecursiveReadOnly: true},
				}
				in.MountSources = []string{dir + "/inner", dir + "/rw", dir + "/ro"}
			},
			want: []string{" /proc proc rw,nosuid,nodev,noexec", " /dev/shm tmpfs rw,nosuid,nodev,noexec", " /sys sysfs ro", " /rw ", "inner\n", "cgroup /sys/fs/cgroup/memory cgroup ro"}},
		{name: "limits", script: `for c in memory cpu cpuset pids; do echo "$c=$(busybox cat /sys/fs/cgroup/$c/memory.limit_in_bytes /sys/fs/cgroup/$c/cpu.shares /sys/fs/cgroup/$c/cpu.cfs_quota_us /sys/fs/cgroup/$c/cpuset.cpus /sys/fs/cgroup/$c/pids.max 2>/dev/null | busybox tr "\n" " ")"; done; ulimit -n`,
			change: func(_ *testing.T, in *Input) {
				in.Container.Linux.Resources = &cri.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, CpuShares: 512, CpuQuota: 50000, CpuPeriod: 100000, CpusetCpus: "0"}
				in.PidsLimit = 77
				in.Rlimits = []rspec.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 1000, Hard: 1 << 40}}
			},
			want: []string{"memory=67108864 ", "cpu=512 50000 ", "cpuset=0 ", "pids=77 ", "\n1000\n"}},
		// V64: a device that is not allowed cannot be opened, even with CAP_MKNOD.
		{name: "V64 devices", script: `busybox mknod /tmp/mem c 1 1; busybox mknod /tmp/sda b 8 0; for d in mem sda; do busybox head -c1 /tmp/$d 2>&1; done; busybox head -c1 /dev/null && echo null; busybox ls /dev`,
			change: func(t *testing.T, in *Input) {
				found, err := hostdev.Resolve("/dev/fuse", "/dev/fuse")
				if err != nil {
					t.Skip(err)
				}
				in.Container.Devices = []*cri.Device{{ContainerPath: "/dev/fuse", HostPath: "/dev/fuse", Permissions: "rw"}}
				in.Devices = [][]rspec.LinuxDevice{found}
			},
			want: []string{"/tmp/mem: Operation not permitted", "/tmp/sda: Operation not permitted", "null", "fuse"}},
	})
}

func (b *runcBench) check(t *testing.T, cases []runcCase) {
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			in := b.input(c.script)
			if c.change != nil {
				c.change(t, &in)
			}
			s := mustContainer(t, in)
			ownNamespaces(s)
			out := b.run(t, s, in.ID)
			for _, w := range c.want {
				if !strings.Contains(out, w) {
					t.Errorf("no %q in\n%s", w, out)
				}
			}
			for _, a := range c.absent {
				if strings.Contains(out, a) {
					t.Errorf("%q in\n%s", a, out)
				}
			}
		})
	}
}

// TestRealInit: the init of a shared PID namespace can do nothing but reap, and
// its root has nothing but the binary.
func TestRealInit(t *testing.T) {
	b := newRuncBench(t)
	in := b.input("")
	in.Paths.Self = filepath.Join(b.dir, "probe")
	buildProbe(t, in.Paths.Self)
	in.Paths.RootFS = filepath.Join(b.dir, "empty")
	if err := os.Mkdir(in.Paths.RootFS, 0o755); err != nil {
		t.Fatal(err)
	}
	s, err := Init(in)
	if err != nil {
		t.Fatal(err)
	}
	ownNamespaces(s)
	out := b.run(t, s, in.ID)
	for _, w := range []string{
		"pid 1 uid 65535 gid 65535", "CapPrm:\t0000000000000000", "CapEff:\t0000000000000000", "CapBnd:\t0000000000000000",
		"NoNewPrivs:\t1", "Seccomp:\t2", "root has dev\nroot has noded\nroot has proc\nwrite root",
		"write root: open /x: ", "write binary: open /noded: ",
	} {
		if !strings.Contains(out, w) {
			t.Errorf("no %q in\n%s", w, out)
		}
	}
}
