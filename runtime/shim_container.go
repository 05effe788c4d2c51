package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	rspec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"noded.dev/noded/internal/atomicfile"
	"noded.dev/noded/internal/kind"
	"noded.dev/noded/runtime/containerlog"
	"noded.dev/noded/runtime/pidfd"
)

// The names of a container's descriptors, as the shim and the daemon hold them.
const (
	filePidfd   = "pidfd"
	fileStdin   = "stdin"    // write end, only for StdinOnce; see openStdin
	filePty     = "pty"      // master
	filePtyPipe = "pty-pipe" // +"-r", "-w": see containerlog.Stream
)

// container is what the shim holds of one container.
//
//	creating --runtime create--> created --process ends--> ended
//	    |                           |                        |
//	    +----------- delete --------+------------------------+--> gone
//
// Start is the runtime's affair; to the shim a created container runs.
type container struct {
	s   *shim
	id  string
	dir string
	op  chan struct{} // held during create, start, update and delete

	mu       sync.Mutex
	record   record
	files    map[string]*os.File
	streams  []*containerlog.Stream
	log      *containerlog.Log
	exit     *Exit
	deleting bool

	template    *template // of execs; nil before the first, and some time after the last
	templateEnd *time.Timer

	exited  chan struct{} // closed once exit is set and told
	gone    chan struct{} // closed by delete
	running sync.WaitGroup
}

// record is what another shim needs to take the container over.
type record struct {
	Version     int
	Request     CreateRequest
	Created     bool // the runtime's create has succeeded
	Process     Process
	BootID      string
	Entries     []int // in the stream table: stdout, stderr
	StdinClosed bool  `json:",omitempty"`
}

const recordVersion = 1

func (c *container) save() error {
	data, err := json.Marshal(c.record)
	if err != nil {
		return fmt.Errorf("encode record: %w", err)
	}
	return atomicfile.Write(filepath.Join(c.dir, "record.json"), data, 0o600)
}

func (c *container) path(name string) string { return filepath.Join(c.dir, name) }

// acquire waits for the container's other operations.
func (c *container) acquire(ctx context.Context) error {
	select {
	case c.op <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for another operation on container %s: %w", c.id, ctx.Err())
	}
}

func (c *container) release() { <-c.op }

// find returns a container, or a new one that is not created yet if add.
func (s *shim) find(id string, add bool) *container {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.containers[id]
	if c == nil && add {
		c = &container{
			s: s, id: id, dir: s.dir.container(id), op: make(chan struct{}, 1),
			files: map[string]*os.File{}, exited: make(chan struct{}), gone: make(chan struct{}),
		}
		s.containers[id] = c
	}
	return c
}

func (s *shim) forget(c *container) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.containers[c.id] == c {
		delete(s.containers, c.id)
	}
}

func (s *shim) lookup(id string) (*container, error) {
	if c := s.find(id, false); c != nil && c.created() {
		return c, nil
	}
	return nil, kind.Errorf(kind.NotFound, "the shim has no container %s", id)
}

func (c *container) created() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.record.Created && !c.deleting
}

func (s *shim) withContainer(ctx context.Context, id string, do func(*container) error) error {
	c, err := s.lookup(id)
	if err != nil {
		return err
	}
	if err := c.acquire(ctx); err != nil {
		return err
	}
	defer c.release()
	if !c.created() {
		return kind.Errorf(kind.NotFound, "container %s is being deleted", id)
	}
	return do(c)
}

// create is repeatable: for a container that was created from the same request
// it returns the process; what an earlier attempt left half-made it removes.
func (s *shim) create(ctx context.Context, req *CreateRequest) (Process, error) {
	if req == nil {
		return Process{}, kind.Errorf(kind.Invalid, "create without a request")
	}
	if err := checkID(req.ID); err != nil {
		return Process{}, err
	}
	c := s.find(req.ID, true)
	if err := c.acquire(ctx); err != nil {
		return Process{}, err
	}
	defer c.release()
	if c.created() {
		if c.record.Request != *req {
			return Process{}, kind.Errorf(kind.Exists, "container %s exists with another request", req.ID)
		}
		return c.record.Process, nil
	}
	if c.s.find(c.id, true) != c { // deleted while we waited
		return Process{}, kind.Errorf(kind.Unavailable, "container %s was being deleted", req.ID)
	}
	if err := c.make(ctx, *req); err != nil {
		undo, cancel := cleanUp(ctx)
		defer cancel()
		return Process{}, errors.Join(err, c.destroy(undo, *req))
	}
	return c.record.Process, nil
}

func (c *container) make(ctx context.Context, req CreateRequest) error {
	if _, err := os.Lstat(c.dir); err == nil {
		if err := c.s.killCgroup(ctx, req); err != nil {
			return fmt.Errorf("remove an earlier attempt: %w", err)
		}
		if err := c.s.runtimeDelete(ctx, req, false); err != nil {
			return fmt.Errorf("remove an earlier attempt: %w", err)
		}
		if err := removeAll(c.dir); err != nil {
			return err
		}
	}
	if err := os.Mkdir(c.dir, 0o700); err != nil {
		return fmt.Errorf("make container folder: %w", err)
	}
	c.mu.Lock()
	c.record = record{Version: recordVersion, Request: req, BootID: bootID()}
	err := c.save()
	c.mu.Unlock()
	if err != nil {
		return err
	}
	if err := c.openLog(); err != nil {
		return err
	}
	stdio, err := c.makeStdio()
	if err != nil {
		return err
	}
	err = c.s.reaper.spawn(func() error { return c.runCreate(ctx, req, stdio) })
	stdio.close()
	if err != nil {
		return err
	}
	if err := c.openStreams(); err != nil {
		return err
	}
	c.mu.Lock()
	c.record.Created = true
	err = c.save()
	c.mu.Unlock()
	if err != nil {
		return err
	}
	c.run()
	c.s.tellPut(c)
	return nil
}

// killCgroup ends what a create that was cut off may have left: processes of
// which the runtime has no state yet, so that its delete would not find them.
func (s *shim) killCgroup(ctx context.Context, req CreateRequest) error {
	if s.cgroups == nil || req.CgroupsDir == "" {
		return nil
	}
	return s.cgroups.Kill(ctx, s.cgroups.Dir(req.CgroupsDir))
}

// runCreate calls the runtime and opens the pidfd. The process is blocked until
// start and our child, so its pid cannot be another's in between.
func (c *container) runCreate(ctx context.Context, req CreateRequest, stdio *stdio) error {
	pidFile := c.path("pid")
	args := []string{"--bundle", req.Bundle, "--pid-file", pidFile}
	if req.Terminal {
		args = append(args, "--console-socket", stdio.consolePath)
	}
	cmd, err := c.createCommand(req, append(args, req.ID))
	if err != nil {
		return err
	}
	cmd.stdio = stdio.child
	if err := c.s.run(ctx, cmd); err != nil {
		return err
	}
	pid, err := readPid(pidFile)
	if err != nil {
		return err
	}
	start, err := pidfd.StartTime(pid)
	if err != nil {
		return kind.Wrap(kind.Aborted, err)
	}
	f, err := pidfd.Open(pid)
	if err != nil {
		return err
	}
	c.s.reaper.keep(pid)
	c.mu.Lock()
	c.files[filePidfd] = f
	c.record.Process = Process{Pid: pid, StartTime: start}
	c.mu.Unlock()
	if !req.Terminal {
		return nil
	}
	pty, err := receiveConsole(ctx, stdio.console)
	if err != nil {
		return err
	}
	c.setFile(filePty, pty)
	return nil
}

func (c *container) createCommand(req CreateRequest, args []string) (command, error) {
	if req.Restore.Images != "" {
		return c.restoreCommand(req, args)
	}
	said := c.absorb()
	return command{handler: req.Runtime, dir: c.dir, args: append([]string{"create"}, args...), said: said.end}, nil
}

func readPid(path string) (int, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, kind.Errorf(kind.Aborted, "the runtime wrote no pid: %w", err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil || pid <= 1 {
		return 0, kind.Errorf(kind.Aborted, "the runtime wrote the pid %.20q", data)
	}
	return pid, nil
}

func (c *container) start(ctx context.Context) error {
	req := c.record.Request
	// It goes on without its caller: cut off after it let the process go, it
	// leaves a state in which a repeated one waits for that process for ever.
	ctx, cancel := cleanUp(ctx)
	defer cancel()
	err := c.s.reaper.spawn(func() error {
		return c.s.run(ctx, command{handler: req.Runtime, dir: c.dir, args: []string{"start", c.id}})
	})
	if err != nil && ctx.Err() == nil && c.s.status(ctx, req) == "running" {
		return nil // a repeated start, whose first attempt another shim did not live to report
	}
	return err
}

// status asks the runtime for a container's state; "" if it does not say. It
// is for the one case where the shim itself cannot know.
func (s *shim) status(ctx context.Context, req CreateRequest) string {
	var out []byte
	err := s.reaper.spawn(func() (err error) {
		out, err = runtimeOutput(ctx, req.Runtime, "state", req.ID)
		return err
	})
	var state struct{ Status string }
	if err != nil || json.Unmarshal(out, &state) != nil {
		return ""
	}
	return state.Status
}

func (c *container) update(ctx context.Context, r *rspec.LinuxResources) error {
	data, err := json.Marshal(r)
	if err != nil {
		return kind.Errorf(kind.Invalid, "encode resources: %w", err)
	}
	req := c.record.Request
	return c.s.reaper.spawn(func() error {
		return c.s.run(ctx, command{handler: req.Runtime, dir: c.dir, args: []string{"update", "--resources", "-", c.id}, stdin: data})
	})
}

func (s *shim) signal(id string, sig int) error {
	c, err := s.lookup(id)
	if err != nil {
		return err
	}
	c.mu.Lock()
	f := c.files[filePidfd]
	c.mu.Unlock()
	return signalProcess(f, id, sig)
}

func signalProcess(f *os.File, id string, sig int) error {
	if f == nil {
		return kind.Errorf(kind.NotFound, "container %s has ended", id)
	}
	// Asked before, as the signal may end it. The kernel takes signals for a
	// process that has ended and is not waited for yet.
	ended := pidfd.Ended(f)
	err := pidfd.Signal(f, sig)
	switch {
	case ended || errors.Is(err, os.ErrProcessDone) || errors.Is(err, os.ErrClosed):
		return kind.Errorf(kind.NotFound, "container %s has ended", id)
	case errors.Is(err, unix.EINVAL):
		return kind.Errorf(kind.Invalid, "signal %d: %w", sig, err)
	case err != nil:
		return fmt.Errorf("signal container %s: %w", id, err)
	}
	return nil
}

func (s *shim) reopen(id string) error {
	c, err := s.lookup(id)
	if err != nil {
		return err
	}
	c.mu.Lock()
	l := c.log
	c.mu.Unlock()
	if l == nil {
		return kind.Errorf(kind.Precondition, "container %s has no log", id)
	}
	return l.Reopen()
}

func (s *shim) states() []State {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []State
	for _, c := range s.containers {
		c.mu.Lock()
		if c.record.Created && !c.deleting {
			list = append(list, State{ID: c.id, Process: c.record.Process, Exit: c.exit})
		}
		c.mu.Unlock()
	}
	return list
}
