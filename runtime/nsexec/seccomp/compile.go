// Package seccomp compiles the seccomp section of an OCI runtime spec to a
// filter for seccomp(2), in pure Go, with the meaning that runc gives it. What
// it is not sure to give the same meaning, it refuses with ErrUnsupported.
package seccomp

import (
	"errors"
	"fmt"
	"runtime"

	rspec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"noded.dev/noded/internal/kind"
)

// ErrUnsupported means that only an OCI runtime can apply the profile.
var ErrUnsupported = errors.New("seccomp profile is not supported")

func unsupported(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrUnsupported}, args...)...)
}

// Filter is a program with the flags of SECCOMP_SET_MODE_FILTER.
type Filter struct {
	Program []unix.SockFilter
	Flags   uint
}

// What a filter returns, from linux/seccomp.h.
const (
	retKillThread  = 0x00000000
	retKillProcess = 0x80000000
	retTrap        = 0x00030000
	retErrno       = 0x00050000
	retTrace       = 0x7ff00000
	retLog         = 0x7ffc0000
	retAllow       = 0x7fff0000

	retENOSYS = retErrno | uint32(unix.ENOSYS)
)

// Compile translates the profile for this machine. Errors are ErrUnsupported
// or of kind Invalid.
func Compile(p *rspec.LinuxSeccomp) (*Filter, error) {
	return compileFor(runtime.GOARCH, p)
}

func compileFor(goarch string, p *rspec.LinuxSeccomp) (*Filter, error) {
	flags, err := filterFlags(p.Flags)
	if err != nil {
		return nil, err
	}
	if p.ListenerPath != "" {
		return nil, unsupported("a notification listener")
	}
	arches, err := archesFor(goarch, p.Architectures)
	if err != nil {
		return nil, err
	}
	def, err := result(p.DefaultAction, p.DefaultErrnoRet)
	if err != nil {
		return nil, err
	}
	tables := make([]*table, len(arches))
	for i, a := range arches {
		tables[i] = &table{arch: a, def: def, rules: make(map[uint32][]rule, len(calls))}
	}
	for i := range p.Syscalls {
		if err := addRules(tables, &p.Syscalls[i]); err != nil {
			return nil, err
		}
	}
	for _, t := range tables {
		if err := t.addMuxed(); err != nil {
			return nil, err
		}
	}
	prog := assemble(tables)
	if len(prog) > unix.BPF_MAXINSNS {
		return nil, unsupported("a program of %d instructions (limit %d)", len(prog), unix.BPF_MAXINSNS)
	}
	return &Filter{Program: prog, Flags: flags}, nil
}

// filterFlags translates the flags. Without a list, the process keeps the
// speed of speculative store bypass; an empty list makes the kernel mitigate
// it. That is runc's reading of the spec.
func filterFlags(list []rspec.LinuxSeccompFlag) (uint, error) {
	if list == nil {
		return unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW, nil
	}
	var flags uint
	for _, f := range list {
		switch f {
		case "SECCOMP_FILTER_FLAG_TSYNC": // there is one thread only
		case rspec.LinuxSeccompFlagLog:
			flags |= unix.SECCOMP_FILTER_FLAG_LOG
		case rspec.LinuxSeccompFlagSpecAllow:
			flags |= unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW
		default:
			return 0, unsupported("flag %s", f)
		}
	}
	return flags, nil
}

// result translates an action to what the filter returns.
func result(a rspec.LinuxSeccompAction, errno *uint) (uint32, error) {
	data := uint32(unix.EPERM)
	if errno != nil {
		data = uint32(*errno) & 0xffff // SECCOMP_RET_DATA
	}
	switch a {
	case rspec.ActKill, rspec.ActKillThread:
		return retKillThread, nil
	case rspec.ActKillProcess:
		return retKillProcess, nil
	case rspec.ActTrap:
		return retTrap, nil
	case rspec.ActErrno:
		return retErrno | data, nil
	case rspec.ActTrace:
		return retTrace | data, nil
	case rspec.ActAllow:
		return retAllow, nil
	case rspec.ActLog:
		return retLog, nil
	case rspec.ActNotify:
		return 0, unsupported("action %s", a)
	}
	return 0, kind.Errorf(kind.Invalid, "seccomp action %q is unknown", a)
}

// condition is one comparison of an argument.
type condition struct {
	index       uint
	op          rspec.LinuxSeccompOperator
	value, mask uint64 // mask is used by SCMP_CMP_MASKED_EQ alone
}

// rule is a result for the calls whose arguments meet all conditions.
type rule struct {
	conditions []condition
	ret        uint32
}

// table is the rules for one architecture by call number.
type table struct {
	arch
	def   uint32
	last  uint32 // the highest call that the profile names; 0: none
	rules map[uint32][]rule
	muxed []mux
}

// addRules adds the rules that one entry of the profile means. A call that no
// architecture has is skipped: it is one of a kernel newer than noded.
func addRules(tables []*table, s *rspec.LinuxSyscall) error {
	ret, err := result(s.Action, s.ErrnoRet)
	if err != nil {
		return err
	}
	alternatives, err := alternatives(s.Args)
	if err != nil {
		return err
	}
	for _, name := range s.Names {
		if name == "" {
			return kind.Errorf(kind.Invalid, "seccomp rule names an empty system call")
		}
		c := find(name)
		if c == nil {
			continue
		}
		for _, t := range tables {
			if nr, ok := t.number(c); ok {
				t.last = max(t.last, nr)
				for _, conditions := range alternatives {
					if err := t.add(name, nr, rule{conditions, ret}); err != nil {
						return err
					}
				}
			}
			if t.arch != arch386 {
				continue
			}
			if through, number, ok := muxed(name); ok {
				for _, conditions := range alternatives {
					t.muxed = append(t.muxed, mux{through, number, rule{conditions, ret}})
				}
			}
		}
	}
	return nil
}

// add puts a rule behind those of the same call. The order of rules that
// disagree decides what a profile means, and runtimes do not agree on it
// themselves: such a profile is the runtime's.
func (t *table) add(name string, nr uint32, r rule) error {
	if r.ret == t.def {
		return nil // redundant
	}
	list := t.rules[nr]
	for _, other := range list {
		if other.ret != r.ret {
			return unsupported("rules for %s with different actions", name)
		}
		if len(other.conditions) == 0 {
			return nil // everything is matched already
		}
	}
	if len(r.conditions) == 0 {
		list = nil
	}
	t.rules[nr] = append(list, r)
	return nil
}

// mux is a rule for a call that is also reached through another one.
type mux struct {
	through string
	number  uint64
	rule    rule
}

// addMuxed makes rules for socketcall and ipc, whose first argument says which
// call is meant, and whose further ones are behind a pointer, where a filter
// cannot look. It takes the place of a condition on the call's own first
// argument, as in libseccomp: socket allowed for some families is socketcall
// allowed for all sockets.
func (t *table) addMuxed() error {
	for _, m := range t.muxed {
		nr, ok := t.number(find(m.through))
		if !ok {
			continue
		}
		list := []condition{{index: 0, op: rspec.OpEqualTo, value: m.number}}
		for _, c := range m.rule.conditions {
			if c.index != 0 {
				list = append(list, c)
			}
		}
		if err := t.add(m.through, nr, rule{list, m.rule.ret}); err != nil {
			return err
		}
	}
	return nil
}

// alternatives gives the lists of conditions of a rule: one list, all of which
// must hold; or, where an argument is named twice, one list for each condition.
// The latter is what runc has always done, and what profiles rely on.
func alternatives(args []rspec.LinuxSeccompArg) ([][]condition, error) {
	var all []condition
	var seen [6]bool
	repeated := false
	for _, a := range args {
		if a.Index >= uint(len(seen)) {
			return nil, kind.Errorf(kind.Invalid, "seccomp rule on argument %d (the last is 5)", a.Index)
		}
		repeated = repeated || seen[a.Index]
		seen[a.Index] = true
		c := condition{index: a.Index, op: a.Op, value: a.Value}
		switch a.Op {
		case rspec.OpMaskedEqual:
			c.mask, c.value = a.Value, a.ValueTwo&a.Value
		case rspec.OpEqualTo, rspec.OpNotEqual, rspec.OpLessThan, rspec.OpLessEqual, rspec.OpGreaterEqual, rspec.OpGreaterThan:
		default:
			return nil, kind.Errorf(kind.Invalid, "seccomp operator %q is unknown", a.Op)
		}
		all = append(all, c)
	}
	if !repeated {
		return [][]condition{all}, nil
	}
	var each [][]condition
	for _, c := range all {
		each = append(each, []condition{c})
	}
	return each, nil
}

// newer is what calls above the last named one return: they are newer than the
// profile and get ENOSYS, so that programs try an older one, unless the default
// lets calls through or leaves them to a tracer, or the profile names none at
// all for the architecture.
func (t *table) newer() uint32 {
	if t.last == 0 || t.def == retAllow || t.def == retLog || t.def&^0xffff == retTrace {
		return t.def
	}
	return retENOSYS
}
