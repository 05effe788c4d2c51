package nsexec

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"noded.dev/noded/internal/cgroup"
	"noded.dev/noded/internal/kind"
)

// plan is everything prepared on the host for one child: its script and the
// descriptors that the script uses.
type plan struct {
	script    *script
	files     files
	initPidfd int
	unified   []int // folders of the v2 tree to be born in, best first

	reportIn  *os.File // read side of the report pipe, ours
	reportOut int
	hostProc  int // the host's /proc: the container's may be anything

	terminal bool
	size     *unix.Winsize
	uid      uint32 // as this process sees it
	users    int    // the user namespace to enter; -1 none
	stdioAt  int    // index of the calls that set the standard streams
}

// newPlan opens and compiles all that the child needs.
func newPlan(r Request) (_ *plan, err error) {
	p := &plan{script: newScript(), initPidfd: r.InitPidfd, terminal: r.Terminal, users: -1}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	if c := r.Process.ConsoleSize; c != nil {
		p.size = &unix.Winsize{Row: uint16(c.Height), Col: uint16(c.Width)}
	}
	if err := p.openReport(); err != nil {
		return nil, fmt.Errorf("make report pipe: %w", err)
	}
	if err := p.openUsers(r); err != nil {
		return nil, err
	}
	if p.hostProc, err = p.files.open("/proc", unix.O_PATH|unix.O_DIRECTORY); err != nil {
		return nil, err
	}
	stdio, err := p.openStdio(r)
	if err != nil {
		return nil, err
	}
	if err := p.cgroups(r); err != nil {
		return nil, err
	}
	if err := p.host(r); err != nil {
		return nil, err
	}
	p.streams(stdio)
	if err := p.limits(r); err != nil {
		return nil, err
	}
	return p, p.program(r)
}

func (p *plan) close() {
	p.script.release()
	p.files.close()
	if p.reportIn != nil {
		p.reportIn.Close()
	}
}

func (p *plan) openReport() error {
	var ends [2]int
	if err := unix.Pipe2(ends[:], unix.O_CLOEXEC); err != nil {
		return err
	}
	defer unix.Close(ends[1])
	if err := unix.SetNonblock(ends[0], true); err != nil { // for the deadline
		unix.Close(ends[0])
		return err
	}
	p.reportIn = os.NewFile(uintptr(ends[0]), "report pipe")
	var err error
	p.reportOut, err = p.files.dup(ends[1])
	return err
}

// openStdio gives the child's standard streams; with a terminal they are not
// known yet.
func (p *plan) openStdio(r Request) ([3]int, error) {
	var fds [3]int
	if r.Terminal {
		return fds, nil
	}
	for i, f := range []*os.File{r.Stdin, r.Stdout, r.Stderr} {
		var err error
		if f == nil {
			fds[i], err = p.files.open("/dev/null", unix.O_RDWR)
		} else {
			fds[i], err = p.files.dupFile(f)
		}
		if err == nil {
			err = giveTo(fds[i], p.uid)
		}
		if err == nil {
			// A program expects streams that block. The flag belongs to the
			// child's side of a pipe alone.
			err = unix.SetNonblock(fds[i], false)
		}
		if err != nil {
			return fds, fmt.Errorf("prepare standard stream %d: %w", i, err)
		}
	}
	return fds, nil
}

// cgroups plans to be born in the v2 cgroup and to enter the v1 cgroups. The
// thread does not enter them: a v1 cgroup lists the process of every thread in
// it, so whoever kills the container in that moment would kill the shim.
func (p *plan) cgroups(r Request) error {
	h := r.Cgroups
	if h == nil {
		var err error
		if h, err = cgroup.Detect(""); err != nil {
			return err
		}
	}
	if frozen, err := h.Frozen(r.Cgroup); err != nil {
		return err
	} else if frozen {
		return kind.Errorf(kind.Precondition, "container is paused")
	}
	s := p.script
	s.step("join cgroup")
	zero := s.text("0") // the writer itself, which costs least
	found := false
	for _, folder := range h.V1Folders(r.Cgroup) {
		fd, err := p.files.open(folder+"/tasks", unix.O_WRONLY)
		if errors.Is(err, unix.ENOENT) {
			continue // the runtime leaves this hierarchy out
		}
		if err != nil {
			return err
		}
		found = true
		s.call(unix.SYS_WRITE, uintptr(fd), zero, 1)
	}
	unified := h.UnifiedOf(r.Cgroup, r.InitPid)
	if !found && len(unified) == 0 {
		return kind.Errorf(kind.Precondition, "container's cgroup %s is gone", r.Cgroup)
	}
	for _, folder := range unified {
		fd, err := p.files.open(folder, unix.O_PATH|unix.O_DIRECTORY)
		if err != nil {
			return err
		}
		p.unified = append(p.unified, fd)
	}
	return nil
}

// host plans what needs the host's /proc and full privileges.
func (p *plan) host(r Request) error {
	s := p.script
	s.step("enter cgroup namespace")
	s.call(unix.SYS_SETNS, uintptr(r.InitPidfd), unix.CLONE_NEWCGROUP).allow(unix.EINVAL) // not in the kernel
	s.step("start session")
	s.call(unix.SYS_SETSID)
	s.step("reset signals")
	p.resetSignals()
	if err := p.oomScore(r); err != nil {
		return err
	}
	p.labels(r.Process)
	if p.users < 0 {
		p.keyring(r) // else that of the user namespace, and only inside
	}
	s.step("reset cpu affinity") // the kernel cuts it down to the cpuset
	all := make([]byte, 1024)
	for i := range all {
		all[i] = 0xff
	}
	s.call(unix.SYS_SCHED_SETAFFINITY, 0, uintptr(len(all)), address(s, &all[0])).allow(unix.EINVAL, unix.EPERM)
	return nil
}

func (p *plan) keyring(r Request) {
	s := p.script
	s.step("join session keyring")
	keyring := uintptr(0) // a new one without a name
	if r.ContainerID != "" {
		keyring = s.text("_ses." + r.ContainerID)
	}
	s.call(unix.SYS_KEYCTL, unix.KEYCTL_JOIN_SESSION_KEYRING, keyring).allow(unix.ENOSYS)
}

// resetSignals undoes what this process ignores or blocks, which an exec would
// keep.
func (p *plan) resetSignals() {
	s := p.script
	const setSize = 8 // of the kernel's sigset_t
	deflt := make([]uint64, 4)
	action := address(s, &deflt[0])
	for sig := uintptr(1); sig <= 64; sig++ {
		if sig != uintptr(unix.SIGKILL) && sig != uintptr(unix.SIGSTOP) {
			s.call(unix.SYS_RT_SIGACTION, sig, action, 0, setSize)
		}
	}
	s.call(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, action, 0, setSize)
}

// oomScore sets the score of the spec, or else that of the container's first
// process: never this process's own, which is the least killable of the node.
// To lower it takes CAP_SYS_RESOURCE, which the host may not have.
func (p *plan) oomScore(r Request) error {
	var score string
	if v := r.Process.OOMScoreAdj; v != nil {
		score = strconv.Itoa(*v)
	} else {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", r.InitPid))
		if err != nil {
			return alive(r, fmt.Errorf("read oom score: %w", err))
		}
		score = string(b)
	}
	p.script.step("set oom score")
	_, write := p.script.writeTo(p.hostProc, "self/oom_score_adj", score)
	write.allow(unix.EACCES, unix.EPERM)
	return nil
}

// streams plans the standard streams and closes everything else: from there on
// /proc/self/fd leads nowhere, in particular not as a working directory.
func (p *plan) streams(stdio [3]int) {
	s := p.script
	s.step("set standard streams")
	p.stdioAt = len(s.calls)
	for i := range 3 {
		s.call(unix.SYS_DUP3, 0, uintptr(i), 0)
	}
	s.setStdio(stdio, p.stdioAt)
	s.call(unix.SYS_DUP3, uintptr(p.reportOut), reportFD, unix.O_CLOEXEC)
	last := uintptr(reportFD)
	if p.users >= 0 {
		last = usersFD
		s.call(unix.SYS_DUP3, uintptr(p.users), usersFD, unix.O_CLOEXEC)
	}
	s.call(unix.SYS_CLOSE_RANGE, last+1, uintptr(^uint32(0)), 0)
	if p.terminal {
		s.step("set controlling terminal")
		s.call(unix.SYS_IOCTL, 0, unix.TIOCSCTTY, 0)
	}
}

func (s *script) setStdio(fds [3]int, at int) {
	for i, fd := range fds {
		s.calls[at+i].args[0] = uintptr(fd)
	}
}

// limits plans umask, resource limits and no_new_privs.
func (p *plan) limits(r Request) error {
	s := p.script
	if m := r.Process.User.Umask; m != nil {
		s.step("set umask")
		s.call(unix.SYS_UMASK, uintptr(*m))
	}
	if err := p.rlimits(r); err != nil {
		return err
	}
	if r.Process.NoNewPrivileges {
		s.step("set no_new_privs")
		s.prctl(unix.PR_SET_NO_NEW_PRIVS, 1)
	}
	return nil
}

// program plans identity, filter and exec. Without no_new_privs a filter needs
// a privilege that the process may be about to lose; otherwise it comes last.
func (p *plan) program(r Request) error {
	s := p.script
	filter := r.Filter
	if filter == nil && r.Linux != nil && r.Linux.Seccomp != nil {
		var err error
		if filter, err = Compile(r.Linux.Seccomp); err != nil {
			return err
		}
	}
	caps := newCapabilities(r.Process.Capabilities)
	if p.users >= 0 {
		p.enterUsers()
		p.keyring(r)
	}
	dir := p.enterDirectory(r.Process.Cwd)
	caps.bound(s)
	if filter != nil && !r.Process.NoNewPrivileges {
		p.filter(filter)
	}
	p.identity(r.Process)
	p.checkDirectory(dir)
	caps.apply(s)
	if filter != nil && r.Process.NoNewPrivileges {
		p.filter(filter)
	}
	return p.exec(r)
}
