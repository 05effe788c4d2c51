package nsexec

import (
	"fmt"
	"path"
	"slices"
	"strings"

	rspec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"noded.dev/noded/internal/kind"
	"noded.dev/noded/internal/userdb"
	"noded.dev/noded/runtime/nsexec/seccomp"
)

// exec plans the program, tried in every folder of PATH if it has no slash.
func (p *plan) exec(r Request) error {
	env, err := environment(r)
	if err != nil {
		return err
	}
	s := p.script
	s.step(fmt.Sprintf("execute %q", r.Process.Args[0]))
	argv, envp := s.texts(r.Process.Args), s.texts(env)
	tries := candidates(r.Process.Args[0], env)
	for i, name := range tries {
		op := s.call(unix.SYS_EXECVE, s.text(name), argv, envp).with(opExec)
		if i < len(tries)-1 {
			op.allow(unix.ENOENT, unix.ENOTDIR, unix.EACCES, unix.ENAMETOOLONG)
		}
	}
	return nil
}

// candidates are the paths to try. Folders of PATH that are not absolute are
// left out: what they name depends on the working directory.
func candidates(name string, env []string) []string {
	if strings.Contains(name, "/") {
		return []string{name}
	}
	var list []string
	for _, kv := range env {
		value, ok := strings.CutPrefix(kv, "PATH=")
		if !ok {
			continue
		}
		for dir := range strings.SplitSeq(value, ":") {
			if path.IsAbs(dir) {
				list = append(list, path.Join(dir, name))
			}
		}
	}
	if len(list) == 0 {
		return []string{"/" + name + "/"} // cannot be a program: ENOENT
	}
	return list
}

// environment keeps the last value of each variable, and sets HOME from the
// container's /etc/passwd where the spec does not, as runtimes do.
func environment(r Request) ([]string, error) {
	var out []string
	seen := map[string]bool{}
	for _, kv := range slices.Backward(r.Process.Env) {
		name, value, ok := strings.Cut(kv, "=")
		if !ok || name == "" || strings.ContainsRune(kv, 0) {
			return nil, kind.Errorf(kind.Invalid, "environment variable %q is malformed", name)
		}
		if seen[name] || name == "HOME" && value == "" {
			continue
		}
		seen[name] = true
		out = append(out, kv)
	}
	slices.Reverse(out)
	if !seen["HOME"] {
		out = append(out, "HOME="+home(r))
	}
	return out, nil
}

// home is "/" for a user that the container does not know.
func home(r Request) string {
	uid := int64(r.Process.User.UID)
	u, err := userdb.Resolve(userdb.Request{
		RootFS:       fmt.Sprintf("/proc/%d/root", r.InitPid),
		RunAsUser:    &uid,
		StrictGroups: true,
	})
	if err != nil || u.Home == "" {
		return "/"
	}
	return u.Home
}

// labels plans the security module's label for the exec. They are the writing
// thread's own attributes, so the child writes them.
func (p *plan) labels(proc *rspec.Process) {
	s := p.script
	if label := proc.SelinuxLabel; label != "" {
		s.step("set SELinux label")
		s.writeTo(p.hostProc, "thread-self/attr/keycreate", label)
		s.writeTo(p.hostProc, "thread-self/attr/exec", label)
	}
	if profile := proc.ApparmorProfile; profile != "" {
		s.step("set AppArmor profile")
		text := "exec " + profile
		// Linux before 5.8 has only the file that all security modules share.
		open, _ := s.writeTo(p.hostProc, "thread-self/attr/apparmor/exec", text)
		open.allow(unix.ENOENT)
	}
}

// Compile makes Request.Filter of a container's profile. Errors are
// ErrUnsupported or of kind Invalid.
func Compile(profile *rspec.LinuxSeccomp) (*seccomp.Filter, error) {
	f, err := seccomp.Compile(profile)
	if err != nil && kind.Of(err) != kind.Invalid {
		return nil, unsupported("%w", err)
	}
	return f, err
}

func (p *plan) filter(f *seccomp.Filter) {
	s := p.script
	s.step("install seccomp filter")
	prog := &unix.SockFprog{Len: uint16(len(f.Program)), Filter: &f.Program[0]}
	s.pins.Pin(&f.Program[0])
	s.call(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, uintptr(f.Flags), address(s, prog))
}
