package runtime

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"

	"noded.dev/noded/internal/kind"
	"noded.dev/noded/runtime/wire"
)

// Attach connects to a running container's streams from now on, until it ends,
// ctx ends or the client's writers fail. A client that reads too slowly is cut
// off with kind Exhausted. A Stdin that blocks must be closed by the caller
// afterwards.
func (r *Runtime) Attach(ctx context.Context, id string, o IO) error {
	p := &pipes{}
	defer p.close()
	if err := p.makeOutputs(o); err != nil {
		return err
	}
	req := request{Op: "attach", ID: id, Stdin: o.Stdin != nil, Stdout: o.Stdout != nil, Stderr: o.Stderr != nil}
	c, rep, list, err := r.open(ctx, req, p.theirs)
	p.closeTheirs()
	if err != nil {
		return err
	}
	defer c.Close()
	got := named(rep.Names, list)
	defer got.close()
	if err := p.attachInputs(got); err != nil {
		return err
	}
	stdin := o.Stdin
	o.Stdin = nil
	p.copy(ctx, o)
	if stdin != nil && p.stdin != nil {
		go p.attachStdin(c, stdin, p.pty != nil)
	}
	return p.attachWait(ctx, c)
}

func (p *pipes) attachInputs(got files) error {
	var err error
	if f := got[filePty]; f != nil {
		if p.pty, err = dup(f); err != nil {
			return fmt.Errorf("duplicate terminal: %w", err)
		}
		if p.stdin, err = dup(f); err != nil {
			return fmt.Errorf("duplicate terminal: %w", err)
		}
		return nil
	}
	if f := got[fileStdin]; f != nil {
		delete(got, fileStdin)
		p.stdin, err = nonblocking(f)
	}
	return err
}

// attachStdin copies the client's input; its end is passed on to a StdinOnce
// container by the shim, which holds the input too.
func (p *pipes) attachStdin(c *net.UnixConn, stdin io.Reader, terminal bool) {
	io.Copy(p.stdin, stdin)
	if !terminal {
		p.stdin.Close()
		wire.Write(c, request{V: protocolVersion, Op: "stdin-closed"})
	}
}

func (p *pipes) attachWait(ctx context.Context, c *net.UnixConn) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	over := make(chan struct{})
	defer close(over)
	go func() {
		select {
		case <-p.lost:
			cancel(errClientGone)
		case <-over:
		}
	}()
	rep, files, err := receive(ctx, c)
	wire.CloseAll(files)
	switch {
	case err == nil:
		p.join(ctx) // the shim has closed the other ends
		return fromWire(rep.Error)
	case context.Cause(ctx) == errClientGone:
		return nil
	case ctx.Err() != nil:
		return fmt.Errorf("attach: %w", ctx.Err())
	}
	p.join(ctx)
	return kind.Errorf(kind.Unavailable, "attach: shim: %w", err)
}

var errClientGone = fmt.Errorf("client is gone: %w", os.ErrClosed)
