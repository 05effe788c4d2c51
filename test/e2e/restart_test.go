package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/test/node"
	"noded.dev/noded/test/oracle"
)

// own begins a test on a node of its own, which it may kill.
func own(t *testing.T, binary string) *node.Node {
	t.Helper()
	n := node.New(t, node.Options{Binary: binary, Registry: registry})
	must(t, n.Warm())
	scope := n.Scope()
	scope.Restarts = true
	oracle.Check(t, scope)
	return n
}

// TestRestart ends the daemon by SIGTERM and by SIGKILL with pods in every
// state, and finds all as it was.
func TestRestart(t *testing.T) {
	for _, how := range []string{"TERM", "KILL"} {
		t.Run(how, func(t *testing.T) {
			n := own(t, binary)
			w := newWitness(t, n)
			p := n.RunPod(t)
			created, over, talks := p.Create(t, "echo started late"), p.Run(t, "exit 3"), p.Run(t, "sleep 0.7; echo last words; exit 9")
			over.WaitExit(t)
			stopped := n.RunPod(t, func(c *cri.PodSandboxConfig) { c.Metadata.Name += "-stopped" })
			must(t, stopped.Stop())
			before := tell(t, n)

			if how == "KILL" {
				n.Kill()
			} else if took, err := n.Terminate(); err != nil || took > 2*time.Second {
				t.Errorf("SIGTERM took %v: %v", took, err)
			}
			lines := w.lines()
			node.Eventually(t, "the witness logs with the daemon gone", 5*time.Second, func() bool { return w.lines() > lines })
			node.Eventually(t, "a container ends with the daemon gone", 10*time.Second, func() bool { return strings.Contains(talks.Log(t).Text(), "last words") })
			begin := time.Now()
			must(t, n.Launch())
			if took := time.Since(begin); took > 2*time.Second {
				t.Errorf("the start took %v", took)
			}

			if s := talks.WaitExit(t); s.ExitCode != 9 || s.Reason != "Error" || s.FinishedAt > time.Now().UnixNano() {
				t.Errorf("ended meanwhile: code %d, %s", s.ExitCode, s.Reason)
			}
			after := tell(t, n)
			for id, text := range before {
				if after[id] != text && id != talks.ID {
					t.Errorf("before: %s\nafter:  %s", text, after[id])
				}
			}
			must(t, created.Start())
			created.WaitExit(t)
			if got := created.Log(t).Text(); got != "started late\n" {
				t.Errorf("log of what was started late: %q", got)
			}
			w.check(t)
			w.close(t)
		})
	}
}

// tell is all that the daemon says of its pods and containers, by id.
func tell(t *testing.T, n *node.Node) map[string]string {
	t.Helper()
	ctx, cancel := node.Context()
	defer cancel()
	all := map[string]string{}
	pods, err := n.Runtime.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
	must(t, err)
	for _, p := range pods.Items {
		s, err := n.Runtime.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: p.Id})
		must(t, err)
		all[p.Id] = s.Status.String()
	}
	for _, c := range containers(t, n, nil) {
		s, err := n.Runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: c.Id})
		must(t, err)
		all[c.Id] = s.Status.String()
	}
	return all
}

// TestTerminate ends the daemon while it is busy with everything that lasts.
func TestTerminate(t *testing.T) {
	n := own(t, binary)
	p := n.RunPod(t)
	c := p.Run(t, "trap '' TERM; while :; do sleep 0.1; done")
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if noded() {
		events, err := n.Runtime.GetContainerEvents(ctx, &cri.GetEventsRequest{})
		must(t, err)
		_, err = events.Header()
		must(t, err)
	}
	for _, busy := range []func(){
		func() {
			n.Runtime.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: c.ID, Cmd: []string{"sleep", "100"}})
		},
		func() { n.Runtime.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: c.ID, Timeout: 100}) },
	} {
		go busy()
	}
	node.Eventually(t, "the process runs", 5*time.Second, func() bool {
		list, _ := exec.Command("ps", "-eo", "args").Output()
		return strings.Contains(string(list), "sleep 100\n")
	})
	if took, err := n.Terminate(); err != nil || took > 2*time.Second {
		t.Errorf("took %v: %v", took, err)
	}
	must(t, n.Launch())
	if s := c.Status(t); s.State != cri.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the container is %v", s.State)
	}
}

// TestSecondDaemon refuses a second daemon on the same root, and the first goes on.
func TestSecondDaemon(t *testing.T) {
	skipOnPeer(t, "it waits for its database")
	n := start(t)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, binary, "serve", "--config", filepath.Join(n.Dir, "config.toml"), "--listen", "unix://"+filepath.Join(t.TempDir(), "other.sock")).CombinedOutput()
	if err == nil || ctx.Err() != nil || !strings.Contains(string(out), n.Root) {
		t.Errorf("%v: %s", err, out)
	}
	life(n, n.PodConfig(t), 0)
}

// TestDamagedRecord starts with a record that cannot be read: it is set aside,
// the other pods are as they were.
func TestDamagedRecord(t *testing.T) {
	skipOnPeer(t, "its records are another matter")
	n := own(t, binary)
	w := newWitness(t, n)
	p := n.RunPod(t)
	must(t, p.Remove())
	n.Kill()
	bad := filepath.Join(n.Root, "pods", strings.Repeat("b", 64))
	must(t, os.MkdirAll(bad, 0o700))
	files, err := filepath.Glob(filepath.Join(n.Root, "pods", w.pod.ID, "*"))
	must(t, err)
	for _, f := range files {
		must(t, os.WriteFile(filepath.Join(bad, filepath.Base(f)), []byte(`{"version": 1, "torn`), 0o600))
	}
	must(t, n.Launch())
	w.check(t)
	w.close(t)
	aside, err := filepath.Glob(filepath.Join(n.Root, "*", "*"+strings.Repeat("b", 64)+"*"))
	must(t, err)
	if len(aside) == 0 || filepath.Dir(aside[0]) == filepath.Dir(bad) {
		t.Errorf("the damaged record is at %v", aside)
	}
	for _, a := range aside {
		must(t, os.RemoveAll(filepath.Dir(a)))
	}
}
