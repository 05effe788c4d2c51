package runtime

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"noded.dev/noded/runtime/pidfd"
)

// A container that prints numbered lines as fast as it can. The lines differ
// in length, so that chunks end at all places. It ends with code 42.
const counter = `i=0; pad=; while test $i -lt %d; do i=$((i+1)); echo $i$pad; pad=x$pad; test ${#pad} -gt 40 && pad=; done; exit 42`

func (n *node) counter(lines int) CreateRequest {
	return n.shell(fmt.Sprintf(counter, lines))
}

// checkNumbers wants every number once, in order.
func checkNumbers(t testing.TB, log string, lines int) {
	t.Helper()
	want := 1
	for line := range strings.Lines(log) {
		got, err := strconv.Atoi(strings.TrimRight(line, "x\n"))
		if err != nil || got != want {
			t.Fatalf("line %.80q, want number %d", line, want)
		}
		if pad := len(strings.TrimSpace(line)) - len(strconv.Itoa(got)); pad != (want-1)%41 {
			t.Fatalf("line %.80q is damaged", line)
		}
		want++
	}
	if want != lines+1 {
		t.Fatalf("%d lines, want %d", want-1, lines)
	}
}

func (n *node) killShim() {
	n.Helper()
	pid := n.shimPid()
	f, err := pidfd.Open(pid)
	if err != nil {
		n.Fatal(err)
	}
	defer f.Close()
	pidfd.Signal(f, 9)
	pidfd.Wait(f)
}

// alive is false for a process that has ended and waits for its parent.
func alive(p Process) bool {
	f, err := pidfd.OpenProcess(p.Pid, p.StartTime)
	if err != nil {
		return false
	}
	defer f.Close()
	return !pidfd.Ended(f)
}

// disturb does something to noded's processes again and again while the
// counter runs, and checks that the container did not notice.
func disturb(n *node, lines int, each func(round int)) {
	req := n.counter(lines)
	p := n.run(req)
	rounds := 0
	for ; alive(p) && len(n.unread()) == 0; rounds++ {
		each(rounds)
		time.Sleep(time.Duration(1+rounds*7%23) * time.Millisecond)
	}
	if rounds < 5 {
		n.Errorf("only %d rounds", rounds)
	}
	if e := n.exit(req.ID); e.Code != 42 || e.Lost {
		n.Errorf("exit %+v, want 42", e)
	}
	n.Logf("%d rounds", rounds)
	checkNumbers(n, text(readLog(n, req.LogPath), "stdout"), lines)
}

func (n *node) unread() []Exit {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.exitQueue
}

func TestKillShimUnderLoad(t *testing.T) {
	n := newNode(t)
	disturb(n, 150000, func(int) { n.killShim() })
}

func TestUpgradeUnderLoad(t *testing.T) {
	n := newNode(t)
	pid := n.shimPid()
	disturb(n, 150000, func(int) {
		if err := n.UpgradeShim(n.ctx); err != nil {
			t.Fatal(err)
		}
	})
	if n.shimPid() != pid {
		t.Error("the shim has another pid")
	}
}

func TestReopenUnderLoad(t *testing.T) {
	n := newNode(t)
	const lines = 150000
	req := n.counter(lines)
	p := n.run(req)
	var logs []string
	for i := 0; alive(p); i++ {
		old := fmt.Sprintf("%s.%d", req.LogPath, i)
		if err := os.Rename(req.LogPath, old); err != nil {
			t.Fatal(err)
		}
		logs = append(logs, old)
		if err := n.ReopenLog(n.ctx, req.ID); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Millisecond)
	}
	n.exit(req.ID)
	checkNumbers(t, text(readLog(t, append(logs, req.LogPath)...), "stdout"), lines)
	if len(logs) < 10 {
		t.Errorf("only %d rotations", len(logs))
	}
}

// A kill between rotation's rename and reopen must finish the old file.
func TestKillShimWhileRotating(t *testing.T) {
	n := newNode(t)
	const lines = 150000
	req := n.counter(lines)
	p := n.run(req)
	var logs []string
	for i := 0; alive(p); i++ {
		old := fmt.Sprintf("%s.%d", req.LogPath, i)
		if err := os.Rename(req.LogPath, old); err != nil {
			t.Fatal(err)
		}
		logs = append(logs, old)
		n.killShim()
		if err := n.ReopenLog(n.ctx, req.ID); err != nil {
			t.Fatal(err)
		}
	}
	n.exit(req.ID)
	checkNumbers(t, text(readLog(t, append(logs, req.LogPath)...), "stdout"), lines)
}

// daemon is the daemon's side as another process.
type daemon struct {
	cmd *exec.Cmd
	out *bufio.Scanner
}

func startDaemon(n *node) *daemon {
	n.Helper()
	cmd := exec.Command("/proc/self/exe", "daemon", n.state)
	out, err := cmd.StdoutPipe()
	if err != nil {
		n.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		n.Fatal(err)
	}
	d := &daemon{cmd, bufio.NewScanner(out)}
	if !d.out.Scan() || d.out.Text() != "ready" {
		n.Fatalf("daemon: %q", d.out.Text())
	}
	return d
}

func (d *daemon) kill() {
	d.cmd.Process.Kill()
	d.cmd.Wait()
}

// away runs f with this process's own Runtime closed.
func (n *node) away(f func()) {
	n.Helper()
	n.Close()
	// A daemon that is gone is no parent either.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0); err != nil {
		n.Fatal(err)
	}
	f()
	n.open()
}

func TestKillDaemonUnderLoad(t *testing.T) {
	n := newNode(t)
	pid := n.shimPid()
	disturb(n, 150000, func(round int) {
		n.away(func() { startDaemon(n).kill() })
	})
	if n.shimPid() != pid {
		t.Error("the shim has another pid")
	}
}

// Both die in the same moment; files alone bring all back. The container ends
// when somebody is there to see it: its status is lost otherwise.
func TestKillBothUnderLoad(t *testing.T) {
	n := newNode(t)
	const lines = 150000
	script := strings.ReplaceAll(fmt.Sprintf(counter, lines), "exit 42", "echo > /tmp/counted; while test ! -e /tmp/end; do sleep 0.02; done; exit 42")
	req := n.shell(script)
	tmp := filepath.Join(req.Bundle, "rootfs/tmp")
	p := n.run(req)
	rounds := 0
	for ; ; rounds++ {
		pid := n.shimPid()
		n.away(func() {
			d := startDaemon(n)
			unix.Kill(pid, unix.SIGKILL)
			d.kill()
		})
		if _, err := os.Stat(filepath.Join(tmp, "counted")); err == nil {
			break
		}
		time.Sleep(time.Duration(1+rounds*7%23) * time.Millisecond)
	}
	t.Logf("%d rounds", rounds)
	if !alive(p) {
		t.Fatal("the container ended")
	}
	os.WriteFile(filepath.Join(tmp, "end"), nil, 0o600)
	if e := n.exit(req.ID); e.Code != 42 || e.Lost {
		t.Errorf("exit %+v, want 42", e)
	}
	checkNumbers(t, text(readLog(t, req.LogPath), "stdout"), lines)
}

// Calls that come while the shim re-executes itself wait.
func TestCallsDuringUpgrade(t *testing.T) {
	n := newNode(t)
	req := n.shell("sleep 1000")
	n.run(req)
	stop := make(chan struct{})
	done := make(chan int)
	go func() {
		count := 0
		for {
			select {
			case <-stop:
				done <- count
				return
			default:
			}
			if code, err := n.Exec(n.ctx, ExecRequest{ID: req.ID, Args: []string{"true"}}); err != nil || code != 0 {
				t.Errorf("exec: %d, %v", code, err)
			}
			if err := n.ReopenLog(n.ctx, req.ID); err != nil {
				t.Error("reopen:", err)
			}
			count++
		}
	}()
	for range 30 {
		if err := n.UpgradeShim(n.ctx); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	if count := <-done; count < 5 {
		t.Errorf("only %d calls", count)
	}
}

func TestExitWhileAway(t *testing.T) {
	n := newNode(t)
	req := n.shell("echo begun; sleep 0.3; echo ended; exit 5")
	p := n.run(req)
	n.away(func() { eventually(t, "container's end", func() bool { return !alive(p) }) })
	if e := n.exit(req.ID); e.Code != 5 {
		t.Errorf("exit %+v, want 5", e)
	}
	n.away(func() {})
	if e := n.exit(req.ID); e.Code != 5 {
		t.Errorf("replayed exit %+v, want 5", e)
	}
	if got := text(readLog(t, req.LogPath), "stdout"); got != "begun\nended\n" {
		t.Errorf("log %q", got)
	}
}

// The container ends while there is no shim and the daemon is stopped short of
// starting another.
func TestExitWithoutShim(t *testing.T) {
	n := newNode(t)
	req := n.shell("sleep 0.2; echo last words; exit 6")
	p := n.run(req)
	hold := make(chan struct{})
	n.holdShim(hold)
	n.killShim()
	eventually(t, "container's end", func() bool { return !alive(p) })
	close(hold)
	if e := n.exit(req.ID); e.Code != 6 || e.Lost {
		t.Errorf("exit %+v, want 6", e)
	}
	if got := text(readLog(t, req.LogPath), "stdout"); got != "last words\n" {
		t.Errorf("log %q", got)
	}
}

// holdShim keeps new shims from starting until hold is closed, by its lock.
func (n *node) holdShim(hold chan struct{}) {
	n.Helper()
	n.shimCommand = []string{"/bin/sh", "-c", `while test ! -e "$0"; do sleep 0.05; done; exec "$@"`,
		filepath.Join(n.state, "go"), "/proc/" + strconv.Itoa(os.Getpid()) + "/exe", "shim", "--state", n.state}
	go func() {
		<-hold
		os.WriteFile(filepath.Join(n.state, "go"), nil, 0o600)
	}()
}
