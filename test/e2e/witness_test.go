package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/test/node"
)

// witness is a container that must notice nothing: it prints one number after
// another while daemons die around it.
type witness struct {
	pod       *node.Pod
	container *node.Container
	identity  string
	ip        string
}

const counting = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.005; done"

func newWitness(t *testing.T, n *node.Node) *witness {
	t.Helper()
	p := n.RunPod(t)
	w := &witness{pod: p, container: p.Run(t, counting), ip: p.IP(t)}
	w.identity = w.look(t)
	return w
}

// look names the container's first process so that no other can be mistaken for it.
func (w *witness) look(t *testing.T) string {
	t.Helper()
	for _, pid := range w.container.Pids(t) {
		status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil || !strings.Contains(string(status), fmt.Sprintf("NSpid:\t%d\t1\n", pid)) {
			continue // not the first process of its namespace
		}
		f := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		return fmt.Sprintf("pid %d started %s", pid, f[19])
	}
	t.Error("the witness is dead")
	return ""
}

// check wants the same process, address and state as in the beginning, a
// process to be run in it, and a log that goes on and has each number once.
func (w *witness) check(t *testing.T) {
	t.Helper()
	if now := w.look(t); now != w.identity {
		t.Errorf("the witness was %s, is %s", w.identity, now)
	}
	if s := w.container.Status(t); s.State != cri.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the witness is told to be %v, %d, %s", s.State, s.ExitCode, s.Reason)
	}
	if ip := w.pod.IP(t); ip != w.ip {
		t.Errorf("the witness had the address %s, has %s", w.ip, ip)
	}
	before := len(w.container.Log(t))
	node.Eventually(t, "the witness goes on logging", 5*time.Second, func() bool { return w.lines() > before })
	if out := w.container.Shell(t, "echo fine"); out != "fine\n" {
		t.Errorf("exec in the witness: %q", out)
	}
}

// lines counts without parsing, as the last line may be half written.
func (w *witness) lines() int {
	data, _ := os.ReadFile(w.container.LogPath())
	return strings.Count(string(data), "\n")
}

// close stops the witness and wants every line of its log once and in order.
func (w *witness) close(t *testing.T) {
	t.Helper()
	must(t, w.container.Stop(0))
	log := w.container.Log(t)
	assertCounts(t, log, 0)
	if len(log) == 0 {
		t.Error("the witness logged nothing")
	}
	must(t, w.pod.Remove())
}
