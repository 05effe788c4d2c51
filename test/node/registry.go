package node

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// Registry is a running Debian docker-registry.
type Registry struct {
	Host string // 127.0.0.1:port
	Dir  string
	User string // both empty: anonymous
	Pass string

	cmd *exec.Cmd
}

// Login is a user of a registry; with hash, the password's bcrypt hash as
// htpasswd files have it.
type Login struct{ User, Pass, Hash string }

// StartRegistry starts a registry on a free port of the loopback. The caller
// must Close it.
func StartRegistry(login *Login) (*Registry, error) {
	dir, err := os.MkdirTemp("", "noded-test-registry-")
	if err != nil {
		return nil, err
	}
	port, err := FreePort()
	if err != nil {
		return nil, err
	}
	r := &Registry{Host: fmt.Sprintf("127.0.0.1:%d", port), Dir: dir}
	auth := ""
	if login != nil {
		r.User, r.Pass = login.User, login.Pass
		file := filepath.Join(dir, "htpasswd")
		if err := os.WriteFile(file, []byte(login.User+":"+login.Hash+"\n"), 0o600); err != nil {
			return nil, err
		}
		auth = fmt.Sprintf("auth:\n  htpasswd: {realm: test, path: %s}\n", file)
	}
	config := filepath.Join(dir, "config.yml")
	text := fmt.Sprintf("version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %s}, delete: {enabled: true}}\nhttp: {addr: %q}\n%s", filepath.Join(dir, "data"), r.Host, auth)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, err
	}
	r.cmd = exec.Command("docker-registry", "serve", config)
	if err := r.cmd.Start(); err != nil {
		return nil, err
	}
	if err := r.ready(time.Minute); err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

// ready polls, because the registry announces nothing.
func (r *Registry) ready(limit time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+r.Host+"/v2/", nil)
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if err == nil {
			resp.Body.Close()
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("registry does not answer: %w", err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// Close ends the registry and deletes its images.
func (r *Registry) Close() error {
	r.cmd.Process.Kill()
	r.cmd.Wait()
	return os.RemoveAll(r.Dir)
}

// FreePort finds a TCP port of the loopback that is free now.
func FreePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}
