package runtime

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"noded.dev/noded/internal/kind"
	"noded.dev/noded/runtime/criu"
	"noded.dev/noded/runtime/wire"
)

// CheckpointRequest asks for the state of a running container's processes.
type CheckpointRequest struct {
	ID     string
	Images string // an empty folder for the images of CRIU, and its log
}

// Restore says that a container's processes go on from images of CRIU; the
// zero value that the command is executed.
type Restore struct {
	Images string // folder as CheckpointRequest.Images; "" none
	Criu   string // absolute path of the criu command
}

// ErrNoCheckpoints is why checkpoints are not made: the configuration says so.
var ErrNoCheckpoints = errors.New("checkpoint and restore are switched off on this node; runtime.checkpoint = true in noded's configuration switches them on")

// CanCheckpoint returns nil if containers of the handler can be checkpointed
// and restored: it is switched on (else kind Unimplemented, which kubelets take
// for a runtime without the call), and the OCI runtime, CRIU and the kernel can
// (else kind Precondition).
func (r *Runtime) CanCheckpoint(ctx context.Context, h HandlerInfo) error {
	if r.criu == "" {
		return kind.Wrap(kind.Unimplemented, ErrNoCheckpoints)
	}
	if !h.Checkpoint {
		return kind.Errorf(kind.Precondition, "runtime %s at %s does not say that it can checkpoint", h.Name, h.Path)
	}
	r.mu.Lock()
	works := r.criuWorks
	r.mu.Unlock()
	if works {
		return nil
	}
	if _, err := criu.Probe(ctx, r.criu); err != nil {
		return err
	}
	r.mu.Lock()
	r.criuWorks = true
	r.mu.Unlock()
	return nil
}

// Criu is the criu command in use; "" where checkpoints are switched off.
func (r *Runtime) Criu() string { return r.criu }

// Freeze stops all processes of the containers until thaw is called. The shim
// lets them go on, too, when this process ends or ctx's deadline passes, in
// which case thaw returns an error: what was read meanwhile is not of one moment.
// If the shim dies, the error of thaw says that they may still be frozen.
func (r *Runtime) Freeze(ctx context.Context, ids []string) (thaw func() error, err error) {
	c, err := r.send(ctx, request{Op: "freeze", IDs: ids}, nil)
	if err != nil {
		return nil, kind.Errorf(kind.Unavailable, "freeze: shim: %w", err)
	}
	rep, files, err := receive(ctx, c)
	wire.CloseAll(files)
	if err == nil {
		err = fromWire(rep.Error)
	}
	if err != nil {
		c.Close() // it thaws then
		return nil, fmt.Errorf("freeze: %w", err)
	}
	return func() error { return thawed(c) }, nil
}

// thawLimit bounds the wait for a dump to give up, which comes before a thaw.
const thawLimit = 2*abortLimit + 5*time.Second

func thawed(c *net.UnixConn) error {
	defer c.Close()
	if err := c.CloseWrite(); err != nil {
		return kind.Errorf(kind.Unavailable, "thaw: shim: %w", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), thawLimit)
	defer cancel()
	rep, files, err := receive(ctx, c)
	wire.CloseAll(files)
	if err != nil {
		return kind.Errorf(kind.Unavailable, "thaw: shim: %w", err)
	}
	return fromWire(rep.Error)
}

// Checkpoint writes the state of a container's processes, which go on (or stay
// frozen) as they were, also where it fails. It is not repeatable.
func (r *Runtime) Checkpoint(ctx context.Context, req CheckpointRequest) error {
	rep, err := r.try(ctx, request{Op: "checkpoint", ID: req.ID, Restore: &Restore{Images: req.Images, Criu: r.criu}}, nil)
	if err != nil && ctx.Err() == nil {
		return kind.Errorf(kind.Unavailable, "checkpoint: shim: %w", err)
	}
	if err == nil {
		err = fromWire(rep.Error)
	}
	if err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	return nil
}
