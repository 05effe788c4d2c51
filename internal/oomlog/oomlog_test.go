package oomlog

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

func TestParse(t *testing.T) {
	const head = "6,902,5078,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=c,mems_allowed=0,"
	for name, c := range map[string]struct {
		record string
		want   Kill
	}{
		"container's limit": {head + "oom_memcg=/a/b,task_memcg=/a/b/sub,task=tail,pid=7,uid=0\n", Kill{"tail", 7, "/a/b/sub", "/a/b"}},
		"node's memory":     {"3,1,2,-;oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=c,mems_allowed=0,global_oom,task_memcg=/a,task=x,pid=12,uid=1000\n DICT=1\n", Kill{"x", 12, "/a", ""}},
		"hostile name":      {head + "oom_memcg=/a,task_memcg=/a,task=a,pid=1,uid=0,pid=99,uid=5", Kill{"a,pid=1,uid=0", 99, "/a", "/a"}},
		"empty name":        {head + "oom_memcg=/a,task_memcg=/a,task=,pid=9,uid=5", Kill{"", 9, "/a", "/a"}},
	} {
		if got, ok := parse(c.record); !ok || got != c.want {
			t.Errorf("%s: %+v, %v", name, got, ok)
		}
	}
	for name, record := range map[string]string{
		"other record":          "6,1,2,-;eth0: link up",
		"empty":                 "",
		"printed by a process":  "12,1,2,-;init: oom-kill:constraint=CONSTRAINT_MEMCG,oom_memcg=/a,task_memcg=/a,task=x,pid=1,uid=0",
		"cut off":               head + "oom_memcg=/a,task_memcg=/a,task=x",
		"cut off in the number": head + "oom_memcg=/a,task_memcg=/a,task=x,pid=",
	} {
		if got, ok := parse(record); ok {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

// TestFind has the kernel kill a process for memory and finds it.
func TestFind(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	name := fmt.Sprintf("noded-oomlog-%d-%d", os.Getpid(), time.Now().UnixNano()) // the log keeps what earlier runs did
	dir := filepath.Join("/sys/fs/cgroup/memory", name)
	limit := "memory.limit_in_bytes"
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		dir, limit = filepath.Join("/sys/fs/cgroup", name), "memory.max"
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Skip("no memory controller here:", err)
	}
	t.Cleanup(func() { os.Remove(dir) })
	if err := os.WriteFile(filepath.Join(dir, limit), []byte("8388608"), 0); err != nil {
		t.Skip("no memory controller here:", err)
	}
	cmd := exec.Command("/bin/sh", "-c", "echo 0 >"+dir+"/cgroup.procs; exec tail /dev/zero")
	if err := cmd.Run(); err == nil {
		t.Fatal("tail was not killed")
	}
	kills, err := Find(name)
	if err != nil || len(kills) != 1 || kills[0].Name != "tail" || kills[0].Limit != kills[0].Task || kills[0].Pid == 0 {
		t.Fatalf("kills %+v, %v", kills, err)
	}
	if kills, err := Find("no-such-cgroup-anywhere"); err != nil || len(kills) != 0 {
		t.Errorf("kills of nobody: %+v, %v", kills, err)
	}
}
