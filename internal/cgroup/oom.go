package cgroup

import (
	"fmt"

	"noded.dev/noded/internal/kind"
)

// OOMKills counts the processes of the cgroup, and of those below it, that the
// kernel has killed for want of memory, whichever limit was reached. It only
// grows; compare with the value at the container's start. The error is of kind
// NotFound if the cgroup is gone, so read before removing it.
func (g *Group) OOMKills() (uint64, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	file := "memory.oom_control" // v1: oom_kill_disable, under_oom, oom_kill
	if g.v2("memory") {
		file = "memory.events" // v2: low, high, max, oom, oom_kill, oom_group_kill
	}
	b, err := g.read("memory", file)
	if err != nil {
		return 0, fmt.Errorf("read oom kills of cgroup %s: %w", g.dir, err)
	}
	var n uint64
	found := false
	keyed(b, func(key string, v uint64) {
		if key == "oom_kill" {
			n, found = v, true
		}
	})
	if !found {
		return 0, kind.Errorf(kind.Precondition, "the kernel does not count oom kills in %s", file)
	}
	return n, nil
}
