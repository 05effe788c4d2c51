package sandbox

import (
	"context"
	"io"

	rspec "github.com/opencontainers/runtime-spec/specs-go"

	"noded.dev/noded/cni"
	"noded.dev/noded/imagestore"
	"noded.dev/noded/runtime"
)

// Images is what pods need of the image store. *imagestore.Store is one.
type Images interface {
	// Lookup finds an image by id, unambiguous id prefix, tag or digest
	// reference; without I/O. The error's kind is NotFound if there is none.
	Lookup(ref string) (imagestore.Image, error)

	// Mount assembles and mounts a container's root filesystem and returns its
	// path. A second Mount with the same id returns the same path. The image's
	// layers cannot be freed while the root filesystem exists.
	Mount(ctx context.Context, req imagestore.MountRequest) (rootfs string, err error)

	// MountVolume mounts an image as a read-only volume of a container whose
	// root filesystem is mounted, and returns the path to bind. It stays until
	// Unmount, and so do the image's layers. A repeated call is done.
	MountVolume(ctx context.Context, req imagestore.VolumeRequest) (path string, err error)

	// Unmount unmounts a container's root filesystem and volumes and deletes
	// its writable layer; nil if there is none (any more).
	Unmount(ctx context.Context, id string) error

	// Mounts lists the container ids that have a root filesystem, for recovery.
	Mounts() []string

	// Mapped returns nil if root filesystems can have mapped ids, as Mount's
	// UserNS asks for, or why not; at once.
	Mapped() error

	// Diff writes a container's writable layer as the tar of an image layer.
	Diff(ctx context.Context, id string, w io.Writer) error

	// WritableUsage measures a container's writable layer.
	WritableUsage(ctx context.Context, id string) (imagestore.Usage, error)
}

// Network is what pods need of the networks. *cni.Networks is one.
type Network interface {
	// Ready returns nil, or why pods with their own network cannot start now.
	// It returns at once, from what was last seen.
	Ready() error

	// Add connects a pod. Repeating it for a pod that is connected returns the
	// same result. Once Add was called, Del must be, whatever Add returned.
	Add(ctx context.Context, pod cni.Pod) (cni.Result, error)

	// Del disconnects a pod and frees its addresses; nil if there is nothing
	// to do. It works when the namespace or the configuration is gone.
	Del(ctx context.Context, pod cni.Pod) error

	// GC frees what belongs to pods that are not in keep (pod ids).
	GC(ctx context.Context, keep []string) error

	// SetPodCIDR takes the node's pod ranges from the kubelet.
	SetPodCIDR(cidrs []string) error
}

// Runtime is what pods need of the shim and the OCI runtimes behind it.
// *runtime.Runtime is one.
type Runtime interface {
	// Handler finds a configured runtime handler; "" is the default one.
	// Kind NotFound if it is not configured.
	Handler(name string) (runtime.HandlerInfo, error)
	Handlers() []runtime.HandlerInfo

	// Create makes a container, whose process waits for Start. Descriptors,
	// exit watch and log are in place when it returns. If it fails, nothing is
	// left but what Delete removes.
	Create(ctx context.Context, req runtime.CreateRequest) (runtime.Process, error)

	// Start lets a created container's process execute its command.
	Start(ctx context.Context, id string) error

	// Signal sends to the container's init process; kind NotFound if it has ended.
	Signal(ctx context.Context, id string, signal int) error

	// Delete removes what the runtime and the shim hold of a container, killing
	// it first if it lives. nil if there is nothing (any more). The exit status
	// is forgotten: record it first.
	Delete(ctx context.Context, req runtime.CreateRequest) error

	// Update changes a container's resource limits, all or nothing.
	Update(ctx context.Context, req runtime.CreateRequest, resources *rspec.LinuxResources) error

	// ReopenLog creates the log file anew at its path and writes there from then on.
	ReopenLog(ctx context.Context, id string) error

	// CanCheckpoint returns nil if containers of the handler can be checkpointed
	// and restored; kind Unimplemented where that is switched off, Precondition
	// where something is missing.
	CanCheckpoint(ctx context.Context, h runtime.HandlerInfo) error

	// Criu is the criu command that restores.
	Criu() string

	// Freeze stops all processes of the containers until thaw is called, this
	// process ends or ctx's deadline passes. If thaw fails, they may still be
	// frozen, or have gone on before.
	Freeze(ctx context.Context, ids []string) (thaw func() error, err error)

	// Checkpoint writes the state of a container's processes, which go on as
	// they were in any case.
	Checkpoint(ctx context.Context, req runtime.CheckpointRequest) error

	// Exec runs a process and returns its exit code (126 cannot execute, 127
	// not found). When ctx ends, the process and all it started are killed. It
	// returns when the process has ended and its output was copied, waiting at
	// most one second for output that something it left behind keeps open.
	Exec(ctx context.Context, req runtime.ExecRequest) (code int, err error)

	// Attach connects to a running container's stdio until it ends, ctx ends
	// or the client closes. A slow client is cut off; it never slows the
	// container.
	Attach(ctx context.Context, id string, io runtime.IO) error

	// Exits delivers every container's exit at least once, also those of
	// before this process started, until Delete. One reader.
	Exits() <-chan runtime.Exit

	// Containers lists what the shim holds, for recovery.
	Containers(ctx context.Context) ([]runtime.State, error)
}
