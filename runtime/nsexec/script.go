package nsexec

import (
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// reportFD is where the child has its end of the report pipe.
const reportFD = 3

// syscallOp is one system call of the child. All that the child does between
// fork and exec is a list of these, made before the fork: the child runs with
// one thread of a runtime that expects several, so it must not run Go code.
type syscallOp struct {
	nr       uintptr
	args     [5]uintptr
	text     *byte  // what opAbsolute looks at
	tolerate uint64 // bit n: errno n is no failure
	step     uint32 // index into the script's names
	flags    uint32
}

const (
	opSave  = 1 << iota // keep the result, a descriptor, for opUse
	opUse               // the first argument is the kept descriptor
	opFirst             // its failure makes the opSecond call happen
	opSecond
	opAbsolute // the text must begin with a slash afterwards
	opExec     // one of several tries: EACCES counts more than others
)

// script collects calls and keeps alive what they point to.
type script struct {
	calls []syscallOp
	names []string
	pins  runtime.Pinner
}

// newScript has room for a container with a terminal and most settings.
func newScript() *script {
	return &script{calls: make([]syscallOp, 0, 256), names: make([]string, 0, 48)}
}

// step names the calls that follow, in errors.
func (s *script) step(name string) { s.names = append(s.names, name) }

// call adds a call, and returns it to be refined before the next one is added.
func (s *script) call(nr uintptr, args ...uintptr) *syscallOp {
	op := syscallOp{nr: nr, step: uint32(len(s.names) - 1)}
	copy(op.args[:], args)
	s.calls = append(s.calls, op)
	return &s.calls[len(s.calls)-1]
}

func (o *syscallOp) allow(list ...syscall.Errno) *syscallOp {
	for _, e := range list {
		o.tolerate |= 1 << e
	}
	return o
}

func (o *syscallOp) with(flags uint32) *syscallOp {
	o.flags |= flags
	return o
}

// prctl is prctl(2), which wants its unused arguments to be zero.
func (s *script) prctl(option int, args ...uintptr) *syscallOp {
	return s.call(unix.SYS_PRCTL, append([]uintptr{uintptr(option)}, args...)...)
}

// writeTo writes a text to a file beneath a directory.
func (s *script) writeTo(dir int, file, text string) (open, write *syscallOp) {
	s.call(unix.SYS_OPENAT, uintptr(dir), s.text(file), unix.O_WRONLY|unix.O_CLOEXEC).with(opSave)
	s.call(unix.SYS_WRITE, 0, s.text(text), uintptr(len(text))).with(opUse)
	n := len(s.calls)
	return &s.calls[n-2], &s.calls[n-1]
}

// text pins a NUL-terminated copy of a string and gives its address.
func (s *script) text(t string) uintptr {
	b := append([]byte(t), 0)
	return address(s, &b[0])
}

// texts pins an array of strings as execve(2) takes it.
func (s *script) texts(list []string) uintptr {
	array := make([]uintptr, len(list)+1)
	for i, t := range list {
		array[i] = s.text(t)
	}
	return address(s, &array[0])
}

// address pins what is on the heap at p until the script is released. A pinned
// object neither moves nor is freed, so its number stays good.
func address[T any](s *script, p *T) uintptr {
	s.pins.Pin(p)
	return uintptr(unsafe.Pointer(p))
}

func (s *script) release() { s.pins.Unpin() }
