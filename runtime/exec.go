package runtime

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"noded.dev/noded/internal/kind"
	"noded.dev/noded/runtime/pidfd"
	"noded.dev/noded/runtime/wire"
)

// leftoverLimit is how long a session waits, after its process has ended, for
// output that something else keeps open.
const leftoverLimit = time.Second

// Exec runs a process and returns its exit code. A command that cannot be
// executed is no error but code 127 or 126, with the reason on Stderr. When ctx
// ends, the process and all it started are killed. Kind Unavailable: the shim
// died, and the process was killed. A Stdin that blocks must be closed by the
// caller afterwards.
func (r *Runtime) Exec(ctx context.Context, req ExecRequest) (int, error) {
	x := &pipes{}
	defer x.close()
	wireReq := request{Op: "exec", ID: req.ID, Args: req.Args, Terminal: req.IO.Terminal}
	if !req.IO.Terminal {
		if err := x.make(req.IO); err != nil {
			return 0, err
		}
		wireReq.Stdin, wireReq.Stdout, wireReq.Stderr = req.IO.Stdin != nil, req.IO.Stdout != nil, req.IO.Stderr != nil
	}
	c, rep, files, err := r.open(ctx, wireReq, x.theirs)
	x.closeTheirs()
	if err != nil {
		return x.notStarted(ctx, req.IO, err)
	}
	defer c.Close()
	got := named(rep.Names, files)
	defer got.close()
	if req.IO.Terminal {
		if err := x.terminal(got[filePty]); err != nil {
			return 0, err
		}
	}
	x.copy(ctx, req.IO)
	return x.wait(ctx, c, got[filePidfd], rep.Process.Pid)
}

// open sends a session's request and reads the first reply; a refusal is an
// error. Until the request is sent it may be tried again.
func (r *Runtime) open(ctx context.Context, req request, files []*os.File) (*net.UnixConn, reply, []*os.File, error) {
	var c *net.UnixConn
	var err error
	for range maxTries {
		_, changed := r.linkState()
		var rep reply
		var got []*os.File
		if c, err = r.send(ctx, req, files); err == nil {
			rep, got, err = receive(ctx, c)
			if err == nil && rep.Error == nil {
				return c, rep, got, nil
			}
			if err != nil && ctx.Err() != nil && req.Op == "exec" {
				awaitEnd(ctx, c)
			}
			c.Close()
			wire.CloseAll(got)
			if err != nil { // it may have been started; the shim's end killed nothing yet
				break
			}
			err = fromWire(rep.Error)
			if !rep.Error.Retry {
				return nil, reply{}, nil, err
			}
		}
		wait, cancel := context.WithTimeout(ctx, linkLimit)
		select {
		case <-changed:
			r.awaitUp(wait) // the next try tells
		case <-wait.Done():
		}
		cancel()
		if ctx.Err() != nil {
			break
		}
	}
	if ctx.Err() != nil {
		return nil, reply{}, nil, fmt.Errorf("%s: %w", req.Op, ctx.Err())
	}
	return nil, reply{}, nil, kind.Errorf(kind.Unavailable, "%s: shim: %w", req.Op, err)
}

// notStarted turns a command that cannot be executed into an exit code.
func (x *pipes) notStarted(ctx context.Context, o IO, err error) (int, error) {
	var start *StartError
	if !errors.As(err, &start) || start.Code != 126 && start.Code != 127 {
		return 0, err
	}
	if o.Terminal && o.Stdout != nil {
		fmt.Fprintf(o.Stdout, "%v\r\n", err)
	}
	o.Stdin = nil
	x.copy(ctx, o) // what the attempt printed
	x.finish(ctx)
	return start.Code, nil
}

// wait returns the code once the process has ended and its output is copied.
func (x *pipes) wait(ctx context.Context, c *net.UnixConn, f *os.File, pid int) (int, error) {
	rep, files, err := receive(ctx, c)
	wire.CloseAll(files)
	if err == nil {
		x.finish(ctx)
		return rep.Code, fromWire(rep.Error)
	}
	// The end of ctx or of the shim: nobody else may kill it then.
	if f != nil {
		pidfd.KillTree(f, pid)
	}
	if ctx.Err() != nil {
		awaitEnd(ctx, c)
		return 0, fmt.Errorf("exec: %w", ctx.Err())
	}
	if f != nil {
		// It is our child now. As long as its status is not collected, the
		// container's pid namespace cannot end.
		f.SetReadDeadline(time.Now().Add(leftoverLimit))
		pidfd.Wait(f)
		pidfd.Reap(f)
	}
	return 0, kind.Errorf(kind.Unavailable, "exec: shim: %w", err)
}

// awaitEnd has the shim kill what it starts or has started for a caller whose
// ctx has ended, and waits until it is collected: the caller may look for it at
// once. One in D state ends later.
func awaitEnd(ctx context.Context, c *net.UnixConn) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), leftoverLimit)
	defer cancel()
	c.SetReadDeadline(time.Time{})
	c.CloseWrite()
	for {
		_, files, err := receive(ctx, c)
		wire.CloseAll(files)
		if err != nil {
			return // the end of the connection
		}
	}
}

type files map[string]*os.File

func named(names []string, list []*os.File) files {
	m := files{}
	for i, f := range list {
		if i < len(names) {
			m[names[i]] = f
		} else {
			f.Close()
		}
	}
	return m
}

func (m files) close() {
	for _, f := range m {
		f.Close()
	}
}
