package runtime

import (
	"os"
	"strconv"
	"strings"

	"noded.dev/noded/runtime/pidfd"
)

// orphans finds the execs of a shim that was killed. Whoever asked for one has
// been told that it was killed, and may not know its pid: the shim may have
// died before it could answer.
//
// The mark of an exec is that it is in a container's pid namespace and its
// parent is not. What a container's process leaves behind is given to the first
// process of its pid namespace. In the host's pid namespace it is given to the
// shim, as are execs, so there nothing tells them apart and they go on.
type orphans struct {
	s       *shim
	self    string          // our pid namespace
	program os.FileInfo     // ours, which is that of a child before its exec
	inits   map[int]bool    // of containers, which are no execs
	spaces  map[string]bool // pid namespaces of containers
	members map[int]bool    // of containers' cgroups
}

// killOrphans is called after the containers are adopted and before anything
// is started in them.
func (s *shim) killOrphans() {
	o := &orphans{s: s, inits: map[int]bool{}, spaces: map[string]bool{}, members: map[int]bool{}}
	o.self = pidNamespace(os.Getpid())
	if info, err := os.Stat("/proc/self/exe"); err == nil {
		o.program = info
	}
	for _, c := range s.containers {
		o.addContainer(c)
	}
	if len(o.spaces) == 0 {
		return
	}
	all, err := pidfd.All()
	if err != nil {
		s.log.WithError(err).Warn("cannot look for execs of an earlier shim")
		return
	}
	for _, p := range all {
		if !p.Zombie && o.isExec(p) {
			o.kill(p)
		}
	}
}

func (o *orphans) addContainer(c *container) {
	if c.files[filePidfd] == nil || pidfd.Ended(c.files[filePidfd]) {
		return // and so has its pid namespace, or it is the pod's
	}
	pid := c.record.Process.Pid
	o.inits[pid] = true
	if space := pidNamespace(pid); space != "" && space != o.self {
		o.spaces[space] = true
	}
	if o.s.cgroups == nil || c.record.Request.CgroupsDir == "" {
		return
	}
	pids, err := o.s.cgroups.Pids(o.s.cgroups.Dir(c.record.Request.CgroupsDir))
	if err != nil {
		o.s.log.WithError(err).WithField("container", c.id).Warn("cannot look for execs of an earlier shim")
	}
	for _, pid := range pids {
		o.members[pid] = true
	}
}

func (o *orphans) isExec(p pidfd.Process) bool {
	space := pidNamespace(p.Pid)
	if o.inits[p.Pid] || !o.spaces[space] || !o.ours(p.Pid) || isFirst(p.Pid) {
		return false
	}
	// A parent that ends in this moment is no parent outside: look again.
	for range 10 {
		now, err := pidfd.Read(p.Pid)
		if err != nil || now.Start != p.Start {
			return false
		}
		if parent := pidNamespace(now.Parent); parent != "" {
			return parent != space
		}
	}
	return false
}

// ours tells an exec from what somebody else, say nsenter(1), has put into the
// container's pid namespace: it is in the container's cgroup or, in the moment
// before it enters that, executes our program.
func (o *orphans) ours(pid int) bool {
	if o.members[pid] {
		return true
	}
	info, err := os.Stat("/proc/" + strconv.Itoa(pid) + "/exe")
	return err == nil && o.program != nil && os.SameFile(info, o.program)
}

func (o *orphans) kill(p pidfd.Process) {
	f, err := pidfd.OpenProcess(p.Pid, p.Start)
	if err != nil {
		return // it has ended
	}
	defer f.Close()
	o.s.log.WithField("process", p.Pid).Warn("killing an exec of the shim that died")
	pidfd.KillTree(f, p.Pid)
}

// isFirst reports whether a process is the first of its pid namespace, or may
// be: the last number of NSpid in proc_pid_status(5) is the process's in its own.
func isFirst(pid int) bool {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return true
	}
	_, list, _ := strings.Cut(string(data), "\nNSpid:")
	list, _, _ = strings.Cut(list, "\n")
	numbers := strings.Fields(list)
	return len(numbers) == 0 || numbers[len(numbers)-1] == "1"
}

// pidNamespace names a process's pid namespace, "" if it is gone.
func pidNamespace(pid int) string {
	name, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/ns/pid")
	if err != nil {
		return ""
	}
	return name
}
