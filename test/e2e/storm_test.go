package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/test/node"
)

// Seed is the environment variable that repeats a storm.
const seedVariable = "NODED_TEST_SEED"

func seeded(t *testing.T) *rand.Rand {
	t.Helper()
	seed, err := strconv.ParseUint(os.Getenv(seedVariable), 10, 64)
	if err != nil {
		seed = rand.Uint64()
	}
	t.Logf("repeat with %s=%d", seedVariable, seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// storm lets workers run pods without pause while strike hits the node twenty
// times at random moments; a witness must notice nothing. mayLose says that a
// strike leaves nobody to collect the status of what ends in that moment.
func storm(t *testing.T, n *node.Node, mayLose bool, strike func(t *testing.T)) {
	r := seeded(t)
	w := newWitness(t, n)
	stop := make(chan struct{})
	errs := make(chan error, 100)
	var wait sync.WaitGroup
	for i := range 3 {
		configs := make(chan *cri.PodSandboxConfig)
		wait.Go(func() {
			for config := range configs {
				if err := patient(n, config, i, mayLose); err != nil {
					select {
					case errs <- err:
					default:
					}
				}
			}
		})
		go func() {
			defer close(configs)
			for {
				select {
				case <-stop:
					return
				case configs <- n.PodConfig(t):
				}
			}
		}()
	}
	for range 20 {
		time.Sleep(time.Duration(r.IntN(400)) * time.Millisecond) // at a random moment of the workers' work
		strike(t)
		w.check(t)
		if t.Failed() {
			break
		}
	}
	close(stop)
	wait.Wait()
	close(errs)
	for err := range errs {
		t.Error(err)
	}
	w.close(t)
}

// patient is life with a caller that repeats what was interrupted, as a
// kubelet does. Nothing but an interruption is forgiven.
func patient(n *node.Node, config *cri.PodSandboxConfig, i int, mayLose bool) error {
	p := &node.Pod{Node: n, Config: config}
	var c *node.Container
	ctx, cancel := node.Context()
	defer cancel()
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"run pod", func() error {
			r, err := n.Runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: config})
			p.ID = r.GetPodSandboxId()
			return err
		}},
		{"create", func() (err error) {
			config := node.ContainerConfig("c", fmt.Sprintf("echo %d; sleep 1000", i))
			if noded() {
				imageVolume(node.Image, "etc")(config)
			}
			c, err = p.TryCreate(config)
			return err
		}},
		{"start", func() error {
			err := c.Start()
			if status.Code(err) != codes.FailedPrecondition {
				return err
			}
			// The start that was interrupted may have been done.
			s, err2 := n.Runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: c.ID})
			if err2 == nil && s.Status.State == cri.ContainerState_CONTAINER_RUNNING {
				return nil
			}
			return fmt.Errorf("%w (container is %v)", err, s.GetStatus())
		}},
		{"stop", func() error { return c.Stop(0) }},
		{"status", func() error {
			s, err := n.Runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: c.ID})
			if err == nil && mayLose && s.Status.State == cri.ContainerState_CONTAINER_EXITED && s.Status.Reason == "ContainerStatusUnknown" {
				return nil
			}
			if err == nil && (s.Status.State != cri.ContainerState_CONTAINER_EXITED || s.Status.ExitCode != 137) {
				return fmt.Errorf("stopped container is %v, %d, %s", s.Status.State, s.Status.ExitCode, s.Status.Reason)
			}
			return err
		}},
		{"remove", func() error { return c.Remove() }},
		{"stop pod", func() error { return p.Stop() }},
		{"remove pod", func() error { return p.Remove() }},
	} {
		if err := repeat(step.do); err != nil {
			repeat(p.Remove) // that of this pod nothing else is told than its error
			return fmt.Errorf("pod %s: %s: %w", config.Metadata.Uid, step.name, err)
		}
	}
	return nil
}

// repeat calls again what was interrupted by the daemon's or the shim's death,
// for longer than a storm lasts: on a busy machine a step may need the calm after it.
func repeat(do func() error) error {
	deadline := time.Now().Add(time.Minute)
	for {
		err := do()
		switch status.Code(err) {
		case codes.Unavailable, codes.Canceled, codes.Aborted:
			if time.Now().Before(deadline) {
				time.Sleep(10 * time.Millisecond)
				continue
			}
		}
		return err
	}
}

func TestStormDaemon(t *testing.T) {
	n := own(t, binary)
	storm(t, n, false, func(t *testing.T) {
		n.Kill()
		must(t, n.Launch())
	})
}

func TestStormShim(t *testing.T) {
	skipOnPeer(t, "it has no such shim")
	n := own(t, binary)
	storm(t, n, false, func(t *testing.T) { killShim(t, n) })
}

func TestStormBoth(t *testing.T) {
	skipOnPeer(t, "it has no such shim")
	n := own(t, binary)
	storm(t, n, true, func(t *testing.T) {
		if pid := n.ShimPid(); pid != 0 {
			syscall.Kill(pid, syscall.SIGKILL)
		}
		n.Kill()
		must(t, n.Launch())
	})
}

// killShim kills the shim and waits until the daemon has a new one.
func killShim(t *testing.T, n *node.Node) {
	t.Helper()
	old := n.ShimPid()
	if old == 0 {
		t.Fatal("no shim runs")
	}
	must(t, syscall.Kill(old, syscall.SIGKILL))
	node.Eventually(t, "daemon starts a new shim", 5*time.Second, func() bool {
		now := n.ShimPid()
		return now != 0 && now != old
	})
}
