package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	systemd "github.com/coreos/go-systemd/v22/daemon"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"noded.dev/noded/config"
	"noded.dev/noded/internal/idmap"
)

// lockRoot makes this daemon the only one that uses the root and state folders
// until the returned file is closed, or the process dies.
func lockRoot(cfg config.Config) (*os.File, error) {
	for _, dir := range []string{cfg.Root, cfg.State} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("make folder: %w", err)
		}
		// Images hold setuid programs that host users must not reach.
		if err := idmap.Close(dir); err != nil {
			return nil, err
		}
	}
	path := filepath.Join(cfg.Root, "lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("another noded uses %s; stop it, or give this one a root and state folder of its own", cfg.Root)
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return f, nil
}

// listenCRI opens the CRI socket: mode 0600 in a folder with mode 0700, since
// whoever can connect is root on this node.
func listenCRI(ctx context.Context, address string) (net.Listener, error) {
	path, err := config.SocketPath(address)
	if err != nil {
		return nil, err
	}
	dir := filepath.Dir(path)
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("make folder of the socket: %w", err)
		}
	}
	// The lock says that no other noded is there, so this is a dead one's.
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove old socket: %w", err)
	}
	lc := net.ListenConfig{Control: closeToOthers}
	l, err := lc.Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	return l, nil
}

// closeToOthers gives a socket mode 0600 before it has a path: bind(2) makes the
// file with the mode of the socket's own inode (net/unix/af_unix.c). A chmod
// afterwards would come too late, and a umask is the whole process's.
func closeToOthers(_, _ string, c syscall.RawConn) error {
	var failed error
	err := c.Control(func(fd uintptr) { failed = unix.Fchmod(int(fd), 0o600) })
	return errors.Join(err, failed)
}

// notify tells systemd a state (sd_notify(3)); without systemd it does nothing.
func notify(log *logrus.Entry, state string) {
	if state == "RELOADING=1" {
		// systemd wants to know when the reload began, to tell its READY=1
		// from an earlier one.
		var now unix.Timespec
		if unix.ClockGettime(unix.CLOCK_MONOTONIC, &now) == nil {
			state += fmt.Sprintf("\nMONOTONIC_USEC=%d", now.Nano()/1000)
		}
	}
	if _, err := systemd.SdNotify(false, state); err != nil {
		log.WithError(err).Warn("systemd is not notified")
	}
}

// watchdogTicker ticks twice in systemd's watchdog interval, or (almost) never
// where none is set.
func watchdogTicker(log *logrus.Entry) *time.Ticker {
	interval, err := systemd.SdWatchdogEnabled(false)
	if err != nil {
		log.WithError(err).Warn("systemd's watchdog settings cannot be read")
	}
	if interval <= 0 {
		const never = 24 * time.Hour
		return time.NewTicker(never)
	}
	return time.NewTicker(interval / 2)
}
