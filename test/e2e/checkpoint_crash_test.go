package e2e

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"noded.dev/noded/test/node"
)

// TestCheckpointKilled kills the daemon, and then the shim too, in the middle
// of a checkpoint: the containers go on, and nothing is left.
func TestCheckpointKilled(t *testing.T) {
	n := checkpoints(t, binary)
	p := n.RunPod(t)
	c := p.Run(t, `{ head -c 400000000 /dev/zero; sleep 10000; } | tail -c 400000000 & sleep 1; `+counter)
	node.Eventually(t, "the counter begins", 60*time.Second, func() bool { return last(t, c) > 0 })
	for _, whom := range []string{"daemon", "daemon and shim"} {
		t.Run(whom, func(t *testing.T) {
			dir := folder(t)
			done := make(chan error, 1)
			go func() { done <- checkpointPod(p, dir, c) }()
			node.Eventually(t, "the dump writes", 30*time.Second, func() bool {
				pages, _ := filepath.Glob(filepath.Join(dir, "containers", "*", "checkpoint", "pages-*.img"))
				return len(pages) > 0
			})
			if whom != "daemon" {
				must(t, syscall.Kill(shimPid(t, n), syscall.SIGKILL))
			}
			n.Kill()
			if err := <-done; err == nil {
				t.Error("the checkpoint is told to be written")
			}
			if whom == "daemon" {
				counts(t, c) // nobody has to start a daemon for that
			}
			must(t, n.Launch())
			node.Eventually(t, "nothing is left", 40*time.Second, func() bool {
				left, _ := os.ReadDir(dir)
				records, _ := os.ReadDir(filepath.Join(n.Root, "checkpoints"))
				return len(left)+len(records) == 0
			})
			counts(t, c)
		})
	}
}

func shimPid(t *testing.T, n *node.Node) int {
	t.Helper()
	names, err := filepath.Glob("/proc/[0-9]*/cmdline")
	must(t, err)
	for _, name := range names {
		data, _ := os.ReadFile(name)
		if strings.Contains(string(data), "\x00shim\x00--state\x00"+n.State+"\x00") {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name)))
			must(t, err)
			return pid
		}
	}
	t.Fatal("no shim")
	return 0
}
