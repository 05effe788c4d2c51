package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"noded.dev/noded/internal/kind"
)

// realGroup makes a cgroup of the test's own in the machine's hierarchies.
func realGroup(t *testing.T) (*Host, string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	h, err := Detect("")
	if err != nil {
		t.Skip("no cgroups here:", err)
	}
	top := fmt.Sprintf("noded-cgtest-%d-%s", os.Getpid(), t.Name())
	dir := top + "/c1"
	if err := h.Make(dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := errors.Join(h.Kill(ctx, top), h.Remove(ctx, top)); err != nil {
			t.Error("clean up:", err)
		}
		if left := h.Folders(top); len(left) > 0 {
			t.Error("left behind:", left)
		}
	})
	return h, dir
}

// shell starts a shell that enters the cgroup before it runs the script.
func shell(t *testing.T, folders []string, script string) *exec.Cmd {
	t.Helper()
	var enter strings.Builder
	for _, f := range folders {
		fmt.Fprintf(&enter, "echo $$ > %s/cgroup.procs && ", f)
	}
	cmd := exec.Command("/bin/sh", "-c", enter.String()+"echo ready; "+script)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	if line := make([]byte, 6); true {
		if _, err := out.Read(line); err != nil || string(line) != "ready\n" {
			t.Fatalf("shell did not enter the cgroup: %q %v", line, err)
		}
	}
	return cmd
}

func kill(t *testing.T, h *Host, dir string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	start := time.Now()
	if err := h.Kill(ctx, dir); err != nil {
		t.Fatal(err)
	}
	t.Logf("kill took %v", time.Since(start))
	if pids, err := h.Pids(dir); err != nil || len(pids) > 0 {
		t.Fatalf("left: %v, %v", pids, err)
	}
}

// bomb forks two of itself for ever; the pids limit keeps the machine alive.
const bomb = `b() { b & b & wait; b; }; b 2>/dev/null`

func limitPids(t *testing.T, h *Host, dir string) {
	t.Helper()
	root, _ := h.controller("pids")
	if err := os.WriteFile(filepath.Join(root, dir, "pids.max"), []byte("200"), 0); err != nil {
		t.Fatal(err)
	}
}

func TestKillForkBomb(t *testing.T) {
	h, dir := realGroup(t)
	limitPids(t, h, dir)
	shell(t, h.Folders(dir), bomb)
	waitFor(t, func() bool { p, _ := h.Pids(dir); return len(p) > 50 })
	kill(t, h, dir)
}

// Some runtimes leave the v2 tree of a hybrid host out, and a v1 host has none.
func TestKillForkBombByFreezer(t *testing.T) {
	h, dir := realGroup(t)
	if h.mode == V2 {
		t.Skip("no v1 freezer here")
	}
	limitPids(t, h, dir)
	var v1 []string
	for _, f := range h.Folders(dir) {
		if f != h.Unified(dir) {
			v1 = append(v1, f)
		}
	}
	shell(t, v1, bomb)
	waitFor(t, func() bool { p, _ := h.Pids(dir); return len(p) > 50 })
	kill(t, h, dir)
}

func TestKillFrozenAndNested(t *testing.T) {
	h, dir := realGroup(t)
	if err := h.Make(dir + "/inner"); err != nil {
		t.Fatal(err)
	}
	shell(t, h.Folders(dir+"/inner"), "exec sleep 1000")
	root, v2 := h.controller("freezer")
	file, state := "freezer.state", "FROZEN"
	if v2 {
		file, state = "cgroup.freeze", "1"
	}
	if err := writeFile(filepath.Join(root, dir, "inner", file), state); err != nil {
		t.Fatal(err)
	}
	if pids, err := h.Pids(dir); err != nil || len(pids) != 1 {
		t.Fatalf("pids below %s: %v, %v; want one", dir, pids, err)
	}
	kill(t, h, dir)
}

func TestUnknownCgroup(t *testing.T) {
	h, dir := realGroup(t)
	ctx := t.Context()
	if err := errors.Join(h.Kill(ctx, dir+"/none"), h.Remove(ctx, dir+"/none")); err != nil {
		t.Error(err)
	}
	if pids, err := h.Pids(dir + "/none"); err != nil || len(pids) != 0 {
		t.Error(pids, err)
	}
	for _, root := range []string{"", "/", "..", "a/../.."} {
		if err := h.Kill(ctx, root); !kind.Is(err, kind.Invalid) {
			t.Errorf("Kill(%q) = %v, want kind Invalid", root, err)
		}
	}
}

func TestRemoveBusy(t *testing.T) {
	h, dir := realGroup(t)
	shell(t, h.Folders(dir), "exec sleep 1000")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := h.Remove(ctx, dir); err == nil || !strings.Contains(err.Error(), "busy") {
		t.Errorf("Remove of a cgroup in use: %v, want EBUSY", err)
	}
}

func TestRealStats(t *testing.T) {
	h, dir := realGroup(t)
	shell(t, h.Folders(dir), "while :; do :; done")
	g := h.Open(dir)
	defer g.Close()
	waitFor(t, func() bool { s, err := g.Stats(); return err == nil && s.CPU.Usage > 20e6 })
	s, err := g.Stats()
	if err != nil || s.Pids.Current != 1 || s.Memory.Usage == 0 || s.Memory.WorkingSet > s.Memory.Usage {
		t.Errorf("%+v, %v", s, err)
	}
	l, err := g.Limits()
	if err != nil || l.MemoryLimit != Unlimited || l.PidsLimit != Unlimited || l.CPUPeriod == 0 {
		t.Errorf("limits %+v, %v", l, err)
	}
	kill(t, h, dir)
	if err := h.Remove(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	if _, err := g.OOMKills(); !kind.Is(err, kind.NotFound) {
		t.Errorf("after removal: %v, want kind NotFound", err)
	}
}

func TestRealOOM(t *testing.T) {
	h, dir := realGroup(t)
	root, v2 := h.controller("memory")
	file := "memory.limit_in_bytes"
	if v2 {
		file = "memory.max"
	}
	if err := os.WriteFile(filepath.Join(root, dir, file), []byte(strconv.Itoa(8<<20)), 0); err != nil {
		t.Fatal(err)
	}
	g := h.Open(dir)
	defer g.Close()
	if n, err := g.OOMKills(); n != 0 || err != nil {
		t.Fatal(n, err)
	}
	shell(t, h.Folders(dir), "exec tail /dev/zero")
	waitFor(t, func() bool { n, err := g.OOMKills(); return n > 0 && err == nil })
	if l, err := g.Limits(); err != nil || l.MemoryLimit != 8<<20 {
		t.Errorf("limits %+v, %v", l, err)
	}
}

// The kernel answers EAGAIN where it can reclaim less than it is asked to,
// which is no reason to wait.
func TestMemoryInUse(t *testing.T) {
	h, dir := realGroup(t)
	if _, v2 := h.controller("memory"); !v2 {
		t.Skip("the memory controller of v1 refuses such a limit itself")
	}
	shell(t, h.Folders(dir), "exec sleep 1000")
	checked := make(chan error, 1)
	go func() { checked <- h.CheckMemoryLimit(dir, 4096) }()
	select {
	case err := <-checked:
		if !kind.Is(err, kind.Precondition) {
			t.Errorf("a limit below what a process needs: %v", err)
		}
	case <-time.After(30 * time.Second):
		t.Error("no answer within 30 s")
	}
	if pids, err := h.Pids(dir); err != nil || len(pids) != 1 {
		t.Errorf("left: %v, %v", pids, err)
	}
}

// TestStatsIsCheap keeps the promise that reading opens nothing again.
func TestStatsIsCheap(t *testing.T) {
	h, dir := realGroup(t)
	g := h.Open(dir)
	defer g.Close()
	if _, err := g.Stats(); err != nil {
		t.Fatal(err)
	}
	fds := openFDs(t)
	start := time.Now()
	for range 100 {
		if _, err := g.Stats(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("one reading takes %v with %d descriptors", time.Since(start)/100, len(g.files))
	if n := openFDs(t); n != fds {
		t.Errorf("%d descriptors before, %d after", fds, n)
	}
}

func openFDs(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return len(list)
}

// waitFor polls: the kernel announces none of what these tests wait for.
func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatal("waited ten seconds in vain")
}
