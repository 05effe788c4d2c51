package runtime

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"noded.dev/noded/internal/kind"
	"noded.dev/noded/runtime/pidfd"
	"noded.dev/noded/runtime/wire"
)

const (
	shimStartLimit = 10 * time.Second
	minBackoff     = 100 * time.Millisecond
	maxBackoff     = 5 * time.Second

	maxShimLog = 1 << 20 // bytes, beyond which it is begun anew
)

// supervise keeps a watch connection to a living shim. conn is the first.
func (r *Runtime) supervise(ctx context.Context, conn *net.UnixConn) {
	backoff := minBackoff
	for {
		if conn != nil {
			began := time.Now()
			err := r.follow(ctx, conn)
			r.setLink(false)
			if ctx.Err() != nil {
				return
			}
			if !r.setRenewing(false) {
				r.log.WithError(err).Warn("connection to the shim ended")
			}
			r.reapOrphans(ctx, true)
			if time.Since(began) > maxBackoff {
				backoff = minBackoff
			}
		}
		var err error
		if conn, err = r.connect(ctx); err == nil {
			continue
		}
		r.log.WithError(err).Error("no shim")
		select {
		case <-ctx.Done():
			return
		case <-time.After(backoff):
			backoff = min(2*backoff, maxBackoff)
		}
	}
}

// connect finds a living shim or starts one, and asks for all it holds.
func (r *Runtime) connect(ctx context.Context) (*net.UnixConn, error) {
	ctx, cancel := context.WithTimeout(ctx, shimStartLimit)
	defer cancel()
	for tries := 0; ; tries++ {
		c, err := r.send(ctx, request{Op: "watch"}, nil)
		if err == nil {
			return c, nil
		}
		switch {
		case ctx.Err() != nil || tries == maxTries:
			return nil, fmt.Errorf("connect to shim: %w", err)
		case errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET):
			continue // it took the connection and then re-executed itself
		case errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.ENOENT):
			// One that a daemon had started just before it died may have come
			// up meanwhile, and keeps ours from serving.
			if err := r.startShim(ctx); err != nil && tries > 0 {
				return nil, err
			}
		default:
			return nil, fmt.Errorf("connect to shim: %w", err)
		}
	}
}

// follow keeps the descriptor store and the exits up to date until the
// connection ends.
func (r *Runtime) follow(ctx context.Context, c *net.UnixConn) error {
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	known := map[string]bool{}
	for {
		var ev event
		files, err := wire.Read(c, &ev)
		if err != nil {
			return err
		}
		if id := r.put(ev.Put, files); known != nil {
			known[id] = true
		}
		for _, name := range ev.Drop {
			r.drop(name)
		}
		if ev.Exit != nil {
			r.addExit(*ev.Exit)
		}
		if ev.Synced {
			r.dropUnknown(known)
			known = nil
			r.reapOrphans(ctx, false)
			r.setLink(true)
		}
	}
}

// put stores all the descriptors of one container, in place of what there was
// of it: a name that is missing was closed meanwhile.
func (r *Runtime) put(names []string, files []*os.File) (id string) {
	if len(names) == 0 || len(files) != len(names) {
		wire.CloseAll(files)
		return ""
	}
	id, _, _ = strings.Cut(names[0], "/")
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closeFiles(id)
	for i, f := range files {
		r.files[names[i]] = f
	}
	return id
}

// dropUnknown forgets containers that were deleted while nobody listened.
func (r *Runtime) dropUnknown(known map[string]bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for name := range r.files {
		if id, _, _ := strings.Cut(name, "/"); !known[id] {
			r.closeFiles(id)
			delete(r.reaping, id)
		}
	}
	for id := range r.exitSeen {
		if !known[id] {
			delete(r.exitSeen, id)
		}
	}
}

// drop closes one descriptor, or all of a container, which is deleted then.
func (r *Runtime) drop(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closeFiles(name)
	delete(r.exitSeen, name)
	delete(r.reaping, name)
}

// closeFiles closes a descriptor or those of a container; r.mu is held.
func (r *Runtime) closeFiles(name string) {
	for key, f := range r.files {
		if key == name || strings.HasPrefix(key, name+"/") {
			f.Close()
			delete(r.files, key)
		}
	}
}

// startShim starts a shim and gives it the descriptors of the one before it.
// It returns when the new one listens.
func (r *Runtime) startShim(ctx context.Context) error {
	if err := os.MkdirAll(r.dir.shim(), 0o700); err != nil {
		return fmt.Errorf("make shim folder: %w", err)
	}
	log, err := openShimLog(r.dir.shimLog())
	if err != nil {
		return err
	}
	defer log.Close()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("make handover socket: %w", err)
	}
	theirs := os.NewFile(uintptr(fds[1]), "handover")
	defer theirs.Close()
	ours, err := unixConn(os.NewFile(uintptr(fds[0]), "handover"))
	if err != nil {
		return err
	}
	defer ours.Close()
	args := append(append([]string(nil), r.shimCommand[1:]...), "--handover-fd", "3")
	cmd := exec.Command(r.shimCommand[0], args...)
	cmd.Env = append(runtimeEnv, "GOTRACEBACK=single")
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := r.startChild(cmd); err != nil {
		return fmt.Errorf("start shim: %w", err)
	}
	theirs.Close()
	if err := r.handOver(ctx, ours); err != nil {
		return kind.Errorf(kind.Unavailable, "shim did not come up: %w: %s", err, tail(r.dir.shimLog()))
	}
	return nil
}

// handOver sends the descriptor store and waits for the shim to listen.
func (r *Runtime) handOver(ctx context.Context, c *net.UnixConn) error {
	if d, ok := ctx.Deadline(); ok {
		c.SetWriteDeadline(d)
	}
	var names []string
	var files []*os.File
	defer func() { wire.CloseAll(files) }()
	r.mu.Lock()
	for name, f := range r.files {
		if d, err := dup(f); err == nil {
			names, files = append(names, name), append(files, d)
		}
	}
	r.mu.Unlock()
	for i := 0; i < len(files); i += wire.MaxFiles {
		end := min(i+wire.MaxFiles, len(files))
		if err := wire.Write(c, handover{Names: names[i:end]}, files[i:end]...); err != nil {
			return err
		}
	}
	if err := wire.Write(c, handover{End: true}); err != nil {
		return err
	}
	_, got, err := receive(ctx, c)
	wire.CloseAll(got)
	if errors.Is(err, io.EOF) {
		return errShimGone
	}
	return err
}

// reapOrphans waits for the containers whose parent this process has become,
// because it started the shim that died. Those of another parent are left to
// that and to the kernel's own record (package pidfd). The kernel closes a dying
// shim's connections before it gives its children away: all says that they may
// still become ours.
func (r *Runtime) reapOrphans(ctx context.Context, all bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for name, f := range r.files {
		id, ok := strings.CutSuffix(name, "/"+filePidfd)
		if !ok || r.reaping[id] || !all && !pidfd.IsChild(f) {
			continue
		}
		d, err := dup(f) // a later shim replaces the one in the store
		if err != nil {
			continue
		}
		r.reaping[id] = true
		r.work.Go(func() {
			stop := context.AfterFunc(ctx, func() { d.Close() })
			defer stop()
			defer d.Close()
			r.reapOrphan(id, d)
		})
	}
}

func (r *Runtime) reapOrphan(id string, f *os.File) {
	if pidfd.Wait(f) != nil {
		return // this process ends
	}
	code, err := pidfd.Code(f)
	if err != nil {
		return // not our child
	}
	if _, err := saveExit(r.dir, Exit{ID: id, Code: code, At: time.Now()}); err != nil {
		r.log.WithError(err).WithField("container", id).Error("exit is not recorded")
	}
	if _, err := pidfd.Reap(f); err != nil && !errors.Is(err, unix.ECHILD) {
		r.log.WithError(err).WithField("container", id).Warn("collect exit status")
	}
	r.lookForOrphans()
}

func openShimLog(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open shim log: %w", err)
	}
	if st, err := f.Stat(); err == nil && st.Size() > maxShimLog {
		f.Truncate(0) // the old is worth less than the disk
	}
	return f, nil
}

// tail returns the end of a small file, for an error message.
func tail(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(data[max(0, len(data)-1024):]))
}
