// Package hostpath finds what is behind the host paths of mounts, on file
// systems that may never answer (NFS without its server, FUSE without its
// daemon). A thread that asks such a file system is stuck in the kernel, and
// with it everything that a process could do to end the wait but dying. So only
// what the kernel can tell from memory is asked by this process; anything else
// is asked by a helper that is killed when it takes too long.
package hostpath

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"noded.dev/noded/internal/kind"
)

// Limits of asking.
const (
	// Patience is how long one Resolve asks; the kubelet gives its whole
	// request two minutes.
	Patience = 20 * time.Second
	// MaxHelpers is how many helpers there are at most, and threads of this
	// process that wait for them. One that not even SIGKILL ends counts until it
	// is gone.
	MaxHelpers = 64
)

// Resolver finds host paths.
type Resolver struct {
	command []string // runs Serve
	create  bool
	slots   chan struct{}
	work    sync.WaitGroup
}

// New makes a Resolver whose helper is the command, which must call Serve. With
// create a missing path is made a folder.
func New(command []string, create bool) *Resolver {
	return &Resolver{command: command, create: create, slots: make(chan struct{}, MaxHelpers)}
}

// Close waits for the helpers of calls whose contexts have ended.
func (r *Resolver) Close() { r.work.Wait() }

// Resolve follows each path and returns what it leads to, free of links, in
// order; "" stays "". It takes at most Patience. at is told what is being waited
// for, if anything is. The error's kind is Precondition for a path that does
// not exist or cannot be reached, Deadline for one that does not answer.
func (r *Resolver) Resolve(ctx context.Context, paths []string, at func(string)) ([]string, error) {
	found := make([]string, len(paths))
	var ask []string
	var where []int
	mounts := &mountTable{}
	for i, p := range paths {
		if p == "" {
			continue
		}
		real, ok := fromMemory(p, mounts)
		if ok {
			found[i] = real
			continue
		}
		ask, where = append(ask, p), append(where, i)
	}
	if len(ask) == 0 {
		return found, nil
	}
	limited, cancel := context.WithTimeout(ctx, Patience)
	defer cancel()
	answers, err := r.ask(limited, ask, at)
	for i, a := range answers {
		if a.Errno != 0 {
			return nil, a.error(ask[i])
		}
		found[where[i]] = a.Path
	}
	switch {
	case len(answers) == len(ask):
		return found, nil
	case limited.Err() != nil && err == nil:
		return nil, silent(ctx, ask[len(answers)])
	case err == nil:
		err = errors.New("it ended")
	}
	return nil, fmt.Errorf("ask for host path %s: %w", ask[len(answers)], err)
}

// silent is the error of a path that did not answer, and says what to do.
func silent(ctx context.Context, path string) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("host path %s does not answer: it is on %s: %w", path, behind(path), err)
	}
	return kind.Errorf(kind.Deadline, "host path %s does not answer within %v: it is on %s; see that what serves that file system answers, or unmount it (umount -l)",
		path, Patience, behind(path))
}

// answer is what a helper says of one path.
type answer struct {
	Path     string
	Errno    int    // why not; 0: it is there
	Step     string // that failed
	Dangling bool   // a link that leads nowhere
}

func (a answer) error(path string) error {
	errno := unix.Errno(a.Errno)
	switch {
	case a.Dangling:
		return kind.Errorf(kind.Precondition, "host path %s is a link to what does not exist: %w", path, errno)
	case errno == unix.ENOENT && a.Step == stepOpen:
		return kind.Errorf(kind.Precondition, "host path %s does not exist; make it, or set runtime.missing_host_path to \"create\": %w", path, errno)
	case errno == unix.ENOTCONN, errno == unix.ESTALE, errno == unix.EIO, errno == unix.EHOSTDOWN:
		return kind.Errorf(kind.Precondition, "%s host path %s on %s: %w", a.Step, path, behind(path), errno)
	}
	return kind.Errorf(kind.Precondition, "%s host path %s: %w", a.Step, path, errno)
}
