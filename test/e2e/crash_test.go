package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/test/node"
	"noded.dev/noded/test/oracle"
)

// TestCrash kills the daemon before and after every named step of every
// operation on a pod, starts it again and lets the caller repeat itself. The
// list of steps is what one undisturbed life passes, so that it is complete.
func TestCrash(t *testing.T) {
	skipOnPeer(t, "it has no named steps")
	faulty, err := node.Build(t.TempDir(), "faults")
	must(t, err)
	n := node.New(t, node.Options{Binary: faulty, Registry: registry})
	must(t, n.Warm())
	w := newWitness(t, n)
	scope := n.Scope()
	scope.Restarts, scope.Bystanders = true, []string{w.container.ID}

	points := crashPoints(t, n)
	t.Logf("%d points", len(points))
	if len(points) < 20 {
		t.Fatalf("too few points: %v", points)
	}
	for _, point := range points {
		t.Run(strings.ReplaceAll(point, " ", "_"), func(t *testing.T) { crashAt(t, n, point, scope) })
		w.check(t)
	}
	w.close(t)
}

// crashPoints are those that one life of a pod and one restart pass.
func crashPoints(t *testing.T, n *node.Node) []string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "points")
	relaunch(t, n, "NODED_CRASH_LIST="+file)
	must(t, patient(n, n.PodConfig(t), 0, false))
	_, err := n.Terminate()
	must(t, err)
	data, err := os.ReadFile(file)
	must(t, err)
	must(t, n.Launch())
	points := strings.Split(strings.TrimSpace(string(data)), "\n")
	slices.Sort(points)
	return slices.Compact(points)
}

func relaunch(t *testing.T, n *node.Node, env ...string) {
	t.Helper()
	n.Kill()
	n.Env = env
	must(t, n.Begin())
	n.Env = nil
}

// crashAt lives a pod's life with a daemon that dies at the point and is
// started again, this time to stay. Nothing may be left of the life.
func crashAt(t *testing.T, n *node.Node, point string, scope oracle.Scope) {
	oracle.Check(t, scope)
	relaunch(t, n, "NODED_CRASH="+point)
	doomed, again, done := n.Ended(), make(chan error, 1), make(chan struct{})
	go func() {
		defer close(done)
		select {
		case <-doomed:
			again <- n.Launch()
		case <-t.Context().Done():
			again <- fmt.Errorf("the daemon did not die at %s", point)
		}
	}()
	config := n.PodConfig(t)
	if err := patient(n, config, 0, false); err != nil {
		t.Errorf("the caller's life: %v", err)
	}
	select {
	case err := <-again:
		must(t, err)
	case <-time.After(2 * time.Second):
		t.Errorf("the daemon did not die at %s", point)
	}
	ctx, cancel := node.Context()
	defer cancel()
	list, err := n.Runtime.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{Filter: &cri.PodSandboxFilter{LabelSelector: config.Labels}})
	must(t, err)
	if len(list.Items) != 0 {
		t.Errorf("pods are left: %v", list.Items)
	}
}

// TestUnacknowledged kills the daemon at every point of one call each and
// looks at what is listed before any caller repeats itself: nothing, or an
// object with all that the kubelet needs.
func TestUnacknowledged(t *testing.T) {
	skipOnPeer(t, "it has no named steps")
	faulty, err := node.Build(t.TempDir(), "faults")
	must(t, err)
	n := node.New(t, node.Options{Binary: faulty, Registry: registry})
	must(t, n.Warm())
	scope := n.Scope()
	scope.Restarts = true
	for _, point := range crashPoints(t, n) {
		if !strings.HasPrefix(point, "run pod/") && !strings.HasPrefix(point, "create") && !strings.HasPrefix(point, "start") {
			continue
		}
		t.Run(strings.ReplaceAll(point, " ", "_"), func(t *testing.T) {
			oracle.Check(t, scope)
			relaunch(t, n, "NODED_CRASH="+point)
			must(t, n.Ready(5*time.Second))
			config := n.PodConfig(t)
			p := once(n, config)
			select {
			case <-n.Ended():
			case <-time.After(5 * time.Second):
				t.Fatalf("the daemon did not die at %s", point)
			}
			must(t, n.Launch())
			complete(t, n)
			if p == nil { // not acknowledged: the same call again succeeds
				must(t, patient(n, config, 0, false))
			} else {
				must(t, p.Remove())
			}
		})
	}
}

// once lives a pod's life until something fails. The pod is nil if it was not
// acknowledged.
func once(n *node.Node, config *cri.PodSandboxConfig) *node.Pod {
	ctx, cancel := node.Context()
	defer cancel()
	r, err := n.Runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: config})
	if err != nil {
		return nil
	}
	p := &node.Pod{Node: n, ID: r.PodSandboxId, Config: config}
	if c, err := p.TryCreate(node.ContainerConfig("c", "echo 0; sleep 1000")); err == nil {
		c.Start()
	}
	return p
}

// complete wants everything listed to have what the kubelet turns into an
// error where it is missing, and no process under a container that is not running.
func complete(t *testing.T, n *node.Node) {
	t.Helper()
	ctx, cancel := node.Context()
	defer cancel()
	pods, err := n.Runtime.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
	must(t, err)
	for _, p := range pods.Items {
		r, err := n.Runtime.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: p.Id})
		if status.Code(err) == codes.NotFound {
			continue
		}
		must(t, err)
		if s := r.Status; s.Id == "" || s.Metadata.GetUid() == "" || s.CreatedAt == 0 || s.GetLinux() == nil {
			t.Errorf("incomplete pod %v", s)
		}
	}
	for _, c := range containers(t, n, nil) {
		r, err := n.Runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: c.Id})
		if status.Code(err) == codes.NotFound {
			continue
		}
		must(t, err)
		if s := r.Status; s.Id == "" || s.Metadata.GetName() == "" || s.CreatedAt == 0 || s.Image.GetImage() == "" || s.ImageRef == "" {
			t.Errorf("incomplete container %v", s)
		}
		ctr := &node.Container{Pod: &node.Pod{Node: n}, ID: c.Id}
		if pids := ctr.Pids(t); r.Status.State == cri.ContainerState_CONTAINER_EXITED && len(pids) > 0 {
			t.Errorf("container is told to be over and has processes %v", pids)
		}
	}
}
