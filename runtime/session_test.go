package runtime

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	rspec "github.com/opencontainers/runtime-spec/specs-go"

	"noded.dev/noded/internal/kind"
)

// buffer is a bytes.Buffer for several goroutines.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// attach runs Attach in the background.
func (n *node) attach(ctx context.Context, id string, o IO) <-chan error {
	done := make(chan error, 1)
	go func() { done <- n.Attach(ctx, id, o) }()
	return done
}

func ends(t testing.TB, what string, done <-chan error) error {
	t.Helper()
	select {
	case err := <-done:
		return err
	case <-time.After(10 * time.Second):
		t.Fatalf("%s does not end", what)
		return nil
	}
}

func withStdin(once bool) func(*rspec.Spec, *CreateRequest) {
	return func(_ *rspec.Spec, r *CreateRequest) { r.Stdin, r.StdinOnce = true, once }
}

func TestAttachUntilExit(t *testing.T) {
	n := newNode(t)
	req := n.container(withStdin(false), "sh", "-c", "echo ready; read a; echo got $a; echo bad >&2; exit 3")
	n.run(req)
	var out, errs buffer
	in, w := io.Pipe()
	done := n.attach(n.ctx, req.ID, IO{Stdin: in, Stdout: &out, Stderr: &errs})
	io.WriteString(w, "word\n")
	if err := ends(t, "attach", done); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if !strings.HasSuffix(out.String(), "got word\n") || errs.String() != "bad\n" {
		t.Errorf("out %q, errors %q", out.String(), errs.String())
	}
	if e := n.exit(req.ID); e.Code != 3 {
		t.Errorf("exit %+v", e)
	}
	if err := n.Attach(n.ctx, req.ID, IO{Stdout: &out}); !kind.Is(err, kind.Precondition) {
		t.Errorf("attach after the end: %v", err)
	}
	if got := text(readLog(t, req.LogPath), "stdout"); got != "ready\ngot word\n" {
		t.Errorf("log %q", got)
	}
}

// The end of the client's input reaches a StdinOnce container and no other.
func TestStdinOnce(t *testing.T) {
	n := newNode(t)
	once := n.container(withStdin(true), "sh", "-c", "cat; echo end")
	n.run(once)
	var out buffer
	if err := ends(t, "attach", n.attach(n.ctx, once.ID, IO{Stdin: strings.NewReader("text\n"), Stdout: &out})); err != nil {
		t.Fatal(err)
	}
	if out.String() != "text\nend\n" {
		t.Errorf("out %q", out.String())
	}
	if e := n.exit(once.ID); e.Code != 0 {
		t.Errorf("exit %+v", e)
	}

	open := n.container(withStdin(false), "sh", "-c", "read a; echo 1 $a; read b; echo 2 $b")
	p := n.run(open)
	ctx, cancel := context.WithCancel(n.ctx)
	var first buffer
	done := n.attach(ctx, open.ID, IO{Stdin: strings.NewReader("x\n"), Stdout: &first})
	eventually(t, "first line", func() bool { return first.String() == "1 x\n" })
	cancel()
	if err := ends(t, "attach", done); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled attach: %v", err)
	}
	if !alive(p) {
		t.Fatal("the container ended with the first attach")
	}
	if err := ends(t, "attach", n.attach(n.ctx, open.ID, IO{Stdin: strings.NewReader("y\n"), Stdout: &first})); err != nil {
		t.Error(err)
	}
	if first.String() != "1 x\n2 y\n" {
		t.Errorf("out %q", first.String())
	}
}

// A container's stdin does not end with noded.
func TestStdinSurvives(t *testing.T) {
	n := newNode(t)
	for _, once := range []bool{false, true} {
		req := n.container(withStdin(once), "sh", "-c", "read a; echo $a")
		p := n.run(req)
		n.killShim()
		n.shimPid() // waits for the next
		if !alive(p) {
			t.Fatalf("once %v: stdin ended with the shim", once)
		}
		var out buffer
		if err := ends(t, "attach", n.attach(n.ctx, req.ID, IO{Stdin: strings.NewReader("z\n"), Stdout: &out})); err != nil || out.String() != "z\n" {
			t.Errorf("once %v: %v, out %q", once, err, out.String())
		}
	}
}

func withTerminal(s *rspec.Spec, r *CreateRequest) {
	s.Process.Terminal, r.Terminal, r.Stdin = true, true, true
}

func TestTerminal(t *testing.T) {
	n := newNode(t)
	req := n.container(withTerminal, "sh", "-c", "read a; stty size; read b; echo last $b; exit 4")
	n.run(req)
	var out buffer
	in, w := io.Pipe()
	sizes := make(chan Size, 1)
	done := n.attach(n.ctx, req.ID, IO{Stdin: in, Stdout: &out, Terminal: true, Resize: sizes})
	sizes <- Size{Width: 123, Height: 45}
	time.Sleep(200 * time.Millisecond) // the resize has no answer
	io.WriteString(w, "go\n")
	eventually(t, "size", func() bool { return strings.Contains(out.String(), "45 123\r\n") })
	n.killShim() // the terminal outlives the shim
	if err := ends(t, "attach", done); !kind.Is(err, kind.Unavailable) {
		t.Errorf("attach over the shim's death: %v", err)
	}
	done = n.attach(n.ctx, req.ID, IO{Stdin: strings.NewReader("bye\n"), Stdout: &out, Terminal: true})
	if err := ends(t, "attach", done); err != nil {
		t.Error(err)
	}
	w.Close()
	if e := n.exit(req.ID); e.Code != 4 {
		t.Errorf("exit %+v", e)
	}
	if got := text(readLog(t, req.LogPath), "stdout"); !strings.Contains(got, "45 123\r\n") || !strings.HasSuffix(got, "last bye\r\n") {
		t.Errorf("log %q", got)
	}
}

// An attached client, an exec and a terminal do not notice an upgrade.
func TestSessionsSurviveUpgrade(t *testing.T) {
	n := newNode(t)
	req := n.container(withStdin(true), "cat")
	n.run(req)
	var out, execOut buffer
	in, w := io.Pipe()
	attached := n.attach(n.ctx, req.ID, IO{Stdin: in, Stdout: &out})
	type result struct {
		code int
		err  error
	}
	execIn, execW := io.Pipe()
	exec := make(chan result, 1)
	go func() {
		code, err := n.Exec(n.ctx, ExecRequest{ID: req.ID, Args: []string{"sh", "-c", "read x; echo $x; exit 9"}, IO: IO{Stdin: execIn, Stdout: &execOut}})
		exec <- result{code, err}
	}()
	io.WriteString(w, "before\n")
	eventually(t, "first line", func() bool { return out.String() == "before\n" })
	for range 3 {
		if err := n.UpgradeShim(n.ctx); err != nil {
			t.Fatal(err)
		}
	}
	io.WriteString(w, "after\n")
	eventually(t, "second line", func() bool { return out.String() == "before\nafter\n" })
	io.WriteString(execW, "word\n")
	if r := <-exec; r.err != nil || r.code != 9 || execOut.String() != "word\n" {
		t.Errorf("exec: %+v, out %q", r, execOut.String())
	}
	w.Close()
	if err := ends(t, "attach", attached); err != nil {
		t.Error(err)
	}
	execW.Close()
}

// A client that does not read is cut off; the container runs on.
func TestSlowClient(t *testing.T) {
	n := newNode(t)
	req := n.shell("read a < /dev/null; head -c 30000000 /dev/zero | cat; sleep 0.2; echo done; exit 0")
	if _, err := n.Create(n.ctx, req); err != nil {
		t.Fatal(err)
	}
	block := make(chan struct{})
	done := n.attach(n.ctx, req.ID, IO{Stdout: blockedWriter(block)})
	eventually(t, "session", func() bool { return n.tapped(req.ID) })
	if err := n.Start(n.ctx, req.ID); err != nil {
		t.Fatal(err)
	}
	if e := n.exit(req.ID); e.Code != 0 {
		t.Errorf("exit %+v", e)
	}
	close(block)
	if err := ends(t, "attach", done); !kind.Is(err, kind.Exhausted) {
		t.Errorf("slow client: %v", err)
	}
}

type blockedWriter chan struct{}

func (b blockedWriter) Write(p []byte) (int, error) { <-b; return len(p), nil }

// tapped reports whether the shim holds a pipe for a client of the container.
func (n *node) tapped(string) bool {
	pipes := 0
	for _, l := range links(n.shimPid()) {
		if strings.HasPrefix(l, "pipe:") {
			pipes++
		}
	}
	return pipes > 0
}

func links(pid int) []string {
	dir := filepath.Join("/proc", strconv.Itoa(pid), "fd")
	entries, _ := os.ReadDir(dir)
	var list []string
	for _, e := range entries {
		if l, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil {
			list = append(list, l)
		}
	}
	return list
}

func TestExecTerminal(t *testing.T) {
	n := newNode(t)
	req := n.shell("sleep 1000")
	n.run(req)
	var out buffer
	sizes := make(chan Size, 1)
	sizes <- Size{Width: 77, Height: 33}
	in, w := io.Pipe()
	go func() { time.Sleep(300 * time.Millisecond); io.WriteString(w, "x\n") }()
	code, err := n.Exec(n.ctx, ExecRequest{ID: req.ID, Args: []string{"sh", "-c", "read x; stty size; exit 2"},
		IO: IO{Stdin: in, Stdout: &out, Terminal: true, Resize: sizes}})
	w.Close()
	if err != nil || code != 2 || !strings.Contains(out.String(), "33 77\r\n") {
		t.Errorf("code %d, error %v, out %q", code, err, out.String())
	}
	code, err = n.Exec(n.ctx, ExecRequest{ID: req.ID, Args: []string{"nothere"}, IO: IO{Stdout: &out, Terminal: true}})
	if err != nil || code != 127 {
		t.Errorf("missing command: %d, %v", code, err)
	}
}

// At its deadline an exec and all that it started are killed.
func TestExecTimeout(t *testing.T) {
	n := newNode(t)
	req := n.shell("sleep 1000")
	n.run(req)
	for _, script := range []string{
		"sleep 77001",
		"sleep 77002 & sleep 77003 & wait",
		"(sleep 77004 & sleep 77005) & (sh -c 'sleep 77006; echo') & wait",
		"(trap '' TERM HUP INT; sleep 77007) & sleep 77008",
		"setsid sleep 77009 & wait",
	} {
		ctx, cancel := context.WithTimeout(n.ctx, 300*time.Millisecond)
		began := time.Now()
		var out buffer
		_, err := n.Exec(ctx, ExecRequest{ID: req.ID, Args: []string{"sh", "-c", script}, IO: IO{Stdout: &out, Stderr: &out}})
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(began) > 600*time.Millisecond && !raceEnabled {
			t.Errorf("%q: %v after %v", script, err, time.Since(began))
		}
		eventually(t, "killed tree of "+script, func() bool { return !running("sleep\x007700") })
	}
}

// Who is told that an exec was killed may look for it at once (the public
// validation suite does): by then it is collected too.
func TestExecTimeoutGone(t *testing.T) {
	n := newNode(t)
	req := n.shell("sleep 1000")
	n.run(req)
	before := children(t, n.shimPid())
	for range 50 {
		ctx, cancel := context.WithTimeout(n.ctx, 30*time.Millisecond)
		_, err := n.Exec(ctx, ExecRequest{ID: req.ID, Args: []string{"sleep", "1000"}})
		cancel()
		if after := children(t, n.shimPid()); !errors.Is(err, context.DeadlineExceeded) || after != before {
			t.Fatalf("%v; children of the shim %q, before %q", err, after, before)
		}
	}
}

// children lists a process's children, those that have ended and are not
// collected among them.
func children(t *testing.T, pid int) string {
	t.Helper()
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	var list []string
	for _, file := range threads {
		data, err := os.ReadFile(file)
		if err != nil {
			continue // the thread has ended
		}
		list = append(list, strings.Fields(string(data))...)
	}
	slices.Sort(list)
	return strings.Join(list, " ")
}

// running looks for a process by its command line.
func running(command string) bool {
	dirs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, d := range dirs {
		if data, err := os.ReadFile(d); err == nil && strings.Contains(string(data), command) {
			return true
		}
	}
	return false
}

// A child in the background does not hold an exec up.
func TestExecLeftover(t *testing.T) {
	n := newNode(t)
	req := n.shell("sleep 1000")
	n.run(req)
	began := time.Now()
	var out buffer
	code, err := n.Exec(n.ctx, ExecRequest{ID: req.ID, Args: []string{"sh", "-c", "sleep 300 & echo x; exit 6"}, IO: IO{Stdout: &out}})
	if err != nil || code != 6 || out.String() != "x\n" || time.Since(began) > 2*time.Second {
		t.Errorf("code %d, error %v, out %q, %v", code, err, out.String(), time.Since(began))
	}
	// Nor a slow reader lose what the process wrote.
	var slow slowWriter
	code, err = n.Exec(n.ctx, ExecRequest{ID: req.ID, Args: []string{"head", "-c", "60000", "/dev/zero"}, IO: IO{Stdout: &slow}})
	if err != nil || code != 0 || slow != 60000 {
		t.Errorf("code %d, error %v, %d bytes", code, err, slow)
	}
}

type slowWriter int

func (w *slowWriter) Write(p []byte) (int, error) {
	time.Sleep(1200 * time.Millisecond)
	*w += slowWriter(len(p))
	return len(p), nil
}

// The shim's death in an exec kills the exec and is told; the container stays.
func TestExecShimDies(t *testing.T) {
	n := newNode(t)
	req := n.shell("sleep 1000")
	p := n.run(req)
	done := make(chan error, 1)
	var out buffer
	in, w := io.Pipe()
	defer w.Close()
	go func() {
		_, err := n.Exec(n.ctx, ExecRequest{ID: req.ID, Args: []string{"sh", "-c", "read x; echo $x; exec sleep 78001"}, IO: IO{Stdin: in, Stdout: &out}})
		done <- err
	}()
	io.WriteString(w, "answered\n") // copied only once the shim has told the pid
	eventually(t, "exec", func() bool { return out.String() != "" && running("sleep\x0078001") })
	n.killShim()
	if err := ends(t, "exec", done); !kind.Is(err, kind.Unavailable) {
		t.Errorf("exec: %v", err)
	}
	eventually(t, "exec's end", func() bool { return !running("sleep\x0078001") })
	if !alive(p) {
		t.Error("the container ended")
	}
}

// Sessions leave nothing in either process.
func TestNoLeaks(t *testing.T) {
	n := newNode(t)
	req := n.container(withStdin(false), "sleep", "1000")
	n.run(req)
	ctx, cancel := context.WithCancel(n.ctx)
	cancel()
	round := func(count int) {
		for i := range count {
			var out buffer
			if code, err := n.Exec(n.ctx, ExecRequest{ID: req.ID, Args: []string{"echo", "x"}, IO: IO{Stdin: strings.NewReader("in"), Stdout: &out, Stderr: &out}}); err != nil || code != 0 {
				t.Fatal(code, err)
			}
			if i%10 == 0 {
				n.Exec(n.ctx, ExecRequest{ID: req.ID, Args: []string{"nothere"}, IO: IO{Terminal: true, Stdout: &out}})
				n.Attach(ctx, req.ID, IO{Stdin: strings.NewReader("in"), Stdout: &out})
			}
		}
	}
	round(50)
	pid := n.shimPid()
	ours, shims, rss := len(links(os.Getpid())), len(links(pid)), anon(t, pid)
	began := time.Now()
	round(500)
	t.Logf("%v for one exec", time.Since(began)/500)
	eventually(t, "descriptors as before", func() bool {
		return len(links(os.Getpid())) <= ours && len(links(pid)) <= shims
	})
	if now := anon(t, pid); now > rss+1<<20 && !raceEnabled {
		t.Errorf("the shim's memory grew from %d to %d bytes", rss, now)
	}
	t.Logf("shim: %d bytes of memory, %d descriptors", anon(t, pid), len(links(pid)))
}

// anon is a process's private memory in bytes.
func anon(t testing.TB, pid int) int {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "RssAnon:" {
			kb, _ := strconv.Atoi(f[1])
			return kb << 10
		}
	}
	t.Fatal("no RssAnon")
	return 0
}
