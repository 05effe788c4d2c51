// Package kubelet tests the daemon under a real kubelet: built from its Go
// module, without an API server, running static pods.
package kubelet

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
)

// Version is the kubelet's, as build/go.mod has it.
const Version = "v1.36.3"

// Binary returns a kubelet, built if this user's cache has none: three minutes
// once. Several tests may ask at the same time.
func Binary() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "noded-test", "kubelet-"+Version)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return "", err
	}
	bin := filepath.Join(dir, "kubelet")
	if _, err := os.Stat(bin); err == nil {
		return bin, nil
	}
	stamp := "-s -w -X k8s.io/component-base/version.gitVersion=" + Version
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", stamp, "-o", bin+".new", "k8s.io/kubernetes/cmd/kubelet")
	cmd.Dir = "build" // of its own module: the kubelet's dependencies are older than ours
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build kubelet: %w: %s", err, out)
	}
	return bin, os.Rename(bin+".new", bin)
}
