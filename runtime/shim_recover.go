package runtime

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"noded.dev/noded/runtime/pidfd"
)

// recover takes over the containers of an earlier shim. inherited.files are
// their descriptors as far as somebody kept them; what is missing is opened by
// path and pid. A container that cannot be taken over is reported and left as
// it is, for its Delete.
func (s *shim) recover(in *inheritance) error {
	entries, err := os.ReadDir(s.dir.shim())
	if err != nil {
		return fmt.Errorf("list containers: %w", err)
	}
	for _, d := range entries {
		if !d.IsDir() {
			continue
		}
		if err := s.adopt(d.Name(), in.take(d.Name())); err != nil {
			s.log.WithError(err).WithField("container", d.Name()).Error("container is not taken over whole")
		}
	}
	if !in.resumed {
		s.killOrphans()
	}
	s.resumeSessions(in) // before any output moves, or attached clients miss it
	in.closeRest()
	for _, c := range s.containers {
		c.run()
	}
	return nil
}

func (s *shim) adopt(id string, files map[string]*os.File) error {
	c := s.find(id, true)
	c.files = files
	data, err := os.ReadFile(c.path("record.json"))
	if err == nil {
		err = json.Unmarshal(data, &c.record)
	}
	if err != nil || !c.record.Created {
		// Half-made: the create that is repeated, or the delete, removes it.
		s.forget(c)
		for _, f := range files {
			f.Close()
		}
		return err
	}
	// The process first: whatever else fails, its end must be seen.
	err = c.reopenFiles()
	for _, e := range c.record.Entries {
		err = errors.Join(err, s.table.Claim(e))
	}
	if err == nil {
		err = c.openLog()
	}
	if err == nil {
		err = c.adoptStreams()
	}
	return err
}

func (c *container) reopenFiles() error {
	if c.files[filePidfd] == nil && c.record.BootID == bootID() {
		// Another process with that pid, or none, is no error: it has ended.
		if f, err := pidfd.OpenProcess(c.record.Process.Pid, c.record.Process.StartTime); err == nil {
			c.files[filePidfd] = f
		}
	}
	if c.files[filePidfd] != nil {
		c.s.reaper.keep(c.record.Process.Pid)
	}
	req := c.record.Request
	if req.Terminal {
		return nil // a terminal has no path: without its master its session has ended
	}
	for _, name := range outputs {
		if c.files[name] == nil {
			f, err := openFile(c.path(name), unix.O_RDONLY|unix.O_NONBLOCK)
			if err != nil {
				return err
			}
			c.files[name] = f
		}
	}
	if req.StdinOnce && !c.record.StdinClosed && c.files[fileStdin] == nil {
		// ENXIO: the container has closed it.
		if f, err := openFile(c.path("stdin"), unix.O_WRONLY|unix.O_NONBLOCK); err == nil {
			c.files[fileStdin] = f
		}
	}
	return nil
}

// adoptStreams is openStreams, except for a terminal that is gone.
func (c *container) adoptStreams() error {
	if c.record.Request.Terminal && c.files[filePty] == nil {
		return nil
	}
	return c.openStreams()
}

var bootID = sync.OnceValue(func() string {
	data, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(data))
})

// inheritance is what a shim gets from the one before it: from its own earlier
// self by re-execution, or from the daemon that kept copies.
type inheritance struct {
	lock     *os.File
	socket   *net.UnixListener
	files    map[string]*os.File // "<container>/<name>"
	sessions []sessionRecord
	resumed  bool // by re-execution: nothing was lost
}

// take removes and returns the descriptors of a container by name.
func (in *inheritance) take(id string) map[string]*os.File {
	files := map[string]*os.File{}
	for name, f := range in.files {
		dir, base := filepath.Split(name)
		if dir == id+"/" {
			files[base] = f
			delete(in.files, name)
		}
	}
	return files
}

func (in *inheritance) closeRest() {
	for name, f := range in.files {
		f.Close()
		delete(in.files, name)
	}
}
