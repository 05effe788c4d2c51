package containerlog

import (
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"noded.dev/noded/internal/kind"
)

// MaxStreams bounds the streams of one node: two for each container.
const MaxStreams = 16384

// The phases of a stream's spool; see the drawing at Stream.
const (
	phaseIdle    uint32 = iota // spool content, if any, is not in the log yet
	phaseWriting               // it is being appended to the log at offset
	phaseDone                  // it is in the log
)

// entry is one stream's place in the table, 64 bytes in a shared mapping. The
// other fields are valid when phase says so, and are set before it.
type entry struct {
	phase  atomic.Uint32
	_      uint32
	offset int64  // log size before the write
	stamp  int64  // time of the records, nanoseconds since 1970
	dev    uint64 // the log file written to: a rotation may rename it
	ino    uint64
	_      [3]uint64
}

// Table keeps the phases of all streams in one mapped file. A store to it is
// one instruction and outlives the process, as the page belongs to the file.
type Table struct {
	mu     sync.Mutex
	mem    []byte
	used   []bool
	lowest int // no free entry is below
}

// OpenTable maps the table at path, and makes it if there is none.
func OpenTable(path string) (*Table, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open stream table: %w", err)
	}
	defer f.Close()
	size := MaxStreams * int(unsafe.Sizeof(entry{}))
	if err := f.Truncate(int64(size)); err != nil {
		return nil, fmt.Errorf("size stream table: %w", err)
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map stream table: %w", err)
	}
	return &Table{mem: mem, used: make([]bool, MaxStreams)}, nil
}

// Close unmaps the table. No stream may use it any more.
func (t *Table) Close() error { return unix.Munmap(t.mem) }

// Alloc takes a free entry and resets it.
func (t *Table) Alloc() (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := t.lowest; i < MaxStreams; i++ {
		if !t.used[i] {
			t.used[i], t.lowest = true, i+1
			t.at(i).phase.Store(phaseIdle)
			return i, nil
		}
	}
	return 0, kind.Errorf(kind.Exhausted, "more than %d container streams on this node", MaxStreams)
}

// Claim marks an entry that a record of an earlier process names as used.
func (t *Table) Claim(i int) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if i < 0 || i >= MaxStreams || t.used[i] {
		return fmt.Errorf("stream entry %d is out of range or taken", i)
	}
	t.used[i] = true
	return nil
}

// Free gives an entry back.
func (t *Table) Free(i int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.used[i] = false
	t.lowest = min(t.lowest, i)
}

func (t *Table) at(i int) *entry {
	return (*entry)(unsafe.Pointer(&t.mem[i*int(unsafe.Sizeof(entry{}))]))
}
