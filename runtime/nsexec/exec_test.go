package nsexec

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	rspec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"noded.dev/noded/internal/kind"
)

func TestErrorsMatchRuntime(t *testing.T) {
	c := start(t, nil)
	write := func(name, content string, mode os.FileMode) {
		if err := os.WriteFile(filepath.Join(c.dir, "rootfs", name), []byte(content), mode); err != nil {
			t.Fatal(err)
		}
	}
	write("bin/notexec", "x", 0o644)
	write("bin/noformat", "x", 0o755)
	write("bin/nointerp", "#!/nonesuch\n", 0o755)
	for _, e := range []struct {
		name  string
		args  []string
		cwd   string
		errno error
	}{
		{"not in PATH", []string{"nonesuch"}, "/", unix.ENOENT},
		{"no such path", []string{"/nonesuch"}, "/", unix.ENOENT},
		{"not executable", []string{"/bin/notexec"}, "/", unix.EACCES},
		{"not executable in PATH", []string{"notexec"}, "/", unix.EACCES},
		{"no format", []string{"noformat"}, "/", unix.ENOEXEC},
		{"no interpreter", []string{"nointerp"}, "/", unix.ENOENT},
		{"a folder", []string{"/bin"}, "/", unix.EACCES},
		{"no working directory", []string{"true"}, "/nonesuch", unix.ENOENT},
		{"working directory is a file", []string{"true"}, "/bin/busybox", unix.ENOTDIR},
	} {
		p := c.process(e.args...)
		p.Cwd = e.cwd
		_, err := c.here(p)
		var step *Error
		if !errors.Is(err, e.errno) || !errors.As(err, &step) {
			t.Errorf("%s: %v, want %v", e.name, err, e.errno)
		}
		if there := c.there(p); there.code == 0 {
			t.Errorf("%s: the runtime runs it", e.name)
		}
	}
	p := c.process("sh", "-c", "exit 42")
	if r, err := c.here(p); err != nil || r.code != 42 {
		t.Errorf("code %d, %v", r.code, err)
	}
	p = c.process("sh", "-c", "kill -9 $$")
	if r, err := c.here(p); err != nil || r.code != 137 {
		t.Errorf("code %d, %v", r.code, err)
	}
	noZombies(t)
}

// noZombies checks that failed starts leave no child.
func noZombies(t *testing.T) {
	t.Helper()
	if pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); err != unix.ECHILD {
		t.Errorf("child left: %d, %v", pid, err)
	}
}

func TestRefusals(t *testing.T) {
	c := start(t, nil)
	bad := uint(1)
	for name, e := range map[string]struct {
		change func(*Request)
		ok     func(error) bool
	}{
		"no command":      {func(r *Request) { r.Process.Args = nil }, isKind(kind.Invalid)},
		"empty command":   {func(r *Request) { r.Process.Args = []string{""} }, isKind(kind.Invalid)},
		"relative cwd":    {func(r *Request) { r.Process.Cwd = "tmp" }, isKind(kind.Invalid)},
		"NUL":             {func(r *Request) { r.Process.Args = []string{"a\x00b"} }, isKind(kind.Invalid)},
		"variable":        {func(r *Request) { r.Process.Env = []string{"X"} }, isKind(kind.Invalid)},
		"NUL in variable": {func(r *Request) { r.Process.Env = []string{"X=\x00"} }, isKind(kind.Invalid)},
		"limit":           {func(r *Request) { r.Process.Rlimits = []rspec.POSIXRlimit{{Type: "RLIMIT_X"}} }, isKind(kind.Invalid)},
		"cgroup is gone":  {func(r *Request) { r.Cgroup = "nonesuch" }, isKind(kind.Precondition)},
		"scheduler":       {func(r *Request) { r.Process.Scheduler = &rspec.Scheduler{} }, isUnsupported},
		"AppArmor":        {func(r *Request) { r.Process.ApparmorProfile = "x" }, isUnsupported},
		"personality":     {func(r *Request) { r.Linux = &rspec.Linux{Personality: &rspec.LinuxPersonality{}} }, isUnsupported},
		"seccomp notify":  {func(r *Request) { r.Linux = &rspec.Linux{Seccomp: &rspec.LinuxSeccomp{DefaultAction: rspec.ActNotify}} }, isUnsupported},
		"seccomp is invalid": {func(r *Request) {
			r.Linux = &rspec.Linux{Seccomp: &rspec.LinuxSeccomp{DefaultAction: "x", DefaultErrnoRet: &bad}}
		}, isKind(kind.Invalid)},
	} {
		r := c.request(c.process("true"))
		e.change(&r)
		if _, err := Start(r); !e.ok(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	noZombies(t)
}

func isKind(k kind.Kind) func(error) bool { return func(err error) bool { return kind.Is(err, k) } }

func isUnsupported(err error) bool { return errors.Is(err, ErrUnsupported) }

func TestUserNamespaceMadeByRuntime(t *testing.T) {
	c := start(t, func(s *rspec.Spec) {
		s.Linux.Namespaces = append(s.Linux.Namespaces, rspec.LinuxNamespace{Type: rspec.UserNamespace})
		s.Linux.UIDMappings = []rspec.LinuxIDMapping{{ContainerID: 0, HostID: 0, Size: 65536}}
		s.Linux.GIDMappings = s.Linux.UIDMappings
	})
	r := c.request(c.process("true"))
	for _, l := range []*rspec.Linux{r.Linux, nil} { // it must be seen by the namespace itself
		r.Linux = l
		if _, err := Start(r); !isUnsupported(err) {
			t.Errorf("%v, want ErrUnsupported", err)
		}
	}
}

func TestContainerEnded(t *testing.T) {
	c := start(t, nil)
	unix.Kill(c.pid, unix.SIGKILL)
	fds := []unix.PollFd{{Fd: int32(c.pidfd), Events: unix.POLLIN}}
	if n, err := unix.Poll(fds, 5000); n != 1 {
		t.Fatal("container does not end:", err)
	}
	if _, err := c.here(c.process("true")); !kind.Is(err, kind.Precondition) {
		t.Errorf("%v, want kind Precondition", err)
	}
}

func TestPausedContainer(t *testing.T) {
	c := start(t, nil)
	runc := func(command string) {
		if out, err := exec.Command(runcPath(t), "--root", c.dir+"/state", command, c.id).CombinedOutput(); err != nil {
			t.Fatalf("runc %s: %v: %s", command, err, out)
		}
	}
	runc("pause")
	_, err := c.here(c.process("true"))
	runc("resume")
	if !kind.Is(err, kind.Precondition) {
		t.Errorf("%v, want kind Precondition", err)
	}
}

// TestOnlyStandardStreams opens descriptors that lead to the host, without
// close-on-exec, and looks for them from inside.
func TestOnlyStandardStreams(t *testing.T) {
	c := start(t, nil)
	var leaks []int
	for range 40 {
		fd, err := unix.Open("/", unix.O_RDONLY|unix.O_DIRECTORY, 0) // on purpose without O_CLOEXEC
		if err != nil {
			t.Fatal(err)
		}
		leaks = append(leaks, fd)
	}
	defer func() {
		for _, fd := range leaks {
			unix.Close(fd)
		}
	}()
	look := `i=0; while [ $i -lt 100 ]; do [ -L /proc/$$/fd/$i ] && echo $i; i=$((i+1)); done; true`
	if out := c.mustHere(c.process("sh", "-c", look)); out != "0\n1\n2\n" {
		t.Errorf("descriptors: %q", out)
	}
	for fd := 3; fd < leaks[len(leaks)-1]+5; fd++ {
		p := c.process("cat", "etc/hostname")
		p.Cwd = "/proc/self/fd/" + strconv.Itoa(fd)
		if r, err := c.here(p); err == nil {
			t.Errorf("working directory %s is taken: %s", p.Cwd, r.out)
		}
	}
	// The first process's working directory is inside: it is its own matter.
	p := c.process("pwd")
	p.Cwd = "/proc/1/cwd"
	if out := c.mustHere(p); out != "/\n" {
		t.Errorf("working directory %q", out)
	}
}

// TestUnreachableDirectory lets the container's first process hold a folder of
// the host, whose link the kernel follows out of the root.
func TestUnreachableDirectory(t *testing.T) {
	c := start(t, func(s *rspec.Spec) {
		s.Process.Capabilities.Bounding = append(s.Process.Capabilities.Bounding, "CAP_SYS_PTRACE")
		s.Process.Capabilities.Permitted = s.Process.Capabilities.Bounding
		s.Process.Capabilities.Effective = s.Process.Capabilities.Bounding
		s.Linux.Namespaces = s.Linux.Namespaces[1:] // the host's pid namespace
	})
	p := c.process("pwd")
	p.Cwd = "/proc/" + strconv.Itoa(os.Getpid()) + "/cwd"
	if r, err := c.here(p); !errors.Is(err, unix.ENOENT) {
		t.Errorf("working directory of the host: %v, %s", err, r.out)
	}
}

func TestNilStreams(t *testing.T) {
	c := start(t, nil)
	proc, err := Start(c.request(c.process("sh", "-c", "cat && echo out && echo err >&2 && test /dev/null -ef /proc/self/fd/0 || true")))
	if err != nil {
		t.Fatal(err)
	}
	defer proc.Pidfd.Close()
	if code := wait(t, proc.Pid); code != 0 {
		t.Error("code", code)
	}
}

func TestStdin(t *testing.T) {
	c := start(t, nil)
	in, send, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	receive, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p := c.process("sh", "-c", "cat; echo done > /proc/self/fd/2")
	p.User.UID = 1000
	r := c.request(p)
	r.Stdin, r.Stdout, r.Stderr = in, out, out
	proc, err := Start(r)
	if err != nil {
		t.Fatal(err)
	}
	in.Close()
	out.Close()
	io.WriteString(send, "hello\n")
	send.Close()
	b, _ := io.ReadAll(receive)
	if string(b) != "hello\ndone\n" {
		t.Errorf("%q: the user must be able to open its own streams", b)
	}
	wait(t, proc.Pid)
	proc.Pidfd.Close()
}

func TestTerminal(t *testing.T) {
	c := start(t, nil)
	p := c.process("sh", "-c", "tty; stty size; stat -c %u /dev/pts/0; echo in > /dev/tty; read x; echo got $x")
	p.User.UID = 1000
	p.ConsoleSize = &rspec.Box{Height: 33, Width: 77}
	r := c.request(p)
	r.Terminal = true
	proc, err := Start(r)
	if err != nil {
		t.Fatal(err)
	}
	defer proc.Pidfd.Close()
	defer proc.Console.Close()
	io.WriteString(proc.Console, "text\n")
	proc.Console.SetReadDeadline(time.Now().Add(5 * time.Second))
	b, err := io.ReadAll(proc.Console)
	if !errors.Is(err, unix.EIO) { // the end of a terminal
		t.Error(err)
	}
	out := strings.ReplaceAll(string(b), "\r", "")
	for _, want := range []string{"/dev/pts/0\n", "33 77\n", "1000\n", "in\n", "got text\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q lacks %q", out, want)
		}
	}
	if code := wait(t, proc.Pid); code != 0 {
		t.Error("code", code)
	}
}

// TestSignalsAreReset ignores signals here, which an exec would keep.
func TestSignalsAreReset(t *testing.T) {
	c := start(t, nil)
	signal.Ignore(unix.SIGUSR1, unix.SIGHUP)
	defer signal.Reset(unix.SIGUSR1, unix.SIGHUP)
	out := c.mustHere(c.process("cat", "/proc/self/status"))
	for _, line := range lines(out) {
		if set, ok := strings.CutPrefix(line, "SigIgn:"); ok && strings.Trim(set, "\t0") != "" {
			t.Error(line)
		}
	}
}

// TestKilledWhileStarting kills a container while execs are under way. None may
// be left in the cgroup, as a process or as a zombie here.
func TestKilledWhileStarting(t *testing.T) {
	c := start(t, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			for {
				proc, err := Start(c.request(c.process("sleep", "1000")))
				if err != nil {
					if !kind.Is(err, kind.Precondition) && !errors.As(err, new(*Error)) {
						t.Error(err)
					}
					return
				}
				proc.Pidfd.Close()
				group.Go(func() { wait(t, proc.Pid) })
			}
		})
	}
	time.Sleep(100 * time.Millisecond) // some execs are under way
	if err := c.host.Kill(ctx, c.cgroup); err != nil {
		t.Error(err)
	}
	group.Wait()
	if pids, err := c.host.Pids(c.cgroup); err != nil || len(pids) > 0 {
		t.Errorf("left in the cgroup: %v, %v", pids, err)
	}
	noZombies(t)
}

// TestProgramThatDoesNotStart plays a child that is stuck before its exec, as
// on a file server that does not answer.
func TestProgramThatDoesNotStart(t *testing.T) {
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pidfd, err := unix.PidfdOpen(cmd.Process.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	p := &plan{script: newScript()}
	if err := p.openReport(); err != nil {
		t.Fatal(err)
	}
	defer p.close()
	held, err := unix.Dup(p.reportOut) // the child's
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(held)
	_, err = await(p, &child{pid: cmd.Process.Pid, pidfd: pidfd, master: -1}, 20*time.Millisecond)
	if !kind.Is(err, kind.Deadline) {
		t.Errorf("%v, want kind Deadline", err)
	}
	if cmd.Wait(); cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != unix.SIGKILL {
		t.Error(cmd.ProcessState)
	}
}
