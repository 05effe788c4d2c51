package e2e

import (
	"os"
	"strconv"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/test/node"
)

func itoa(n int) string { return strconv.Itoa(n) }

// TestExit checks how ends of all kinds are told.
func TestExit(t *testing.T) {
	n := start(t)
	p := n.RunPod(t)
	for name, c := range map[string]struct {
		script string
		code   int32
		reason string
	}{
		"well":          {"exit 0", 0, "Completed"},
		"with an error": {"exit 3", 3, "Error"},
		"with 255":      {"exit 255", 255, "Error"},
	} {
		t.Run(name, func(t *testing.T) {
			ctr := p.Run(t, c.script)
			s := ctr.WaitExit(t)
			if s.ExitCode != c.code || s.Reason != c.reason || noded() && s.FinishedAt < s.StartedAt {
				t.Errorf("code %d, reason %q, message %q", s.ExitCode, s.Reason, s.Message)
			}
		})
	}
	t.Run("killed from outside", func(t *testing.T) {
		ctr := p.Run(t, "exec sleep 1000")
		kill(t, ctr.Pids(t)[0])
		if s := ctr.WaitExit(t); s.ExitCode != 137 || s.Reason != "Error" {
			t.Errorf("code %d, reason %q", s.ExitCode, s.Reason)
		}
	})
	t.Run("out of memory", func(t *testing.T) {
		ctr := p.Run(t, "exec tail /dev/zero", func(c *cri.ContainerConfig) { c.Linux.Resources.MemoryLimitInBytes = 16 << 20 })
		if s := ctr.WaitExit(t); s.ExitCode != 137 || s.Reason != "OOMKilled" {
			t.Errorf("code %d, reason %q", s.ExitCode, s.Reason)
		}
	})
	// The container's own end says what it made of it: a shell that passes its
	// child's SIGKILL on was killed for memory, one that handles it was not.
	t.Run("a child out of memory", func(t *testing.T) {
		ctr := p.Run(t, "tail /dev/zero; exit $?", func(c *cri.ContainerConfig) { c.Linux.Resources.MemoryLimitInBytes = 16 << 20 })
		if s := ctr.WaitExit(t); s.ExitCode != 137 || s.Reason != "OOMKilled" {
			t.Errorf("code %d, reason %q", s.ExitCode, s.Reason)
		}
	})
	t.Run("a child out of memory, handled", func(t *testing.T) {
		skipOnPeer(t, "it says OOMKilled of whatever had a child killed")
		ctr := p.Run(t, "tail /dev/zero; exit 4", func(c *cri.ContainerConfig) { c.Linux.Resources.MemoryLimitInBytes = 16 << 20 })
		if s := ctr.WaitExit(t); s.ExitCode != 4 || s.Reason != "Error" {
			t.Errorf("code %d, reason %q", s.ExitCode, s.Reason)
		}
	})
}

func kill(t *testing.T, pid int) {
	t.Helper()
	process, err := os.FindProcess(pid)
	must(t, err)
	must(t, process.Kill())
}

// TestStop checks signals and grace.
func TestStop(t *testing.T) {
	n := start(t)
	p := n.RunPod(t)
	const tell = "trap 'echo term; exit 5' TERM; trap 'echo usr1; exit 6' USR1; echo ready; while :; do sleep 0.05; done"
	for name, c := range map[string]struct {
		script   string
		grace    time.Duration
		edit     func(*cri.ContainerConfig)
		code     int32
		log      string
		from, to time.Duration // how long stopping takes
	}{
		"TERM by default":       {tell, 10 * time.Second, nil, 5, "ready\nterm\n", 0, 5 * time.Second},
		"killed after grace":    {"trap '' TERM; echo ready; while :; do sleep 0.05; done", time.Second, nil, 137, "ready\n", 900 * time.Millisecond, 3 * time.Second},
		"no grace, no signal":   {tell, 0, nil, 137, "ready\n", 0, time.Second},
		"already over":          {"echo ready; exit 7", time.Second, nil, 7, "ready\n", 0, 5 * time.Second},
		"first process ignores": {"echo ready; exec sleep 1000", time.Second, nil, 137, "ready\n", 900 * time.Millisecond, 3 * time.Second},
		"signal asked for": {tell, 10 * time.Second, func(c *cri.ContainerConfig) { c.StopSignal = cri.Signal_SIGNAL_SIGUSR1 }, 6,
			"ready\nusr1\n", 0, 5 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			if c.edit == nil {
				c.edit = func(*cri.ContainerConfig) {}
			} else {
				skipOnPeer(t, "it is older than this")
			}
			ctr := p.Run(t, c.script, c.edit)
			node.Eventually(t, "container is ready", 5*time.Second, func() bool { return ctr.Log(t).Text() != "" })
			if name == "already over" {
				ctr.WaitExit(t)
			}
			begin := time.Now()
			must(t, ctr.Stop(c.grace))
			took := time.Since(begin)
			s := ctr.Status(t)
			if s.State != cri.ContainerState_CONTAINER_EXITED || s.ExitCode != c.code {
				t.Errorf("state %v, code %d", s.State, s.ExitCode)
			}
			if got := ctr.Log(t).Text(); got != c.log {
				t.Errorf("log %q", got)
			}
			if took < c.from || took > c.to {
				t.Errorf("stopping took %v", took)
			}
			must(t, ctr.Stop(c.grace))
		})
	}
}

// TestStopAll checks that no process of a container survives its stop, also
// where no process namespace ends with its first process.
func TestStopAll(t *testing.T) {
	n := start(t)
	p := n.RunPod(t, func(c *cri.PodSandboxConfig) { c.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_NODE })
	for _, c := range []struct {
		name, script string
		end          func(t *testing.T, c *node.Container)
	}{
		{"stopped", "setsid sleep 1000 & setsid sh -c 'trap \"\" TERM; sleep 1000; sleep 1000' & exec sleep 1000", func(t *testing.T, c *node.Container) { must(t, c.Stop(time.Second)) }},
		{"killed", "setsid sleep 1000 & exec sleep 1000", func(t *testing.T, c *node.Container) { must(t, c.Stop(0)) }},
		{"removed", "setsid sleep 1000 & exec sleep 1000", func(t *testing.T, c *node.Container) { must(t, c.Remove()) }},
		{"ended by itself", "setsid sleep 1000 & sleep 0.3; exit", func(t *testing.T, c *node.Container) { c.WaitExit(t); must(t, c.Remove()) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctr := p.Run(t, c.script)
			node.Eventually(t, "both processes run", 5*time.Second, func() bool { return len(ctr.Pids(t)) >= 2 })
			pids := ctr.Pids(t)
			c.end(t, ctr)
			if left := ctr.Pids(t); len(left) > 0 {
				t.Errorf("of processes %v are left %v", pids, left)
			}
		})
	}
}

// TestStopPod stops a pod with all its containers.
func TestStopPod(t *testing.T) {
	n := start(t)
	p := n.RunPod(t)
	a, b := p.Run(t, "sleep 1000"), p.Create(t, "sleep 1000")
	must(t, p.Stop())
	if s := a.Status(t); s.State != cri.ContainerState_CONTAINER_EXITED || s.ExitCode != 137 {
		t.Errorf("running container: %v, %d", s.State, s.ExitCode)
	}
	if err := b.Start(); err == nil {
		t.Error("a container of a stopped pod started")
	}
	must(t, p.Remove())
	if list := containers(t, n, &cri.ContainerFilter{PodSandboxId: p.ID}); len(list) != 0 {
		t.Errorf("containers outlive their pod: %v", list)
	}
}
