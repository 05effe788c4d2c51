package sandbox

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"noded.dev/noded/internal/cgroup"
	"noded.dev/noded/internal/oomlog"
	"noded.dev/noded/runtime"
)

// killedCode is the exit code of a process that ended by SIGKILL, and of a
// shell that passes such an end of its child on.
const killedCode = 128 + int(unix.SIGKILL)

// explain turns an exit into the CRI's reason and message. A container counts
// as OOM-killed when it ended by SIGKILL and the kernel had killed something of
// it for memory that noded's own SIGKILL does not account for: the kernel's
// counter alone would blame memory for every later end of a container that
// once lost a child.
func (c *Container) explain(exit runtime.Exit) (reason, message string) {
	switch {
	case exit.Lost:
		return reasonLost, "the exit status was lost: both noded processes were dead when the container ended"
	case exit.Code == 0:
		return reasonCompleted, ""
	case exit.Code != killedCode:
		return reasonError, ""
	}
	kills, err := c.oomKills()
	if err != nil || kills <= c.record().OOMKills {
		return reasonError, ""
	}
	return reasonOOMKilled, c.explainOOM(kills)
}

// oomKills is the kernel's count since the container was made: its cgroup is
// its own and new, and the count outlives every restart of noded.
func (c *Container) oomKills() (uint64, error) {
	group := c.m.cgroups.Open(c.m.cgroups.Dir(c.record().Cgroup))
	defer group.Close()
	return group.OOMKills()
}

// noteOOMKills notes, before noded kills the container, which kills came
// earlier and thus did not end it.
func (c *Container) noteOOMKills() {
	kills, err := c.oomKills()
	if err != nil || kills <= c.record().OOMKills {
		return
	}
	if err := c.note(func(r *containerRecord) { r.OOMKills = kills }); err != nil {
		c.log.WithError(err).Warn("record is not saved, a restart of noded now may blame memory for the container's end")
	}
}

// explainOOM says whose limit was reached, how much was used and who was
// killed: from the kernel's log if it can be read and still has it, otherwise
// from the cgroups.
func (c *Container) explainOOM(kills uint64) string {
	dir := c.m.cgroups.Dir(c.record().Cgroup)
	own, pod := c.memoryPeak(dir), c.memoryPeak(c.pod.cgroupDir())
	victims, err := oomlog.Find(c.id)
	if err != nil {
		c.log.WithError(err).Debug("who was killed for memory is not known")
	}
	var who, limit string
	if n := len(victims); n > 0 {
		last := victims[n-1]
		who = fmt.Sprintf("killed %q (pid %d on the node)", last.Name, last.Pid)
		if kills > 1 {
			who += fmt.Sprintf(", the last of %d", kills)
		}
		limit = c.limitName(last.Limit)
	} else {
		who = fmt.Sprintf("%d of its processes killed", kills)
		switch {
		case own.Reached:
			limit = "container"
		case pod.Reached:
			limit = "pod"
		}
	}
	switch limit {
	case "container":
		return fmt.Sprintf("out of memory: the container reached its limit of %d bytes%s; %s", own.Limit, peakText(own), who)
	case "pod":
		return fmt.Sprintf("out of memory: the pod reached its limit of %d bytes%s, the container used at most %d; %s", pod.Limit, peakText(pod), own.Peak, who)
	case "":
		return fmt.Sprintf("out of memory: the node, or a cgroup above the pod, had none left, the container used at most %d bytes; %s", own.Peak, who)
	}
	return fmt.Sprintf("out of memory: cgroup %s reached its limit, the container used at most %d bytes; %s", limit, own.Peak, who)
}

// limitName says which level a cgroup of the kernel's log is; "" is the node.
// The log has paths of the machine, noded perhaps those of a cgroup namespace.
func (c *Container) limitName(path string) string {
	switch pod := "/" + strings.Trim(c.pod.cgroupDir(), "/"); {
	case strings.Contains(path, "/"+c.id):
		return "container"
	case pod != "/" && strings.HasSuffix(path, pod):
		return "pod"
	}
	return path
}

func (c *Container) memoryPeak(dir string) cgroup.MemoryPeak {
	group := c.m.cgroups.Open(dir)
	defer group.Close()
	return group.MemoryPeak()
}

func peakText(m cgroup.MemoryPeak) string {
	if m.Peak == 0 {
		return ""
	}
	return fmt.Sprintf(" (at most %d used)", m.Peak)
}
