package nsexec

import (
	"bufio"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"noded.dev/noded/internal/idmap"
	"noded.dev/noded/internal/kind"
)

// usersFD is where the child has the user namespace until it has entered it.
const usersFD = reportFD + 1

// openUsers opens the container's user namespace, if it has one of its own, and
// finds out who the process's user is here.
func (p *plan) openUsers(r Request) (err error) {
	p.uid = r.Process.User.UID
	path, _ := userNamespace(r.Linux)
	own, err := os.Stat("/proc/self/ns/user")
	if err != nil {
		return fmt.Errorf("compare namespaces: %w", err)
	}
	its, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("compare namespaces: %w", err)
	}
	if os.SameFile(own, its) {
		return nil
	}
	if p.users, err = p.files.open(path, unix.O_RDONLY); err != nil {
		return err
	}
	// Its first process is in this namespace, as check has found.
	if p.uid, err = hostUser(fmt.Sprintf("/proc/%d/uid_map", r.InitPid), p.uid); err != nil {
		return alive(r, err)
	}
	return nil
}

// hostUser looks a user up in a process's uid_map (user_namespaces(7)).
func hostUser(path string, uid uint32) (uint32, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, fmt.Errorf("read map of ids: %w", err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		var ids idmap.Range
		if _, err := fmt.Sscan(lines.Text(), &ids.Container, &ids.Host, &ids.Length); err != nil {
			return 0, fmt.Errorf("read map of ids: %w", err)
		}
		if host, ok := ids.ToHost(uid); ok {
			return host, nil
		}
	}
	if err := lines.Err(); err != nil {
		return 0, fmt.Errorf("read map of ids: %w", err)
	}
	return 0, kind.Errorf(kind.Invalid, "user %d does not exist in the container's user namespace", uid)
}

// enterUsers plans to become root of the user namespace. A process with several
// threads cannot enter one, but the child has one thread. What only the node's
// root may do has to be planned before.
func (p *plan) enterUsers() {
	s := p.script
	s.step("enter user namespace")
	s.call(unix.SYS_SETNS, usersFD, unix.CLONE_NEWUSER)
	s.call(unix.SYS_CLOSE, usersFD)
	p.undumpable()
	s.step("become root of the user namespace")
	s.call(unix.SYS_SETRESGID, 0, 0, 0)
	s.call(unix.SYS_SETRESUID, 0, 0, 0)
	p.undumpable()
}
