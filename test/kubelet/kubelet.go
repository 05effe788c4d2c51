package kubelet

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"noded.dev/noded/test/node"
)

// Name is the node's; the kubelet appends it to static pods' names.
const Name = "testnode"

// Kubelet is a running kubelet on a node.
type Kubelet struct {
	Node *node.Node
	Dir  string
	Port int

	cmd    *exec.Cmd
	ended  chan struct{}
	client *http.Client

	// storm is held for writing while the daemon is down. What needs a
	// connection that lasts holds it for reading.
	storm sync.RWMutex
	kills int
}

// settings make the kubelet quick to look, and leave the machine's own things alone.
const settings = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
staticPodPath: %[1]s/manifests
podLogsDir: %[1]s/logs
containerRuntimeEndpoint: unix://%[2]s
cgroupRoot: %[3]s
port: %[4]d
address: 127.0.0.1
healthzPort: 0
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
failCgroupV1: false
failSwapOn: false
cgroupDriver: cgroupfs
enforceNodeAllocatable: []
evictionHard: {memory.available: "0%%", nodefs.available: "0%%", nodefs.inodesFree: "0%%", imagefs.available: "0%%"}
imageGCHighThresholdPercent: 100
fileCheckFrequency: 500ms
syncFrequency: 2s
containerLogMaxSize: 20Ki
containerLogMaxFiles: 3
containerLogMonitorInterval: 3s
crashLoopBackOff: {maxContainerRestartPeriod: 2s}
`

// Start starts a kubelet on the node and waits until it answers. more is put
// at the end of its configuration file. The caller must Close it.
func Start(n *node.Node, binary, more string) (*Kubelet, error) {
	port, err := node.FreePort()
	if err != nil {
		return nil, err
	}
	k := &Kubelet{Node: n, Dir: filepath.Join(n.Dir, "kubelet"), Port: port, ended: make(chan struct{})}
	// The serving certificate is the kubelet's own, made at its first start.
	k.client = &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}}
	for _, dir := range []string{"manifests", "logs", "root", "pki"} {
		if err := os.MkdirAll(filepath.Join(k.Dir, dir), 0o755); err != nil {
			return nil, err
		}
	}
	config := filepath.Join(k.Dir, "config.yaml")
	if err := os.WriteFile(config, fmt.Appendf(nil, settings+more, k.Dir, n.Socket, n.Cgroup, port), 0o600); err != nil {
		return nil, err
	}
	log, err := os.Create(k.logFile())
	if err != nil {
		return nil, err
	}
	defer log.Close()
	k.cmd = exec.Command(binary, "--config", config, "--root-dir", filepath.Join(k.Dir, "root"), "--cert-dir", filepath.Join(k.Dir, "pki"), "--hostname-override", Name, "--node-ip", "127.0.0.1", "--v", "3")
	k.cmd.Stdout, k.cmd.Stderr = log, log
	k.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := k.cmd.Start(); err != nil {
		return nil, err
	}
	go func() { k.cmd.Wait(); close(k.ended) }()
	return k, k.ready(30 * time.Second)
}

// ready polls: a kubelet announces nothing.
func (k *Kubelet) ready(limit time.Duration) error {
	deadline := time.Now().Add(limit)
	for {
		if _, err := k.get("/healthz"); err == nil {
			return nil
		} else if time.Now().After(deadline) {
			return fmt.Errorf("kubelet does not answer: %w: %s", err, k.LogTail())
		}
		select {
		case <-k.ended:
			return fmt.Errorf("kubelet ended: %s", k.LogTail())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// Close ends the kubelet and takes away what it keeps as long as it lives. It
// is an error if the kubelet has not cleaned up after pods that are gone.
func (k *Kubelet) Close() error {
	// The kubelet removes the groups of pods that have ended every other second, unasked.
	deadline := time.Now().Add(10 * time.Second)
	for len(k.groups("kubepods/pod*", "kubepods/*/pod*")) > 0 && time.Now().Before(deadline) {
		time.Sleep(50 * time.Millisecond)
	}
	k.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-k.ended:
	case <-time.After(10 * time.Second):
		k.cmd.Process.Kill()
		<-k.ended
	}
	var errs []error
	for _, group := range k.groups("kubepods/burstable", "kubepods/besteffort", "kubepods") {
		errs = append(errs, os.Remove(group))
	}
	// It binds its folder onto itself, to share mounts with containers.
	errs = append(errs, unix.Unmount(filepath.Join(k.Dir, "root"), 0))
	return errors.Join(errs...)
}

// groups are the kubelet's cgroups that match, in all hierarchies.
func (k *Kubelet) groups(patterns ...string) []string {
	var found []string
	for _, pattern := range patterns {
		for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
			dirs, _ := filepath.Glob(filepath.Join(root, k.Node.Cgroup, pattern))
			found = append(found, dirs...)
		}
	}
	return found
}

// KillDaemon kills the daemon with SIGKILL and starts it again.
func (k *Kubelet) KillDaemon() error {
	k.storm.Lock()
	defer k.storm.Unlock()
	k.kills++
	k.Node.Kill()
	return k.Node.Launch()
}

// Calm runs f while nobody kills the daemon.
func (k *Kubelet) Calm(f func()) {
	k.storm.RLock()
	defer k.storm.RUnlock()
	f()
}

func (k *Kubelet) logFile() string { return filepath.Join(k.Node.Dir, "kubelet.log") }

// LogTail is the end of the kubelet's log.
func (k *Kubelet) LogTail() string {
	data, err := os.ReadFile(k.logFile())
	if err != nil {
		return err.Error()
	}
	return string(data[max(0, len(data)-8<<10):])
}
