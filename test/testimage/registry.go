package testimage

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// Registry is Debian's docker-registry on a free port of 127.0.0.1.
type Registry struct {
	Address string // "127.0.0.1:port"
	cmd     *exec.Cmd
	exited  chan error
}

// StartRegistry starts a registry that stores below dir. Stop it.
func StartRegistry(ctx context.Context, dir string) (*Registry, error) {
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	config := fmt.Sprintf("version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\nstorage: {filesystem: {rootdirectory: %q}, delete: {enabled: true}}\nhttp: {addr: %q}\n",
		filepath.Join(dir, "data"), port)
	file := filepath.Join(dir, "config.yml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		return nil, err
	}
	r := &Registry{Address: port, cmd: exec.Command("docker-registry", "serve", file), exited: make(chan error, 1)}
	log, err := os.Create(filepath.Join(dir, "registry.log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	r.cmd.Stdout, r.cmd.Stderr = log, log
	if err := r.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start docker-registry: %w", err)
	}
	go func() { r.exited <- r.cmd.Wait() }()
	return r, r.ready(ctx)
}

// ready polls: the registry has no way to say that it listens.
func (r *Registry) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for {
		resp, err := http.Get("http://" + r.Address + "/v2/")
		if err == nil {
			resp.Body.Close()
			return nil
		}
		select {
		case err := <-r.exited:
			r.exited <- err
			return fmt.Errorf("docker-registry ended: %w", err)
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("docker-registry does not answer: %w", err), r.Stop())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Stop ends the registry.
func (r *Registry) Stop() error {
	if err := r.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-r.exited
	return nil
}

func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}
