package cri

import (
	"context"
	"io"

	api "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/cri/stream"
	"noded.dev/noded/internal/kind"
	"noded.dev/noded/sandbox"
)

// ExecSync runs a command and returns its output and exit code. Output beyond
// what a reply can carry is discarded while the command goes on. A command
// that cannot be found is a result (127), not an error.
func (s *Server) ExecSync(ctx context.Context, req *api.ExecSyncRequest) (*api.ExecSyncResponse, error) {
	if err := checkID("container", req.ContainerId); err != nil {
		return nil, err
	}
	if err := checkCommand(req.Cmd); err != nil {
		return nil, err
	}
	if req.Timeout < 0 {
		return nil, kind.Errorf(kind.Invalid, "timeout is %d seconds; 0 is none", req.Timeout)
	}
	out, err := s.execs.begin()
	if err != nil {
		return nil, err
	}
	defer out.release()
	run := ctx
	if req.Timeout > 0 {
		var cancel context.CancelFunc
		run, cancel = context.WithTimeout(ctx, seconds(req.Timeout))
		defer cancel()
	}
	code, err := s.sandboxes.Exec(run, req.ContainerId, req.Cmd, sandbox.IO{Stdout: &out.stdout, Stderr: &out.stderr})
	if run.Err() != nil && ctx.Err() == nil && err != nil {
		// The kubelet counts a probe as timed out by this code alone.
		return nil, kind.Errorf(kind.Deadline, "command ran longer than %d seconds and was killed", req.Timeout)
	}
	if err != nil {
		return nil, err
	}
	return &api.ExecSyncResponse{
		Stdout: out.stdout.bytes(), Stderr: out.stderr.bytes(), ExitCode: int32(code),
	}, nil
}

// Exec returns the URL of a session that runs a command.
func (s *Server) Exec(_ context.Context, req *api.ExecRequest) (*api.ExecResponse, error) {
	if err := checkID("container", req.ContainerId); err != nil {
		return nil, err
	}
	if err := checkCommand(req.Cmd); err != nil {
		return nil, err
	}
	wants := stream.Wants{Stdin: req.Stdin, Stdout: req.Stdout, Stderr: req.Stderr, Terminal: req.Tty}
	if err := checkWants(wants); err != nil {
		return nil, err
	}
	if err := s.sandboxes.CheckExec(req.ContainerId); err != nil {
		return nil, err
	}
	url, err := s.streams.ExecURL(wants, func(ctx context.Context, st stream.Streams) (int, error) {
		io, stop := sessionIO(st)
		defer stop()
		return s.sandboxes.Exec(ctx, req.ContainerId, req.Cmd, io)
	})
	if err != nil {
		return nil, err
	}
	return &api.ExecResponse{Url: url}, nil
}

// Attach returns the URL of a session with a container's own stdio. Whether
// that is a terminal, and whether it has a stdin, the container decides.
func (s *Server) Attach(_ context.Context, req *api.AttachRequest) (*api.AttachResponse, error) {
	if err := checkID("container", req.ContainerId); err != nil {
		return nil, err
	}
	wants := stream.Wants{Stdin: req.Stdin, Stdout: req.Stdout, Stderr: req.Stderr, Terminal: req.Tty}
	if err := checkWants(wants); err != nil {
		return nil, err
	}
	config, err := s.sandboxes.CheckAttach(req.ContainerId)
	if err != nil {
		return nil, err
	}
	url, err := s.streams.AttachURL(wants, func(ctx context.Context, st stream.Streams) error {
		io, stop := sessionIO(st)
		defer stop()
		if io.Terminal = config.GetTty(); io.Terminal {
			io.Stderr = nil
		}
		if !config.GetStdin() {
			io.Stdin = nil
		}
		return s.sandboxes.Attach(ctx, req.ContainerId, io)
	})
	if err != nil {
		return nil, err
	}
	return &api.AttachResponse{Url: url}, nil
}

// PortForward returns the URL of a session of connections into a pod's network.
func (s *Server) PortForward(_ context.Context, req *api.PortForwardRequest) (*api.PortForwardResponse, error) {
	if err := checkID("pod", req.PodSandboxId); err != nil {
		return nil, err
	}
	if err := s.sandboxes.CheckPod(req.PodSandboxId); err != nil {
		return nil, err
	}
	url, err := s.streams.PortForwardURL(req.Port, func(ctx context.Context, port int32, conn io.ReadWriteCloser) error {
		return s.sandboxes.PortForward(ctx, req.PodSandboxId, port, conn)
	})
	if err != nil {
		return nil, err
	}
	return &api.PortForwardResponse{Url: url}, nil
}

func checkWants(w stream.Wants) error {
	switch {
	case w.Terminal && w.Stderr:
		return kind.Errorf(kind.Invalid, "a terminal has no stderr: tty and stderr cannot both be true")
	case !w.Stdin && !w.Stdout && !w.Stderr:
		return kind.Errorf(kind.Invalid, "one of stdin, stdout and stderr must be true")
	}
	return nil
}

// sessionIO makes the core's streams of a session's. stop ends the goroutine
// that passes on terminal sizes, and waits for it.
func sessionIO(st stream.Streams) (io sandbox.IO, stop func()) {
	io = sandbox.IO{Stdin: st.Stdin, Stdout: st.Stdout, Stderr: st.Stderr, Terminal: st.Terminal}
	if st.Resize == nil {
		return io, func() {}
	}
	sizes, quit, done := make(chan sandbox.Size), make(chan struct{}), make(chan struct{})
	io.Resize = sizes
	go func() {
		defer close(done)
		defer close(sizes)
		for {
			select {
			case <-quit:
				return
			case size, ok := <-st.Resize:
				if !ok {
					return
				}
				select {
				case <-quit:
					return
				case sizes <- sandbox.Size{Width: size.Width, Height: size.Height}:
				}
			}
		}
	}()
	return io, func() { close(quit); <-done }
}
