package e2e

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/test/node"
)

// TestHundred runs a hundred pods one after another.
func TestHundred(t *testing.T) {
	n := start(t)
	begin := time.Now()
	for i := range 100 {
		if err := life(n, n.PodConfig(t), i); err != nil {
			t.Fatalf("pod %d: %v", i, err)
		}
	}
	t.Logf("100 pods one after another took %v", time.Since(begin))
}

// TestTwenty runs twenty pods at once.
func TestTwenty(t *testing.T) {
	n := start(t)
	begin := time.Now()
	errs := make([]error, 20)
	var wait sync.WaitGroup
	for i := range errs {
		config := n.PodConfig(t)
		wait.Go(func() { errs[i] = life(n, config, i) })
	}
	wait.Wait()
	for i, err := range errs {
		if err != nil {
			t.Errorf("pod %d: %v", i, err)
		}
	}
	t.Logf("20 pods at once took %v", time.Since(begin))
}

// life runs a pod with one container from beginning to end.
func life(n *node.Node, config *cri.PodSandboxConfig, i int) error {
	ctx, cancel := node.Context()
	defer cancel()
	r, err := n.Runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: config})
	if err != nil {
		return fmt.Errorf("run pod: %w", err)
	}
	p := &node.Pod{Node: n, ID: r.PodSandboxId, Config: config}
	c, err := p.TryCreate(node.ContainerConfig("c", fmt.Sprintf("echo %d; sleep 1000", i)))
	if err != nil {
		return fmt.Errorf("create: %w", err)
	}
	if err := c.Start(); err != nil {
		return fmt.Errorf("start: %w", err)
	}
	e, err := n.Runtime.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: c.ID, Cmd: []string{"hostname"}, Timeout: 20})
	if err != nil || strings.TrimSpace(string(e.Stdout)) != config.Hostname {
		return fmt.Errorf("exec: %q, %w", e.GetStdout(), err)
	}
	if err := c.Stop(0); err != nil {
		return fmt.Errorf("stop: %w", err)
	}
	if err := c.Remove(); err != nil {
		return fmt.Errorf("remove: %w", err)
	}
	return p.Remove()
}
