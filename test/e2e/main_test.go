// Package e2e tests the daemon as a kubelet sees it: a real process behind a
// real socket, with a real OCI runtime, network and registry. Every test has
// pods of its own and ends with the leak oracle.
package e2e

import (
	"errors"
	"fmt"
	"os"
	"testing"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"noded.dev/noded/test/node"
	"noded.dev/noded/test/oracle"
)

// shared is the node of all tests that do not hurt it.
var shared *node.Node

// registry has the images that TestMain pushes.
var registry *node.Registry

// binary is the daemon under test.
var binary string

func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		fmt.Println("skip: end-to-end tests need root")
		os.Exit(0)
	}
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "end-to-end tests:", err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (code int, err error) {
	dir, err := os.MkdirTemp("", "noded-e2e-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	if os.Getenv(node.Peer) == "" {
		if binary, err = node.Build(dir); err != nil {
			return 0, err
		}
	}
	if registry, err = node.StartRegistry(nil); err != nil {
		return 0, err
	}
	defer registry.Close()
	if err := pushImages(); err != nil {
		return 0, err
	}
	if shared, err = node.Start(node.Options{Binary: binary, Registry: registry}); err != nil {
		return 0, err
	}
	// Images come before the first test, so that no connection to the registry ends while one runs.
	if _, err = shared.Pull(webImage); err != nil {
		return 0, errors.Join(err, shared.Close())
	}
	if err = shared.Warm(); err == nil {
		code = m.Run()
	}
	if code != 0 {
		fmt.Printf("end of the daemon's log:\n%s\n", shared.LogTail())
	}
	if closed := shared.Close(); closed != nil {
		return 1, errors.Join(err, fmt.Errorf("close the node: %w", closed))
	}
	return code, err
}

func pushImages() error {
	files, err := node.Busybox()
	if err != nil {
		return err
	}
	if _, err := registry.Push("busybox:1", v1.ImageConfig{Cmd: []string{"/bin/sh"}, Env: []string{"PATH=/bin", "FROM_IMAGE=yes"}}, files); err != nil {
		return err
	}
	if _, err := registry.Push("web:1", v1.ImageConfig{User: "web", WorkingDir: "/home/web", Entrypoint: []string{"/bin/echo", "entry"}, Cmd: []string{"default"}}, files); err != nil {
		return err
	}
	// The peer's pods need a process to hold them; noded's do not.
	_, err = registry.Push("pause:1", v1.ImageConfig{Entrypoint: []string{"/bin/sleep", "infinity"}}, files)
	return err
}

// start begins a test on the shared node.
func start(t *testing.T) *node.Node {
	t.Helper()
	oracle.Check(t, shared.Scope())
	return shared
}

// noded says that the daemon under test is noded, and not a peer that proves the tests.
func noded() bool { return os.Getenv(node.Peer) == "" }

// skipOnPeer leaves out what the peer is known to do differently.
func skipOnPeer(t *testing.T, why string) {
	t.Helper()
	if !noded() {
		t.Skip("the peer differs: " + why)
	}
}
