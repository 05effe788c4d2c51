package runtime

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// pipes connects a session's streams with descriptors.
type pipes struct {
	stdin          *os.File // we write
	stdout, stderr *os.File // we read
	theirs         []*os.File
	copies         []chan struct{} // of outputs; closed when done
	pty            *os.File
	lost           chan struct{} // a writer failed: the client is gone
}

// make makes a pipe for each stream that there is.
func (p *pipes) make(o IO) error {
	if o.Stdin != nil {
		r, w, err := pipe()
		if err != nil {
			return err
		}
		p.theirs = append(p.theirs, r)
		if p.stdin, err = nonblocking(w); err != nil {
			return err
		}
	}
	return p.makeOutputs(o)
}

func (p *pipes) makeOutputs(o IO) error {
	for _, out := range []struct {
		want bool
		end  **os.File
	}{{o.Stdout != nil, &p.stdout}, {o.Stderr != nil, &p.stderr}} {
		if !out.want {
			continue
		}
		r, w, err := pipe()
		if err != nil {
			return err
		}
		p.theirs = append(p.theirs, w)
		if *out.end, err = nonblocking(r); err != nil {
			return err
		}
	}
	return nil
}

// terminal uses one pty master for all.
func (p *pipes) terminal(f *os.File) error {
	if f == nil {
		return errors.New("the shim sent no terminal")
	}
	for _, end := range []**os.File{&p.stdin, &p.stdout, &p.pty} {
		d, err := dup(f)
		if err != nil {
			return fmt.Errorf("duplicate terminal: %w", err)
		}
		*end = d
	}
	return nil
}

func (p *pipes) closeTheirs() {
	for _, f := range p.theirs {
		f.Close()
	}
	p.theirs = nil
}

func (p *pipes) close() {
	p.closeTheirs()
	for _, f := range []*os.File{p.stdin, p.stdout, p.stderr, p.pty} {
		if f != nil {
			f.Close()
		}
	}
}

// copy starts copying. The copies of outputs are waited for by finish; that of
// the input ends with the caller's reader or, at its next data, with the session.
func (p *pipes) copy(ctx context.Context, o IO) {
	p.lost = make(chan struct{}, 2)
	if o.Stdin != nil && p.stdin != nil {
		go func() {
			io.Copy(p.stdin, o.Stdin)
			if !o.Terminal {
				p.stdin.Close()
			}
		}()
	}
	p.output(o.Stdout, p.stdout)
	if !o.Terminal {
		p.output(o.Stderr, p.stderr)
	}
	if p.pty != nil && o.Resize != nil {
		go resize(ctx, p.pty, o.Resize)
	}
}

func resize(ctx context.Context, pty *os.File, sizes <-chan Size) {
	for {
		select {
		case <-ctx.Done():
			return
		case s, ok := <-sizes:
			if !ok || setSize(pty, s) != nil {
				return
			}
		}
	}
}

func setSize(pty *os.File, s Size) error {
	rc, err := pty.SyscallConn()
	if err != nil {
		return err
	}
	var setErr error
	err = rc.Control(func(fd uintptr) {
		setErr = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: s.Height, Col: s.Width})
	})
	return errors.Join(err, setErr)
}

func (p *pipes) output(w io.Writer, r *os.File) {
	if r == nil {
		return
	}
	done := make(chan struct{})
	p.copies = append(p.copies, done)
	go func() {
		defer close(done)
		buf := make([]byte, 32<<10)
		if err := copyOutput(w, r, buf); err != nil {
			p.lost <- struct{}{}
		}
	}()
}

// copyOutput copies to the end of r, or past r's deadline what is in it then.
// Errors are those of w.
func copyOutput(w io.Writer, r *os.File, buf []byte) error {
	for {
		n, err := r.Read(buf)
		if n > 0 && w != nil {
			if _, err := w.Write(buf[:n]); err != nil {
				return err
			}
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return copyRest(w, r, buf)
		}
		if err != nil {
			return nil // an end, of one kind or another
		}
	}
}

// copyRest copies what a pipe holds without waiting for more. Its limit is the
// largest pipe there is: what comes later is not the process's.
func copyRest(w io.Writer, r *os.File, buf []byte) error {
	rc, err := r.SyscallConn()
	if err != nil {
		return nil
	}
	for left := 1 << 20; left > 0; {
		n := 0
		rc.Control(func(fd uintptr) { n, err = unix.Read(int(fd), buf) })
		if err == unix.EINTR {
			continue
		}
		if err != nil || n <= 0 {
			return nil
		}
		left -= n
		if w == nil {
			continue
		}
		if _, err := w.Write(buf[:n]); err != nil {
			return err
		}
	}
	return nil
}

// finish waits for the outputs: all that the process wrote, and at most
// leftoverLimit for the end of what others keep open.
func (p *pipes) finish(ctx context.Context) {
	deadline := time.Now().Add(leftoverLimit)
	for _, f := range []*os.File{p.stdout, p.stderr} {
		if f != nil {
			f.SetReadDeadline(deadline)
		}
	}
	p.join(ctx)
}

func (p *pipes) join(ctx context.Context) {
	for _, done := range p.copies {
		select {
		case <-done:
		case <-ctx.Done():
			return // its writer blocks; it ends when the caller closes that
		}
	}
}
