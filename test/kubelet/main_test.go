package kubelet

import (
	"errors"
	"fmt"
	"os"
	"testing"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"noded.dev/noded/test/node"
)

// machine is what all kubelets of these tests use.
var machine struct {
	kubelet  string // its binary
	daemon   string
	registry *node.Registry
}

func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		fmt.Println("skip: a kubelet needs root")
		os.Exit(0)
	}
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "kubelet tests:", err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (code int, err error) {
	if machine.kubelet, err = Binary(); err != nil {
		return 0, err
	}
	dir, err := os.MkdirTemp("", "noded-kubelet-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	if os.Getenv(node.Peer) == "" {
		if machine.daemon, err = node.Build(dir); err != nil {
			return 0, err
		}
	}
	if machine.registry, err = node.StartRegistry(nil); err != nil {
		return 0, err
	}
	defer machine.registry.Close()
	files, err := node.Busybox()
	if err != nil {
		return 0, err
	}
	for ref, config := range map[string]v1.ImageConfig{"busybox:1": {Cmd: []string{"/bin/sh"}}, "pause:1": {Entrypoint: []string{"/bin/sleep", "infinity"}}} {
		if _, err := machine.registry.Push(ref, config, files); err != nil {
			return 0, err
		}
	}
	data := []node.File{{Name: "dir/", Mode: 0o755}, {Name: "dir/file", Body: "from the image\n"}}
	if _, err := machine.registry.Push("data:1", v1.ImageConfig{}, data); err != nil {
		return 0, err
	}
	return m.Run(), nil
}

// start starts a daemon and a kubelet on it. Nothing of the kubelet, its pods
// or the daemon may be left when the test ends.
func start(t *testing.T, settings string) *Kubelet {
	t.Helper()
	n, err := node.Start(node.Options{Binary: machine.daemon, Registry: machine.registry})
	if err != nil {
		t.Fatal(err)
	}
	k, err := Start(n, machine.kubelet, settings)
	if k == nil {
		t.Fatal(errors.Join(err, n.Close()))
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("end of the kubelet's log:\n%s\nend of the daemon's log:\n%s", k.LogTail(), n.LogTail())
		}
		if err := errors.Join(k.Close(), n.Close()); err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return k
}
