package e2e

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/test/node"
	"noded.dev/noded/test/oracle"
)

// criuPath is the criu that tests use: NODED_TEST_CRIU, beside the daemon, or in PATH.
func criuPath(t *testing.T) string {
	t.Helper()
	for _, path := range []string{os.Getenv("NODED_TEST_CRIU"), filepath.Join(filepath.Dir(binary), "criu")} {
		if st, err := os.Stat(path); err == nil && st.Mode().IsRegular() {
			return path
		}
	}
	path, err := exec.LookPath("criu")
	if err != nil {
		t.Skip("there is no criu; hack/criu.sh builds one")
	}
	return path
}

// checkpoints begins a test on a node of its own that makes checkpoints.
func checkpoints(t *testing.T, daemon string) *node.Node {
	t.Helper()
	skipOnPeer(t, "it has no checkpoints of pods")
	criu := criuPath(t)
	if out, err := exec.Command(criu, "check").CombinedOutput(); err != nil {
		t.Skipf("criu does not work with this kernel: %s", out)
	}
	n := node.New(t, node.Options{
		Binary: daemon, Registry: registry, Config: "runtime.checkpoint = true",
		Env: []string{"PATH=" + filepath.Dir(criu) + ":" + os.Getenv("PATH")},
	})
	must(t, n.Warm())
	scope := n.Scope()
	scope.Restarts = true
	oracle.Check(t, scope)
	return n
}

// counter counts in memory and writes what it counts.
const counter = `i=0; echo kept > /kept; while :; do i=$((i+1)); echo $i; sleep 0.1; done`

// last is the highest number that a counter has written.
func last(t *testing.T, c *node.Container) int {
	t.Helper()
	lines := strings.Fields(c.Log(t).Text())
	if len(lines) == 0 {
		return 0
	}
	n, err := strconv.Atoi(lines[len(lines)-1])
	must(t, err)
	return n
}

// counts waits until the counter has gone on from where it was.
func counts(t *testing.T, c *node.Container) {
	t.Helper()
	from := last(t, c)
	node.Eventually(t, "the counter counts", 10*time.Second, func() bool { return last(t, c) > from+1 })
	numbers := strings.Fields(c.Log(t).Text())
	for i := 1; i < len(numbers); i++ {
		before, _ := strconv.Atoi(numbers[i-1])
		if now, _ := strconv.Atoi(numbers[i]); now != before+1 {
			t.Fatalf("after %d comes %d", before, now)
		}
	}
}

func checkpointContainer(c *node.Container, location string, timeout time.Duration) error {
	ctx, cancel := node.Context()
	defer cancel()
	_, err := c.Pod.Node.Runtime.CheckpointContainer(ctx, &cri.CheckpointContainerRequest{
		ContainerId: c.ID, Location: location, Timeout: int64(timeout / time.Second)})
	return err
}

func want(t *testing.T, err error, code codes.Code, text string) {
	t.Helper()
	if status.Code(err) != code || !strings.Contains(status.Convert(err).Message(), text) {
		t.Errorf("got %v, want %v with %q", err, code, text)
	}
}

// TestCheckpointContainer looks into the archive of a container that goes on.
func TestCheckpointContainer(t *testing.T) {
	n := checkpoints(t, binary)
	p := n.RunPod(t)
	c := p.Run(t, counter)
	counts(t, c)
	location := filepath.Join(t.TempDir(), "checkpoint-x.tar")
	must(t, checkpointContainer(c, location, 0))
	counts(t, c)
	if out, _, code := c.Exec(t, "cat", "/kept"); out != "kept\n" || code != 0 {
		t.Errorf("exec after the checkpoint: %q, %d", out, code)
	}
	st, err := os.Stat(location)
	must(t, err)
	if st.Mode().Perm() != 0o600 {
		t.Errorf("the archive has mode %v", st.Mode())
	}
	names := archive(t, location)
	for _, name := range []string{"checkpoint/inventory.img", "checkpoint/core-1.img", "checkpoint/dump.log", "config.dump", "spec.dump", "rootfs-diff.tar"} {
		if !slices.Contains(names, name) {
			t.Errorf("the archive has no %s: %v", name, names)
		}
	}
	want(t, checkpointContainer(c, location, 0), codes.AlreadyExists, location)
	want(t, checkpointContainer(c, "relative.tar", 0), codes.InvalidArgument, "location")
	want(t, checkpointContainer(c, location+"/../y", 0), codes.InvalidArgument, "location")
	created := p.Create(t, "sleep 1000")
	want(t, checkpointContainer(created, location+"2", 0), codes.FailedPrecondition, "not running")
	must(t, c.Stop(0))
	want(t, checkpointContainer(c, location+"2", 0), codes.FailedPrecondition, "not running")
	c.ID = strings.Repeat("0", 64)
	want(t, checkpointContainer(c, location+"2", 0), codes.NotFound, "")
	nothingBut(t, filepath.Dir(location), "checkpoint-x.tar")
	nothingBut(t, filepath.Join(n.Root, "checkpoints"))
}

func archive(t *testing.T, location string) (names []string) {
	t.Helper()
	f, err := os.Open(location)
	must(t, err)
	defer f.Close()
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return names
		}
		must(t, err)
		names = append(names, h.Name)
	}
}

// nothingBut wants a folder to hold exactly these.
func nothingBut(t *testing.T, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	var have []string
	for _, e := range entries {
		have = append(have, e.Name())
	}
	if !slices.Equal(have, want) {
		t.Errorf("%s holds %v, want %v", dir, have, want)
	}
}

// TestCheckpointOff: without the key in its configuration, a node has no checkpoints.
func TestCheckpointOff(t *testing.T) {
	skipOnPeer(t, "it has another configuration")
	n := start(t)
	c := n.RunPod(t).Run(t, "sleep 1000")
	dir := t.TempDir()
	want(t, checkpointContainer(c, filepath.Join(dir, "x.tar"), 0), codes.Unimplemented, "runtime.checkpoint = true")
	ctx, cancel := node.Context()
	defer cancel()
	_, err := n.Runtime.CheckpointPod(ctx, &cri.CheckpointPodRequest{PodSandboxId: c.Pod.ID, OutputPath: dir, ContainerIds: []string{c.ID}})
	want(t, err, codes.Unimplemented, "runtime.checkpoint = true")
	nothingBut(t, dir)
}

// TestCheckpointWithoutCriu says why it cannot, and what is missing.
func TestCheckpointWithoutCriu(t *testing.T) {
	skipOnPeer(t, "it has another configuration")
	dir := t.TempDir()
	broken := filepath.Join(dir, "criu")
	must(t, os.WriteFile(broken, []byte("#!/bin/sh\necho Version: 9.1; [ $1 = check ] || exit 0\necho 'Error (criu/cr-check.c:1): no such kernel'; exit 1\n"), 0o755))
	copied := filepath.Join(dir, "noded")
	must(t, exec.Command("cp", binary, copied).Run())
	n := node.New(t, node.Options{Binary: copied, Registry: registry, Config: "runtime.checkpoint = true"})
	must(t, n.Warm())
	c := n.RunPod(t).Run(t, counter)
	location := filepath.Join(t.TempDir(), "x.tar")
	want(t, checkpointContainer(c, location, 0), codes.FailedPrecondition, "no such kernel")
	must(t, os.Remove(broken))
	want(t, checkpointContainer(c, location, 0), codes.FailedPrecondition, "criu cannot be executed")
	counts(t, c)
}

// TestCheckpointTimeout: a dump that takes too long is given up, and the
// container goes on as if nothing had been.
func TestCheckpointTimeout(t *testing.T) {
	n := checkpoints(t, binary)
	p := n.RunPod(t)
	// Memory that takes longer to write than a dump has.
	c := p.Run(t, `{ head -c 400000000 /dev/zero; sleep 10000; } | tail -c 400000000 & sleep 1; `+counter)
	node.Eventually(t, "the counter begins", 60*time.Second, func() bool { return last(t, c) > 0 })
	dir := t.TempDir()
	begin := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), 700*time.Millisecond)
	defer cancel()
	_, err := n.Runtime.CheckpointContainer(ctx, &cri.CheckpointContainerRequest{ContainerId: c.ID, Location: filepath.Join(dir, "x.tar")})
	want(t, err, codes.DeadlineExceeded, "")
	t.Logf("gave up after %v", time.Since(begin))
	counts(t, c)
	node.Eventually(t, "nothing is left", 10*time.Second, func() bool {
		left, _ := os.ReadDir(filepath.Join(n.Root, "checkpoints"))
		return len(left) == 0
	})
	nothingBut(t, dir)
	begin = time.Now()
	err = checkpointContainer(c, filepath.Join(dir, "x.tar"), time.Second)
	t.Logf("timeout of 1 s: %v after %v", err, time.Since(begin))
	counts(t, c)
}
