package nsexec

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	rspec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// self is what an exec must not change of the process that makes it.
func self(t testing.TB) map[string]string {
	t.Helper()
	m := map[string]string{}
	for _, ns := range []string{"cgroup", "ipc", "mnt", "net", "pid", "pid_for_children", "uts", "user"} {
		m["ns/"+ns] = readLink(t, "/proc/self/ns/"+ns)
	}
	m["cwd"], m["root"] = readLink(t, "/proc/self/cwd"), readLink(t, "/proc/self/root")
	for _, f := range []string{"cgroup", "oom_score_adj", "limits"} {
		m[f] = readFile(t, "/proc/self/"+f)
	}
	for _, l := range lines(readFile(t, "/proc/self/status")) {
		name, value, _ := strings.Cut(l, ":")
		if slices.Contains([]string{"Umask", "Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "SigBlk"}, name) {
			m[name] = value
		}
	}
	return m
}

// threads gives namespaces and cgroups of all threads, each combination once.
func threads(t testing.TB) (kinds []string, count int) {
	t.Helper()
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		dir := "/proc/self/task/" + task.Name()
		mnt, err1 := os.Readlink(dir + "/ns/mnt")
		pid, err2 := os.Readlink(dir + "/ns/pid_for_children")
		cg, err3 := os.ReadFile(dir + "/cgroup")
		if errors.Join(err1, err2, err3) != nil {
			continue // it has just ended
		}
		count++
		kinds = append(kinds, mnt+pid+string(cg))
	}
	slices.Sort(kinds)
	return slices.Compact(kinds), count
}

func readLink(t testing.TB, name string) string {
	t.Helper()
	l, err := os.Readlink(name)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func readFile(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func descriptors(t testing.TB) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

func residentKiB(t testing.TB) (n int) {
	t.Helper()
	for _, l := range lines(readFile(t, "/proc/self/status")) {
		if v, ok := strings.CutPrefix(l, "RssAnon:"); ok {
			fmt.Sscan(v, &n)
		}
	}
	return n
}

// TestThousandExecs runs in a process of its own, so that its figures are not
// those of other tests.
func TestThousandExecs(t *testing.T) {
	if os.Getenv("NSEXEC_THOUSAND") == "" {
		runcPath(t)
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestThousandExecs$", "-test.v")
		cmd.Env = append(os.Environ(), "NSEXEC_THOUSAND=1")
		out, err := cmd.CombinedOutput()
		t.Logf("%s", out)
		if err != nil {
			t.Error(err)
		}
		return
	}
	c := start(t, defaultSeccomp(t))
	run := func(n, parallel int) {
		var group sync.WaitGroup
		for range parallel {
			group.Go(func() {
				for range n / parallel {
					proc, err := Start(c.request(c.process("true")))
					if err != nil {
						t.Error(err)
						return
					}
					proc.Pidfd.Close()
					if code := wait(t, proc.Pid); code != 0 {
						t.Error("code", code)
					}
				}
			})
		}
		group.Wait()
	}
	run(100, 8) // the Go runtime's own threads and heap
	before, fds, rss := self(t), descriptors(t), residentKiB(t)
	_, count := threads(t)
	begin := time.Now()
	run(1000, 8)
	t.Logf("%v per exec", time.Since(begin)/1000)
	after := self(t)
	for k, v := range before {
		if after[k] != v {
			t.Errorf("%s was %q, is %q", k, v, after[k])
		}
	}
	runtime.GC()
	// Threads that have left end on their own; the kernel does not tell.
	var kinds []string
	var now int
	for range 100 {
		if kinds, now = threads(t); len(kinds) == 1 && now <= count+2 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if len(kinds) != 1 || now > count+2 {
		t.Errorf("%d threads before, %d after, of kinds %v", count, now, kinds)
	}
	if n := descriptors(t); n != fds {
		t.Errorf("%d descriptors before, %d after", fds, n)
	}
	if n := residentKiB(t); n > rss+8<<10 {
		t.Errorf("%d KiB resident before, %d after", rss, n)
	}
	noZombies(t)
}

// TestMainThread keeps the main thread busy with nothing, so that a goroutine
// may be scheduled on it.
func TestMainThread(t *testing.T) {
	c := start(t, nil)
	for range 50 {
		c.mustHere(c.process("true"))
	}
	if mnt := readLink(t, fmt.Sprintf("/proc/%d/task/%d/ns/mnt", os.Getpid(), os.Getpid())); mnt != readLink(t, "/proc/thread-self/ns/mnt") {
		t.Error("the main thread has gone into a container")
	}
}

// TestBelowDelegatedCgroup moves the container's first process below its own
// cgroup, as an init system in a container does before it gives controllers to
// the cgroups below; that cgroup can then hold no process, and the next best
// one is that of the first process.
func TestBelowDelegatedCgroup(t *testing.T) {
	c := start(t, func(s *rspec.Spec) { s.Linux.Namespaces = withoutCgroupNamespace(s) })
	own := c.host.Unified(c.cgroup)
	if own == "" {
		t.Skip("no v2 tree here")
	}
	inner := filepath.Join(own, "inner")
	if err := os.Mkdir(inner, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(inner+"/cgroup.procs", []byte(fmt.Sprint(c.pid)), 0); err != nil {
		t.Fatal(err)
	}
	if got := c.host.UnifiedOf(c.cgroup, c.pid); !slices.Equal(got, []string{own, inner}) {
		t.Errorf("folders %v", got)
	}
	controllers := strings.Fields(readFile(t, own+"/cgroup.controllers"))
	want := "0::/" + c.cgroup + "\n"
	if len(controllers) > 0 {
		if err := os.WriteFile(own+"/cgroup.subtree_control", []byte("+"+controllers[0]), 0); err != nil {
			t.Fatal(err)
		}
		want = "0::/" + c.cgroup + "/inner\n"
	}
	if out := c.mustHere(c.process("cat", "/proc/self/cgroup")); !strings.Contains(out, want) {
		t.Errorf("cgroups %s, want %s", out, want)
	}
}

// TestHiddenUntilExec lets a process inside of the container race for a look at
// a new process before its exec, when it is still the binary of the host.
func TestHiddenUntilExec(t *testing.T) {
	c := start(t, func(s *rspec.Spec) { s.Process.NoNewPrivileges = true })
	look := `n=0; while [ $n -lt 3000 ]; do n=$((n+1)); for p in /proc/[0-9]*; do
		[ $p = /proc/1 ] && continue
		e=$(readlink $p/exe 2>/dev/null); case "$e" in ""|/bin/busybox) ;; *) echo "$p $e"; exit 3;; esac
	done; done`
	r := c.request(c.process("sh", "-c", look))
	log, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	r.Stdout = log
	watcher, err := Start(r)
	if err != nil {
		t.Fatal(err)
	}
	defer watcher.Pidfd.Close()
	for begin := time.Now(); time.Since(begin) < time.Second; {
		c.mustHere(c.process("true"))
	}
	unix.PidfdSendSignal(int(watcher.Pidfd.Fd()), unix.SIGKILL, nil, 0)
	wait(t, watcher.Pid)
	if out := readFile(t, log.Name()); out != "" {
		t.Errorf("a process before its exec was seen as %s", out)
	}
}

// TestOwnProgramIsReadOnly executes the link to the program that the child was
// forked from, which then runs in the container, and tries to change its file.
func TestOwnProgramIsReadOnly(t *testing.T) {
	c := start(t, func(s *rspec.Spec) { privileged(s) })
	for _, program := range []string{"/proc/self/exe", "/bin/script"} {
		script := filepath.Join(c.dir, "rootfs/bin/script")
		if err := os.WriteFile(script, []byte("#!/proc/self/exe\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		p := c.process(program)
		p.Env = append(p.Env, "NSEXEC_SLEEP=1")
		proc, err := Start(c.request(p))
		if errors.Is(err, unix.ENOENT) {
			t.Skip("this test program needs a dynamic linker, which the container lacks")
		}
		if err != nil {
			t.Fatal(err)
		}
		inner := ""
		for _, l := range lines(readFile(t, fmt.Sprintf("/proc/%d/status", proc.Pid))) {
			if f := strings.Fields(l); f[0] == "NSpid:" {
				inner = f[len(f)-1]
			}
		}
		r, err := c.here(c.process("chmod", "700", "/proc/"+inner+"/exe"))
		if err != nil || r.code == 0 || !strings.Contains(r.out, "Read-only") {
			t.Errorf("%s: the file of the program can be changed: %d %s %v", program, r.code, r.out, err)
		}
		unix.PidfdSendSignal(int(proc.Pidfd.Fd()), unix.SIGKILL, nil, 0)
		wait(t, proc.Pid)
		proc.Pidfd.Close()
	}
}

func BenchmarkExec(b *testing.B) {
	c := start(b, defaultSeccomp(b))
	req := c.request(c.process("true"))
	var err error
	if req.Filter, err = Compile(c.spec.Linux.Seccomp); err != nil {
		b.Fatal(err)
	}
	b.Run("nsexec", func(b *testing.B) {
		begin := cpuTime(b)
		for b.Loop() {
			proc, err := Start(req)
			if err != nil {
				b.Fatal(err)
			}
			proc.Pidfd.Close()
			wait(b, proc.Pid)
		}
		b.ReportMetric(float64(cpuTime(b)-begin)/float64(b.N)/1e6, "cpu-ms/op")
	})
	b.Run("runc", func(b *testing.B) {
		begin := cpuTime(b)
		for b.Loop() {
			c.there(req.Process)
		}
		b.ReportMetric(float64(cpuTime(b)-begin)/float64(b.N)/1e6, "cpu-ms/op")
	})
}

// cpuTime is what this process and its children have used.
func cpuTime(b *testing.B) (sum time.Duration) {
	b.Helper()
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var u unix.Rusage
		if err := unix.Getrusage(who, &u); err != nil {
			b.Fatal(err)
		}
		sum += time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	return sum
}
