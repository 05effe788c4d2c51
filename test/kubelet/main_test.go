package kubelet

import (
	"errors"
	"fmt"
	"os"
	"testing"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"noded.dev/noded/test/node"
)

// shared runs all pods of these tests.
var shared *Kubelet

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
	binary, err := Binary()
	if err != nil {
		return 0, err
	}
	dir, err := os.MkdirTemp("", "noded-kubelet-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	o := node.Options{}
	if os.Getenv(node.Peer) == "" {
		if o.Binary, err = node.Build(dir); err != nil {
			return 0, err
		}
	}
	if o.Registry, err = node.StartRegistry(nil); err != nil {
		return 0, err
	}
	defer o.Registry.Close()
	files, err := node.Busybox()
	if err != nil {
		return 0, err
	}
	for ref, config := range map[string]v1.ImageConfig{"busybox:1": {Cmd: []string{"/bin/sh"}}, "pause:1": {Entrypoint: []string{"/bin/sleep", "infinity"}}} {
		if _, err := o.Registry.Push(ref, config, files); err != nil {
			return 0, err
		}
	}
	n, err := node.Start(o)
	if err != nil {
		return 0, err
	}
	if shared, err = Start(n, binary); err == nil {
		code = m.Run()
	}
	if code != 0 {
		fmt.Printf("end of the kubelet's log:\n%s\nend of the daemon's log:\n%s\n", shared.LogTail(), n.LogTail())
	}
	// Nothing may be left after this: not of the kubelet, its pods or the daemon.
	if left := errors.Join(shared.Close(), n.Close()); left != nil {
		return 1, left
	}
	return code, err
}
