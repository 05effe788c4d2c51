package runtime

import (
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// absorber takes what an OCI runtime prints to the streams of a container that
// it creates. It is not the container's output, which begins with start; and a
// runtime that nobody read from would wait for ever.
type absorber struct {
	files []*os.File
	work  sync.WaitGroup
	mu    sync.Mutex
	text  capped
}

func (c *container) absorb() *absorber {
	a := &absorber{}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, name := range outputs {
		if f := c.files[name]; f != nil {
			a.files = append(a.files, f)
			a.work.Go(func() { a.read(f) })
		}
	}
	return a
}

func (a *absorber) read(f *os.File) {
	buf := make([]byte, 4<<10)
	for {
		n, err := f.Read(buf)
		a.keep(buf[:n])
		if err != nil {
			break // the deadline that end sets
		}
	}
	rc, err := f.SyscallConn()
	if err != nil {
		return
	}
	rc.Control(func(fd uintptr) {
		for {
			n, err := unix.Read(int(fd), buf)
			if err == unix.EINTR {
				continue
			}
			if err != nil || n <= 0 {
				return
			}
			a.keep(buf[:n])
		}
	})
}

func (a *absorber) keep(p []byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.text.Write(p)
}

// end stops reading and returns the beginning of what was read.
func (a *absorber) end() string {
	for _, f := range a.files {
		f.SetReadDeadline(time.Unix(1, 0))
	}
	a.work.Wait()
	for _, f := range a.files {
		f.SetReadDeadline(time.Time{})
	}
	return strings.TrimSpace(a.text.String())
}
