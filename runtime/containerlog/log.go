package containerlog

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"noded.dev/noded/internal/kind"
)

// Log is one container's log file, which its streams share. The shim is its
// only writer.
type Log struct {
	path    string
	dropped atomic.Uint64

	mu  sync.Mutex // held over a whole append, so that its offset stays true
	fd  int
	dev uint64
	ino uint64
}

// OpenLog opens the log at path for appending and makes it (mode 0640) if
// there is none. The last element of path must not be a symbolic link, and it
// must be a regular file: its folder may be writable by others.
func OpenLog(path string) (*Log, error) {
	l := &Log{path: path, fd: -1}
	fd, st, err := openAppend(path)
	if err != nil {
		return nil, err
	}
	l.fd, l.dev, l.ino = fd, st.Dev, st.Ino
	return l, nil
}

func openAppend(path string) (int, unix.Stat_t, error) {
	var st unix.Stat_t
	// O_NONBLOCK: a FIFO in this place must fail, not wait for a reader.
	flags := unix.O_WRONLY | unix.O_APPEND | unix.O_CREAT | unix.O_NOFOLLOW | unix.O_CLOEXEC | unix.O_NONBLOCK
	fd, err := unix.Open(path, flags, 0o640)
	if err != nil {
		return -1, st, kind.Errorf(kind.Precondition, "open log %s: %w", path, err)
	}
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return -1, st, fmt.Errorf("stat log %s: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		unix.Close(fd)
		return -1, st, kind.Errorf(kind.Precondition, "log %s is not a regular file", path)
	}
	return fd, st, nil
}

// Reopen makes the file at the log's path anew (or opens the one that is
// there) and writes to it from the next record on. If it fails, no file was
// made and the old one stays in use.
func (l *Log) Reopen() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	fd, st, err := openAppend(l.path)
	if err != nil {
		return err
	}
	old := l.fd
	l.fd, l.dev, l.ino = fd, st.Dev, st.Ino
	unix.Close(old)
	return nil
}

// Dropped is the number of output bytes that could not be logged, because of a
// full disk for example.
func (l *Log) Dropped() uint64 { return l.dropped.Load() }

// Close closes the file.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fd < 0 {
		return nil
	}
	err := unix.Close(l.fd)
	l.fd = -1
	return err
}

// append writes data's records and moves e from idle over writing to done. A
// chunk that the disk does not take is taken back and counted as dropped: a
// full disk must not stop a container.
func (l *Log) append(e *entry, r *renderer, stamp int64, stream string, data []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var st unix.Stat_t
	if err := unix.Fstat(l.fd, &st); err != nil {
		return fmt.Errorf("stat log: %w", err)
	}
	e.offset, e.stamp, e.dev, e.ino = st.Size, stamp, l.dev, l.ino
	e.phase.Store(phaseWriting)
	r.skip = 0
	err := l.write(l.fd, r, e, stream, data)
	e.phase.Store(phaseDone)
	return err
}

// resume finishes a write that the death of another shim cut off.
func (l *Log) resume(e *entry, r *renderer, stream string, data []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	fd := l.fd
	if e.dev != l.dev || e.ino != l.ino {
		// The file was rotated before the crash and is now beside the path. If
		// it is gone for good, its records are too: start over in the new one.
		if old := findInode(filepath.Dir(l.path), e.dev, e.ino); old >= 0 {
			defer unix.Close(old)
			fd = old
		}
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("stat log: %w", err)
	}
	if st.Dev != e.dev || st.Ino != e.ino {
		e.offset, e.dev, e.ino = st.Size, st.Dev, st.Ino
	}
	r.skip = max(0, st.Size-e.offset)
	err := l.write(fd, r, e, stream, data)
	e.phase.Store(phaseDone)
	return err
}

// write appends what r does not skip.
func (l *Log) write(fd int, r *renderer, e *entry, stream string, data []byte) error {
	r.writer = func(p []byte) error { return writeAll(fd, p) }
	err := r.render(e.stamp, stream, data)
	if err != nil {
		l.dropped.Add(uint64(len(data)))
		unix.Ftruncate(fd, e.offset) // half a record would spoil the next one; if this fails too, it does
		return fmt.Errorf("write log: %w", err)
	}
	return nil
}

func writeAll(fd int, p []byte) error {
	for len(p) > 0 {
		n, err := unix.Write(fd, p)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

// findInode opens the file in dir that has this identity, for appending; -1 if
// there is none.
func findInode(dir string, dev, ino uint64) int {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return -1
	}
	for _, d := range entries {
		fd, err := unix.Open(filepath.Join(dir, d.Name()), unix.O_WRONLY|unix.O_APPEND|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			continue
		}
		var st unix.Stat_t
		if unix.Fstat(fd, &st) == nil && st.Dev == dev && st.Ino == ino && st.Mode&unix.S_IFMT == unix.S_IFREG {
			return fd
		}
		unix.Close(fd)
	}
	return -1
}
