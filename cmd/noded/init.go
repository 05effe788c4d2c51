package main

import (
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"golang.org/x/sys/unix"
)

// initRole is `noded init`: the first process of a pid namespace that a pod's
// containers share. It keeps the namespace alive, has zombies reaped, and ends
// on SIGTERM or SIGINT.
//
// It starts no goroutine and handles no signal itself. Ignoring SIGCHLD makes
// the kernel reap what ends below it (wait(2), NOTES), including what it
// inherits; SIGTERM and SIGINT keep Go's default action, which ends the
// process. That action works for pid 1 as well, where the kernel's own default
// would be ignored (pid_namespaces(7)), because Go's is a handler.
func initRole() int {
	signal.Ignore(syscall.SIGCHLD, syscall.SIGHUP, syscall.SIGPIPE)
	// Children that ended before the line above are zombies already.
	for {
		pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
		if err == unix.EINTR {
			continue
		}
		if pid <= 0 {
			break
		}
	}
	debug.FreeOSMemory()
	for {
		// With no descriptors and no time limit ppoll waits for a signal.
		if _, err := unix.Ppoll(nil, nil, nil); err != nil && err != unix.EINTR {
			fmt.Fprintln(os.Stderr, "noded init: wait for a signal:", err)
			return 1
		}
	}
}
