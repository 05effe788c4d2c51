package nsexec

import (
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// files are descriptors for the child. All are above those that the child's
// streams will have, so that setting one never overwrites another, and all are
// closed on exec in this process's other children.
type files struct{ list []int }

const firstFD = 10

func (f *files) open(name string, flags int) (int, error) {
	fd, err := unix.Open(name, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: name, Err: err}
	}
	if fd >= firstFD {
		f.list = append(f.list, fd)
		return fd, nil
	}
	defer unix.Close(fd)
	return f.dup(fd)
}

func (f *files) dup(fd int) (int, error) {
	up, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, firstFD)
	if err != nil {
		return -1, fmt.Errorf("duplicate descriptor: %w", err)
	}
	f.list = append(f.list, up)
	return up, nil
}

// dupFile leaves the file's mode alone, which os.File.Fd may not.
func (f *files) dupFile(file *os.File) (int, error) {
	conn, err := file.SyscallConn()
	if err != nil {
		return -1, err
	}
	up := -1
	if ctlErr := conn.Control(func(fd uintptr) { up, err = f.dup(int(fd)) }); ctlErr != nil {
		return -1, ctlErr
	}
	return up, err
}

func (f *files) closeOne(fd int) {
	if i := slices.Index(f.list, fd); i >= 0 {
		unix.Close(fd)
		f.list = slices.Delete(f.list, i, i+1)
	}
}

func (f *files) close() {
	for _, fd := range f.list {
		unix.Close(fd)
	}
	f.list = nil
}
