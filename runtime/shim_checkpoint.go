package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"noded.dev/noded/internal/atomicfile"
	"noded.dev/noded/internal/kind"
	"noded.dev/noded/runtime/criu"
	"noded.dev/noded/runtime/wire"
)

const (
	// freezeLimit bounds the wait for all processes of a container to stop.
	freezeLimit = 10 * time.Second
	// abortLimit is how long the runtime of a dump that gives up may take.
	abortLimit = criu.Patience + time.Second
)

// stdioFile lies among CRIU's images and names the container's standard
// streams in them, "" where there is nothing to name.
const stdioFile = "noded-stdio.json"

// freezeCall holds containers frozen for as long as the client stays connected
// and does not close its sending half: so they go on if the daemon dies.
func (s *shim) freezeCall(ctx context.Context, conn *net.UnixConn, req request) {
	defer s.end()
	limit := defaultTimeout
	if req.TimeoutMS > 0 {
		limit = time.Duration(req.TimeoutMS) * time.Millisecond
	}
	until := time.Now().Add(limit)
	err := s.freeze(ctx, req.IDs, until)
	if err != nil {
		err = errors.Join(err, s.thaw(ctx, req.IDs))
		wire.Write(conn, reply{V: protocolVersion, Error: toWire(err)})
		return
	}
	wire.Write(conn, reply{V: protocolVersion}) // a client that is gone is noticed below
	conn.SetReadDeadline(until)
	var b [1]byte
	_, err = conn.Read(b[:])
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = kind.Errorf(kind.Deadline, "the containers were thawed after %v", limit)
	} else {
		err = nil
	}
	err = errors.Join(err, s.thaw(ctx, req.IDs))
	wire.Write(conn, reply{V: protocolVersion, Error: toWire(err)})
}

func (s *shim) freeze(ctx context.Context, ids []string, until time.Time) error {
	if s.cgroups == nil {
		return kind.Errorf(kind.Precondition, "the cgroups of this node are not known")
	}
	ctx, cancel := context.WithDeadline(ctx, until)
	defer cancel()
	for _, id := range ids {
		c, err := s.lookup(id)
		if err != nil {
			return err
		}
		dir := s.cgroups.Dir(c.record.Request.CgroupsDir)
		if frozen, err := s.cgroups.Frozen(dir); err != nil || frozen {
			return kind.Errorf(kind.Precondition, "container %s is paused already: %w", id, err)
		}
		limit, cancel := context.WithTimeout(ctx, freezeLimit)
		err = s.cgroups.Freeze(limit, dir)
		cancel()
		if err != nil {
			return err
		}
	}
	return nil
}

// thaw lets containers go on. It waits for dumps under way, which would freeze
// them again at their end.
func (s *shim) thaw(ctx context.Context, ids []string) error {
	if s.cgroups == nil {
		return nil
	}
	ctx, cancel := cleanUp(ctx)
	defer cancel()
	var errs []error
	for _, id := range ids {
		c := s.find(id, false)
		if c == nil {
			continue // it is gone, and its cgroup with it
		}
		if err := c.acquire(ctx); err != nil {
			errs = append(errs, err)
			continue
		}
		errs = append(errs, s.cgroups.Thaw(s.cgroups.Dir(c.record.Request.CgroupsDir)))
		c.release()
	}
	return errors.Join(errs...)
}

// checkpoint dumps the container's processes into a folder.
func (c *container) checkpoint(ctx context.Context, to *Restore) error {
	if to == nil || !filepath.IsAbs(to.Images) || !filepath.IsAbs(to.Criu) {
		return kind.Errorf(kind.Invalid, "checkpoint without a folder or a criu")
	}
	stdio, all, err := c.stdioFiles()
	if err != nil {
		return err
	}
	data, err := json.Marshal(stdio)
	if err != nil {
		return fmt.Errorf("encode streams: %w", err)
	}
	conf := c.path("criu.conf")
	err = errors.Join(os.WriteFile(conf, criu.DumpOptions(all), 0o600),
		os.WriteFile(filepath.Join(to.Images, stdioFile), data, 0o600))
	if err != nil {
		return fmt.Errorf("prepare checkpoint: %w", err)
	}
	cmd := command{
		handler: c.record.Request.Runtime, dir: c.dir, env: criu.Environment(to.Criu, conf),
		args: []string{"checkpoint", "--image-path", to.Images, "--work-path", to.Images, "--leave-running",
			"--tcp-established", "--tcp-skip-in-flight", "--file-locks", c.id},
		abort:   func() error { return criu.Abort(to.Images) },
		explain: func() string { return criu.Complaints(filepath.Join(to.Images, "dump.log")) },
	}
	err = c.s.reaper.spawn(func() error { return c.s.run(ctx, cmd) })
	end, cancel := cleanUp(ctx)
	defer cancel()
	// A runtime that was killed leaves its criu behind.
	return errors.Join(err, criu.AwaitEnd(end, to.Images))
}

// stdioFiles names the container's FIFOs as CRIU will see them: by the mount
// that they were opened through and their inodes. all may have several names
// of one: the shim before may have seen the mount by another number.
func (c *container) stdioFiles() (stdio, all []criu.File, err error) {
	stdio = make([]criu.File, 3)
	if c.record.Request.Terminal {
		return stdio, nil, nil // inside of the container; CRIU asks for the master
	}
	for fd, name := range []string{"stdin", "stdout", "stderr"} {
		var st unix.Statx_t
		err := unix.Statx(unix.AT_FDCWD, c.path(name), unix.AT_SYMLINK_NOFOLLOW, unix.STATX_INO|unix.STATX_MNT_ID, &st)
		if errors.Is(err, unix.ENOENT) {
			continue // no standard input
		}
		if err != nil {
			return nil, nil, fmt.Errorf("find %s: %w", name, err)
		}
		stdio[fd] = criu.FileOf(st.Mnt_id, st.Ino)
		all = append(all, stdio[fd])
	}
	return stdio, all, nil
}

// restoreCommand has the runtime make the container from images. Its process
// runs at once, and its output is its own from the first byte.
func (c *container) restoreCommand(req CreateRequest, args []string) (command, error) {
	from := req.Restore
	var stdio []criu.File
	data, err := os.ReadFile(filepath.Join(from.Images, stdioFile))
	if err == nil {
		err = json.Unmarshal(data, &stdio)
	}
	if err != nil || len(stdio) > 3 || slices.ContainsFunc(stdio, func(f criu.File) bool { return f != "" && !f.Valid() }) {
		return command{}, kind.Errorf(kind.Invalid, "the checkpoint names no standard streams: %w", err)
	}
	conf, work := c.path("criu.conf"), c.path("criu")
	if err := errors.Join(os.Mkdir(work, 0o700), atomicfile.Write(conf, criu.RestoreOptions(stdio), 0o600)); err != nil {
		return command{}, fmt.Errorf("prepare restore: %w", err)
	}
	return command{
		handler: req.Runtime, dir: c.dir, env: criu.Environment(from.Criu, conf),
		args:    append([]string{"restore", "--detach", "--image-path", from.Images, "--work-path", work, "--file-locks"}, args...),
		explain: func() string { return criu.Complaints(filepath.Join(work, "restore.log")) },
	}, nil
}
