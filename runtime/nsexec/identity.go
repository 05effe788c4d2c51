package nsexec

import (
	"fmt"

	rspec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// enterDirectory plans the change to the working directory, first with full
// privileges, as the user may not be allowed to look it up, and if those are
// denied (a file server maps root to nobody) again as the user. It returns the
// address of the directory's name for the second try.
func (p *plan) enterDirectory(cwd string) uintptr {
	s := p.script
	s.step(fmt.Sprintf("enter working directory %q", cwd))
	name := s.text(cwd)
	s.call(unix.SYS_CHDIR, name).with(opFirst).allow(unix.EACCES, unix.EPERM)
	return name
}

// checkDirectory plans the second try and makes sure that the directory is in
// the container: the kernel names one outside of the root "(unreachable)"
// (getcwd(2)).
func (p *plan) checkDirectory(name uintptr) {
	s := p.script
	s.step("check working directory")
	s.call(unix.SYS_CHDIR, name).with(opSecond)
	buf := make([]byte, unix.PathMax)
	op := s.call(unix.SYS_GETCWD, address(s, &buf[0]), uintptr(len(buf))).with(opAbsolute)
	op.text = &buf[0]
}

// identity plans the change of user. Capabilities are kept over it, to be cut
// down afterwards.
func (p *plan) identity(proc *rspec.Process) {
	s := p.script
	u := proc.User
	s.step("keep capabilities")
	s.prctl(unix.PR_SET_KEEPCAPS, 1)
	s.step("set groups")
	groups := uintptr(0)
	if len(u.AdditionalGids) > 0 {
		list := append([]uint32(nil), u.AdditionalGids...)
		groups = address(s, &list[0])
	}
	s.call(unix.SYS_SETGROUPS, uintptr(len(u.AdditionalGids)), groups)
	s.step("set group")
	s.call(unix.SYS_SETGID, uintptr(u.GID))
	s.step("set user")
	s.call(unix.SYS_SETUID, uintptr(u.UID))
	p.undumpable()
	s.step("drop kept capabilities")
	s.prctl(unix.PR_SET_KEEPCAPS, 0)
}

// undumpable repeats what the child was born with: a change of credentials
// sets it to the sysctl fs.suid_dumpable, which may be 1.
func (p *plan) undumpable() {
	p.script.step("make process undumpable")
	p.script.prctl(unix.PR_SET_DUMPABLE, 0)
}
