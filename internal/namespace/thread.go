package namespace

import (
	"errors"
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"

	"noded.dev/noded/internal/kind"
)

// Do runs f on a thread of its own in the network namespace at path and waits
// for it. Sockets that f opens stay in that namespace. f must not start
// goroutines that need it: they run elsewhere. Kind NotFound if there is no
// namespace at path.
func Do(path string, f func() error) error {
	return OnThread(func() error {
		if err := enter(path, unix.CLONE_NEWNET); err != nil {
			return err
		}
		return f()
	})
}

// OnThread runs f on a thread that ends afterwards, so that f may change the
// thread's namespaces. f must not start goroutines that need them. The Go runtime ends a thread whose goroutine returns
// locked to it, and starts no thread from a locked one.
func OnThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked, see above
		if unix.Gettid() == unix.Getpid() {
			// The process's first thread cannot end: it would stay in the pod's
			// namespaces, and /proc/<pid>/ns would show them as this process's.
			// While it is locked here, another goroutine gets another thread.
			done <- OnThread(f)
			runtime.UnlockOSThread()
			return
		}
		done <- f()
	}()
	return <-done
}

// enter moves the calling thread into the namespace at path.
func enter(path string, flag int) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		if errors.Is(err, unix.ENOENT) {
			return kind.Errorf(kind.NotFound, "open namespace %s: %w", path, err)
		}
		return fmt.Errorf("open namespace %s: %w", path, err)
	}
	defer unix.Close(fd)
	if err := unix.Setns(fd, flag); err != nil {
		if errors.Is(err, unix.EINVAL) { // a bare file, or a namespace of another kind
			return kind.Errorf(kind.NotFound, "enter namespace %s: nothing is pinned there: %w", path, err)
		}
		return fmt.Errorf("enter namespace %s: %w", path, err)
	}
	return nil
}
