package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"noded.dev/noded/config"
)

// stopLimit bounds the end of the daemon: what is not finished then is
// finished by the next start's recovery, as after a crash.
const stopLimit = 1500 * time.Millisecond

// serve is the daemon's life: it builds the parts, serves until ctx ends and
// stops them in reverse order. reload reads the configuration anew for SIGHUP.
// Containers and the shim are left as they are.
func serve(ctx context.Context, cfg config.Config, reload func() (config.Config, error)) error {
	log, err := newLogger(cfg.Log)
	if err != nil {
		return err
	}
	lock, err := lockRoot(cfg)
	if err != nil {
		return err
	}
	defer lock.Close()
	d, err := openDaemon(ctx, cfg, log)
	if err != nil {
		return err
	}
	listener, err := listenCRI(ctx, cfg.CRI.Listen)
	if err != nil {
		return errors.Join(err, d.close())
	}
	server := grpc.NewServer(d.cri.ServerOptions()...)
	d.cri.Register(server)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	log.WithFields(logrus.Fields{"listen": cfg.CRI.Listen, "version": version, "pid": os.Getpid()}).Info("noded serves")

	err = d.run(ctx, served, reload)
	notify(log, "STOPPING=1")
	return errors.Join(err, withLimit(stopLimit, log, func() error {
		d.cri.Close()
		server.Stop()
		return d.close()
	}))
}

// run waits for the daemon's end, and meanwhile answers SIGHUP and systemd's
// watchdog.
func (d *daemon) run(ctx context.Context, served <-chan error, reload func() (config.Config, error)) error {
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, unix.SIGHUP)
	defer signal.Stop(hangup)
	// Writing to a pipe or socket whose reader died is an error to be handled
	// where it happens, not the end of the daemon.
	signal.Ignore(unix.SIGPIPE)
	notify(d.log, "READY=1")
	watchdog := watchdogTicker(d.log)
	defer watchdog.Stop()
	for {
		select {
		case <-ctx.Done():
			d.log.Info("noded stops, containers go on")
			return nil
		case err := <-served:
			return fmt.Errorf("serve the CRI: %w", err)
		case <-hangup:
			notify(d.log, "RELOADING=1")
			d.reload(reload)
			notify(d.log, "READY=1")
		case <-watchdog.C:
			// Listing goes through everything that a stuck daemon would hold.
			d.pods.ListPods(nil)
			notify(d.log, "WATCHDOG=1")
		}
	}
}

// reload takes over what can change while noded runs and says what cannot. A
// configuration with mistakes changes nothing.
func (d *daemon) reload(load func() (config.Config, error)) {
	next, err := load()
	if err != nil {
		d.log.WithError(err).Error("configuration is not reloaded, the old one stays")
		return
	}
	changes := config.Diff(d.cfg, next)
	d.apply(next)
	for _, change := range changes {
		entry := d.log.WithField("key", change.Key)
		if !change.Reload {
			entry.Warn("changed key needs a restart of the daemon (containers go on)")
			continue
		}
		entry.Info("changed key is in force")
	}
}

// withLimit runs stop, and gives up waiting for it after limit.
func withLimit(limit time.Duration, log *logrus.Entry, stop func() error) error {
	done := make(chan error, 1)
	go func() { done <- stop() }()
	select {
	case err := <-done:
		return err
	case <-time.After(limit):
		log.Warn("an operation does not end, the next start will finish or undo it")
		return nil
	}
}
