package runtime

import (
	"context"
	"os"
	goruntime "runtime"
	"strings"
	"testing"
)

// resources are goroutines and descriptors of both processes.
type resources struct{ routines, files, shimRoutines, shimFiles int }

func (n *node) resources() resources {
	n.Helper()
	rep, err := n.call(n.ctx, request{Op: "hello"})
	if err != nil {
		n.Fatal(err)
	}
	return resources{goruntime.NumGoroutine(), len(links(os.Getpid())), rep.Routines, len(links(rep.Pid))}
}

func (r resources) within(limit resources) bool {
	return r.routines <= limit.routines && r.files <= limit.files && r.shimRoutines <= limit.shimRoutines && r.shimFiles <= limit.shimFiles
}

// Neither thousands of sessions nor containers that end under theirs leave
// anything in either process.
func TestNoSlope(t *testing.T) {
	n := newNode(t)
	req := n.container(withStdin(false), "sleep", "1000")
	n.run(req)
	gone, cancel := context.WithCancel(n.ctx)
	cancel()
	round := func(execs, ends int) {
		for i := range execs {
			if code, err := n.Exec(n.ctx, ExecRequest{ID: req.ID, Args: []string{"true"}, IO: IO{Stdout: &buffer{}}}); err != nil || code != 0 {
				t.Fatal(code, err)
			}
			if i%4 == 0 {
				n.Attach(gone, req.ID, IO{Stdin: strings.NewReader("in"), Stdout: &buffer{}, Stderr: &buffer{}})
			}
		}
		for range ends {
			n.endUnderSessions()
		}
	}
	round(40, 1)
	before := n.resources()
	round(2000, 5)
	eventually(t, "resources as before", func() bool { return n.resources().within(before) })
	t.Logf("before %+v, after %+v", before, n.resources())
}

// endUnderSessions ends a container under an exec and an attach, and attaches
// once more.
func (n *node) endUnderSessions() {
	n.Helper()
	short := n.container(withStdin(false), "sleep", "1000")
	n.run(short)
	attached := n.attach(n.ctx, short.ID, IO{Stdout: &buffer{}})
	started := &buffer{}
	executed := make(chan error, 1)
	go func() {
		_, err := n.Exec(n.ctx, ExecRequest{ID: short.ID, Args: []string{"sh", "-c", "echo; sleep 1000"}, IO: IO{Stdout: started}})
		executed <- err
	}()
	eventually(n, "exec", func() bool { return started.String() != "" })
	if err := n.Signal(n.ctx, short.ID, 9); err != nil {
		n.Error(err)
	}
	ends(n, "exec", executed)
	ends(n, "attach", attached)
	n.exit(short.ID)
	if err := n.Attach(n.ctx, short.ID, IO{Stdout: &buffer{}}); err == nil {
		n.Error("attached to an ended container")
	}
	if err := n.Delete(n.ctx, short); err != nil {
		n.Error(err)
	}
}
