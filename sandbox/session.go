package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/internal/kind"
	"noded.dev/noded/internal/namespace"
	"noded.dev/noded/runtime"
)

// running finds a container that runs.
func (m *Manager) running(id string) (*Container, error) {
	c, err := m.container(id)
	if err != nil {
		return nil, err
	}
	if s := c.view.Load().state; s != stateRunning {
		return nil, kind.Errorf(kind.Precondition, "container %s (%s) is %s, not running", c.id, c.name(), s)
	}
	return c, nil
}

// CheckExec returns nil if Exec can work: the container runs.
func (m *Manager) CheckExec(id string) error {
	_, err := m.running(id)
	return err
}

// CheckAttach is CheckExec, and tells by its config whether the container has
// a terminal and a stdin.
func (m *Manager) CheckAttach(id string) (*cri.ContainerConfig, error) {
	c, err := m.running(id)
	if err != nil {
		return nil, err
	}
	return c.config, nil
}

// CheckPod returns nil if the pod exists and is ready.
func (m *Manager) CheckPod(id string) error {
	p, err := m.pod(id)
	if err != nil {
		return err
	}
	return p.precondition()
}

// Exec runs a command in a running container; see Runtime.Exec.
func (m *Manager) Exec(ctx context.Context, id string, cmd []string, io IO) (int, error) {
	c, err := m.running(id)
	if err != nil {
		return 0, err
	}
	code, err := m.runtime.Exec(ctx, runtime.ExecRequest{ID: c.id, Args: cmd, IO: io})
	if err != nil {
		return code, fmt.Errorf("exec in %s: %w", c.name(), err)
	}
	return code, nil
}

// Attach connects to a running container's stdio; see Runtime.Attach.
func (m *Manager) Attach(ctx context.Context, id string, io IO) error {
	c, err := m.running(id)
	if err != nil {
		return err
	}
	if err := m.runtime.Attach(ctx, c.id, io); err != nil {
		return fmt.Errorf("attach to %s: %w", c.name(), err)
	}
	return nil
}

// ReopenLog makes a container write its log to a new file; the kubelet has
// moved the old one away.
func (m *Manager) ReopenLog(ctx context.Context, id string) error {
	c, err := m.running(id)
	if err != nil {
		return err
	}
	if err := m.runtime.ReopenLog(ctx, c.id); err != nil {
		return fmt.Errorf("reopen log of %s: %w", c.name(), err)
	}
	return nil
}

// PortForward copies between stream and a port of the pod until both
// directions have ended or ctx does.
func (m *Manager) PortForward(ctx context.Context, podID string, port int32, stream io.ReadWriteCloser) error {
	p, err := m.pod(podID)
	if err != nil {
		return err
	}
	if err := p.precondition(); err != nil {
		return err
	}
	if port < 1 || port > 65535 {
		return kind.Errorf(kind.Invalid, "port is %d, between 1 and 65535 is possible", port)
	}
	conn, err := p.dial(ctx, int(port))
	if err != nil {
		return fmt.Errorf("port %d of pod %s: %w", port, p.name(), err)
	}
	return splice(ctx, conn, stream)
}

// dial connects to the pod's loopback, IPv4 first, as kubectl's users expect
// of localhost.
func (p *Pod) dial(ctx context.Context, port int) (net.Conn, error) {
	var conn net.Conn
	connect := func() (err error) {
		var all error
		for _, host := range []string{"127.0.0.1", "::1"} {
			var d net.Dialer
			if conn, err = d.DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(port))); err == nil {
				return nil
			}
			all = errors.Join(all, err)
		}
		return all
	}
	switch {
	case hostNetwork(p.config):
		err := connect()
		return conn, err
	case !sharedNetwork(p.config):
		return nil, kind.Errorf(kind.Precondition, "each container has a network of its own")
	}
	err := namespace.Do(namespace.Path(p.paths.ns, "net"), connect)
	return conn, err
}

// splice copies both ways. A direction that ends closes its other half, so
// that a request's end reaches the server while its answer still flows.
func splice(ctx context.Context, conn net.Conn, stream io.ReadWriteCloser) error {
	stop := context.AfterFunc(ctx, func() { conn.Close(); stream.Close() })
	defer stop()
	done := make(chan error, 2)
	go func() {
		_, err := io.Copy(conn, stream)
		if half, ok := conn.(interface{ CloseWrite() error }); ok {
			err = errors.Join(err, half.CloseWrite())
		}
		done <- err
	}()
	go func() {
		_, err := io.Copy(stream, conn)
		// The server is through: nothing more will be wanted of the client.
		done <- errors.Join(err, stream.Close())
	}()
	err := errors.Join(<-done, <-done)
	if e := conn.Close(); e != nil && !errors.Is(e, net.ErrClosed) {
		err = errors.Join(err, e)
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}
