package runtime

import (
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"noded.dev/noded/internal/kind"
	"noded.dev/noded/runtime/pidfd"
)

// lease makes the next one who executes the file wait, until release. Waiting
// is closed when somebody does.
func lease(t *testing.T, path string) (waiting <-chan os.Signal, release func()) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	broken := make(chan os.Signal, 1)
	signal.Notify(broken, unix.SIGIO)
	if _, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_WRLCK); err != nil {
		t.Fatal("lease:", err)
	}
	return broken, func() {
		signal.Stop(broken)
		f.Close()
	}
}

// zombies are children of this process that have ended and that nobody waits for.
func zombies() (list []int) {
	all, err := pidfd.All()
	if err != nil {
		return []int{-1}
	}
	for pid, p := range all {
		if p.Parent == os.Getpid() && p.Zombie {
			list = append(list, pid)
		}
	}
	return list
}

// The shim dies between an exec's fork and its answer, at three points of the
// process's life. Nobody but the kernel knows the process then.
func TestExecShimDiesUnanswered(t *testing.T) {
	for _, c := range []struct {
		name  string
		args  []string
		after func(n *node, release func())
	}{
		{"process runs on", []string{"/bin/busybox-prog", "78100"}, func(n *node, release func()) {
			n.killShim()
			release()
			n.shimPid()
		}},
		{"process is at its exec", []string{"/bin/busybox-prog", "78101"}, func(n *node, release func()) {
			n.killShim()
			n.shimPid()
			release()
		}},
		{"process ends before the next shim", []string{"/bin/busybox-prog", "0"}, func(n *node, release func()) {
			hold := make(chan struct{})
			n.holdShim(hold)
			n.killShim()
			release()
			eventually(t, "end of the process", func() bool { return !running("/bin/busybox-prog") })
			close(hold)
			n.shimPid()
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newNode(t)
			req := n.shell("sleep 1000")
			prog := filepath.Join(req.Bundle, "rootfs/bin/busybox-prog")
			data, err := os.ReadFile("/bin/busybox")
			if err == nil {
				err = os.WriteFile(prog, data, 0o755)
			}
			if err != nil {
				t.Fatal(err)
			}
			p := n.run(req)
			waiting, release := lease(t, prog)
			done := make(chan error, 1)
			go func() {
				_, err := n.Exec(n.ctx, ExecRequest{ID: req.ID, Args: append([]string{c.args[0], "sleep"}, c.args[1:]...)})
				done <- err
			}()
			<-waiting
			c.after(n, release)
			if err := ends(t, "exec", done); !kind.Is(err, kind.Unavailable) {
				t.Errorf("exec: %v", err)
			}
			eventually(t, "end of the process", func() bool { return !running("/bin/busybox-prog") })
			eventually(t, "no zombie", func() bool { return len(zombies()) == 0 })
			if !alive(p) {
				t.Error("the container ended")
			}
			began := time.Now()
			if err := n.Delete(n.ctx, req); err != nil || time.Since(began) > 2*time.Second {
				t.Errorf("delete: %v after %v", err, time.Since(began))
			}
		})
	}
}

// What a container has put into the background is no exec.
func TestShimDiesBesideDaemons(t *testing.T) {
	n := newNode(t)
	req := n.shell("(setsid sleep 78110 &); setsid sleep 78111 & sh -c 'sleep 78112; echo' & exec sleep 1000")
	n.run(req)
	code, err := n.Exec(n.ctx, ExecRequest{ID: req.ID, Args: []string{"sh", "-c", "sleep 78113 &"}})
	if err != nil || code != 0 {
		t.Fatal(code, err)
	}
	sleeps := []string{"sleep\x0078110", "sleep\x0078111", "sleep\x0078112", "sleep\x0078113"}
	for _, s := range sleeps {
		eventually(t, s, func() bool { return running(s) })
	}
	n.killShim()
	n.shimPid()
	for _, s := range sleeps {
		if !running(s) {
			t.Errorf("%q was killed", s)
		}
	}
}

// A shim's orphans that this process is given are collected, and its own
// children left to those who started them.
func TestOwnChildrenStay(t *testing.T) {
	n := newNode(t)
	own, err := os.StartProcess("/bin/busybox", []string{"sleep", "0"}, &os.ProcAttr{})
	if err != nil {
		t.Fatal(err)
	}
	n.run(n.shell("sleep 1000"))
	n.killShim()
	n.shimPid()
	time.Sleep(100 * time.Millisecond) // nothing tells of what is not done
	if st, err := own.Wait(); err != nil || st.ExitCode() != 0 {
		t.Errorf("own child: %v, %v", st, err)
	}
}

// A half-made container's process becomes a child of the daemon, too.
func TestCreateShimDies(t *testing.T) {
	n := newNode(t)
	req := n.shell("sleep 78120")
	n.counting(&req)
	data, err := os.ReadFile(req.Runtime.Path)
	if err == nil { // the runtime's last act is to kill the shim
		script := strings.Replace(string(data), "exec ", "case \"$*\" in *create*) test -e $0.done || { : > $0.done; ", 1)
		script = strings.TrimSpace(script) + "; kill -9 $PPID; sleep 5; exit; };; esac\nexec " + testHandler(n.state).Path + " \"$@\"\n"
		err = os.WriteFile(req.Runtime.Path, []byte(script), 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.Create(n.ctx, req); err != nil {
		t.Fatal("repeated create:", err)
	}
	if err := n.Start(n.ctx, req.ID); err != nil {
		t.Fatal(err)
	}
	eventually(t, "no zombie", func() bool { return len(zombies()) == 0 })
	if err := n.Delete(n.ctx, req); err != nil {
		t.Error(err)
	}
}

func TestIsFirst(t *testing.T) {
	n := newNode(t)
	req := n.shell("sleep 78121; true")
	p := n.run(req)
	if !isFirst(p.Pid) || !isFirst(1<<30) || isFirst(os.Getpid()) {
		t.Error("a container's init is first, and this process is not")
	}
}
