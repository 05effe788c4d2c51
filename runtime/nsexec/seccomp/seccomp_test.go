package seccomp

import (
	"encoding/binary"
	"errors"
	"testing"

	mobyseccomp "github.com/moby/profiles/seccomp"
	rspec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"noded.dev/noded/internal/kind"
)

// machine runs a filter. The VM reads big-endian words, which is what the test
// gives it.
type machine struct {
	t  *testing.T
	vm *bpf.VM
}

func compileTest(t *testing.T, goarch string, p *rspec.LinuxSeccomp) machine {
	t.Helper()
	f, err := compileFor(goarch, p)
	if err != nil {
		t.Fatal(err)
	}
	var raw []bpf.RawInstruction
	for _, i := range f.Program {
		raw = append(raw, bpf.RawInstruction{Op: i.Code, Jt: i.Jt, Jf: i.Jf, K: i.K})
	}
	prog, ok := bpf.Disassemble(raw)
	if !ok {
		t.Fatal("program has unknown instructions")
	}
	vm, err := bpf.NewVM(prog) // checks jumps
	if err != nil {
		t.Fatal(err)
	}
	return machine{t, vm}
}

func (m machine) run(audit, nr uint32, args ...uint64) uint32 {
	m.t.Helper()
	data := make([]byte, 64)
	binary.BigEndian.PutUint32(data[0:], nr)
	binary.BigEndian.PutUint32(data[4:], audit)
	for i, a := range args {
		binary.BigEndian.PutUint32(data[16+8*i:], uint32(a))
		binary.BigEndian.PutUint32(data[20+8*i:], uint32(a>>32))
	}
	n, err := m.vm.Run(data)
	if err != nil {
		m.t.Fatal(err)
	}
	return uint32(n)
}

func (m machine) want(what string, want, audit, nr uint32, args ...uint64) {
	m.t.Helper()
	if got := m.run(audit, nr, args...); got != want {
		m.t.Errorf("%s: %#x, want %#x", what, got, want)
	}
}

func allow(names ...string) rspec.LinuxSyscall {
	return rspec.LinuxSyscall{Names: names, Action: rspec.ActAllow}
}

const (
	amd64 = 0xC000003E
	i386  = 0x40000003
	arm64 = 0xC00000B7
	arm   = 0x40000028
	eperm = retErrno | uint32(unix.EPERM)
)

func TestArchitectures(t *testing.T) {
	p := &rspec.LinuxSeccomp{
		DefaultAction: rspec.ActErrno,
		Architectures: []rspec.Arch{rspec.ArchX86_64, rspec.ArchX86, rspec.ArchX32},
		Syscalls:      []rspec.LinuxSyscall{allow("read", "stat64", "execve", "nonesuch", "openat2")},
	}
	m := compileTest(t, "amd64", p)
	m.want("read", retAllow, amd64, 0)
	m.want("write", eperm, amd64, 1)
	m.want("execve", retAllow, amd64, 59)
	m.want("execve of x32", retAllow, amd64, x32Bit|520)
	m.want("execve of x32 by its 64-bit number", eperm, amd64, x32Bit|59)
	m.want("read of x32", retAllow, amd64, x32Bit)
	m.want("newer of x32", retENOSYS, amd64, x32Bit|521)
	m.want("read of i386", retAllow, i386, 3)
	m.want("stat64 of i386", retAllow, i386, 195)
	m.want("newest named", retAllow, amd64, 437)
	m.want("newer", retENOSYS, amd64, 438)
	m.want("newer of i386", retENOSYS, i386, 438)
	m.want("skipped by a tracer", retENOSYS, amd64, ^uint32(0))
	m.want("foreign", retKillThread, arm64, 63)

	p.Architectures = nil
	m = compileTest(t, "amd64", p)
	m.want("read", retAllow, amd64, 0)
	m.want("i386 is not named", retKillThread, i386, 3)
	m.want("x32 is not named", retKillThread, amd64, x32Bit)
	m.want("skipped by a tracer", eperm, amd64, ^uint32(0))

	p.Architectures = []rspec.Arch{rspec.ArchAARCH64, rspec.ArchARM}
	m = compileTest(t, "arm64", p)
	m.want("read of arm64", retAllow, arm64, 63)
	m.want("read of arm", retAllow, arm, 3)
	m.want("no such on arm64", eperm, arm64, 0)
	m.want("newer on arm", retENOSYS, arm, 438)
}

func TestActions(t *testing.T) {
	e, big := uint(42), uint(38)
	m := compileTest(t, "amd64", &rspec.LinuxSeccomp{
		DefaultAction: rspec.ActLog,
		Syscalls: []rspec.LinuxSyscall{
			{Names: []string{"read"}, Action: rspec.ActErrno, ErrnoRet: &e},
			{Names: []string{"write"}, Action: rspec.ActErrno},
			{Names: []string{"open"}, Action: rspec.ActKill},
			{Names: []string{"close"}, Action: rspec.ActKillProcess},
			{Names: []string{"stat"}, Action: rspec.ActTrap},
			{Names: []string{"fstat"}, Action: rspec.ActTrace, ErrnoRet: &e},
			{Names: []string{"lstat"}, Action: rspec.ActAllow},
			{Names: []string{"poll"}, Action: rspec.ActErrno, ErrnoRet: &big},
		},
	})
	for nr, want := range []uint32{retErrno | 42, eperm, retKillThread, retKillProcess, retTrap, retTrace | 42, retAllow, retENOSYS, retLog} {
		m.want("call", want, amd64, uint32(nr))
	}
	m.want("newer than the profile, let through by default", retLog, amd64, 400)
}

func TestConditions(t *testing.T) {
	const big = 0x1_0000_0005
	values := []uint64{0, 4, 5, 6, big - 1, big, big + 1, 0x2_0000_0000, 0x1_0000_0000, ^uint64(0)}
	for op, holds := range map[rspec.LinuxSeccompOperator]func(a, b uint64) bool{
		rspec.OpEqualTo:      func(a, b uint64) bool { return a == b },
		rspec.OpNotEqual:     func(a, b uint64) bool { return a != b },
		rspec.OpLessThan:     func(a, b uint64) bool { return a < b },
		rspec.OpLessEqual:    func(a, b uint64) bool { return a <= b },
		rspec.OpGreaterThan:  func(a, b uint64) bool { return a > b },
		rspec.OpGreaterEqual: func(a, b uint64) bool { return a >= b },
		rspec.OpMaskedEqual:  func(a, b uint64) bool { return a&b == 4 },
	} {
		for _, b := range values {
			m := compileTest(t, "amd64", &rspec.LinuxSeccomp{
				DefaultAction: rspec.ActErrno,
				Architectures: []rspec.Arch{rspec.ArchX86},
				Syscalls: []rspec.LinuxSyscall{{
					Names: []string{"personality"}, Action: rspec.ActAllow,
					Args: []rspec.LinuxSeccompArg{{Index: 2, Value: b, ValueTwo: 4, Op: op}, {Index: 0, Value: 7, Op: rspec.OpEqualTo}},
				}},
			})
			for _, a := range values {
				want := eperm
				if holds(a, b) && (op != rspec.OpMaskedEqual || b&4 != 0) {
					want = retAllow
				}
				if op == rspec.OpMaskedEqual && b&4 == 0 && a&b == 0 {
					want = retAllow // the expected value is masked as well
				}
				m.want(string(op), want, amd64, 135, 7, 0, a)
				m.want("both must hold", eperm, amd64, 135, 8, 0, a)
				if a < 1<<32 && b < 1<<32 {
					m.want("i386 "+string(op), want, i386, 136, 7, 0, a)
				}
			}
		}
	}
}

func TestRulesOfOneCall(t *testing.T) {
	eq := func(i uint, v uint64) rspec.LinuxSeccompArg {
		return rspec.LinuxSeccompArg{Index: i, Value: v, Op: rspec.OpEqualTo}
	}
	p := &rspec.LinuxSeccomp{DefaultAction: rspec.ActErrno, Syscalls: []rspec.LinuxSyscall{
		{Names: []string{"personality"}, Action: rspec.ActAllow, Args: []rspec.LinuxSeccompArg{eq(0, 1)}},
		{Names: []string{"personality"}, Action: rspec.ActAllow, Args: []rspec.LinuxSeccompArg{eq(0, 2), eq(1, 3)}},
		{Names: []string{"socket"}, Action: rspec.ActAllow, Args: []rspec.LinuxSeccompArg{eq(0, 2), eq(0, 3)}},
	}}
	m := compileTest(t, "amd64", p)
	m.want("first", retAllow, amd64, 135, 1, 9)
	m.want("second", retAllow, amd64, 135, 2, 3)
	m.want("half of the second", eperm, amd64, 135, 2, 4)
	m.want("an argument named twice: either", retAllow, amd64, 41, 2)
	m.want("an argument named twice: either", retAllow, amd64, 41, 3)
	m.want("an argument named twice: none", eperm, amd64, 41, 4)

	p.Syscalls = append(p.Syscalls, allow("personality"))
	m = compileTest(t, "amd64", p)
	m.want("unconditional", retAllow, amd64, 135, 99)
}

func TestMuxed(t *testing.T) {
	m := compileTest(t, "amd64", &rspec.LinuxSeccomp{
		DefaultAction: rspec.ActErrno,
		Architectures: []rspec.Arch{rspec.ArchX86},
		Syscalls:      []rspec.LinuxSyscall{allow("bind", "shmget")},
	})
	m.want("bind", retAllow, i386, 361)
	m.want("socketcall for bind", retAllow, i386, 102, 2)
	m.want("socketcall for connect", eperm, i386, 102, 3)
	m.want("ipc for shmget", retAllow, i386, 117, 23)
	m.want("ipc for shmat", eperm, i386, 117, 21)
}

func TestRefusals(t *testing.T) {
	args := []rspec.LinuxSeccompArg{{Index: 0, Value: 1, Op: rspec.OpEqualTo}}
	for name, p := range map[string]*rspec.LinuxSeccomp{
		"notify":   {DefaultAction: rspec.ActErrno, Syscalls: []rspec.LinuxSyscall{{Names: []string{"read"}, Action: rspec.ActNotify}}},
		"listener": {DefaultAction: rspec.ActErrno, ListenerPath: "/x"},
		"flag":     {DefaultAction: rspec.ActErrno, Flags: []rspec.LinuxSeccompFlag{"SECCOMP_FILTER_FLAG_NEW"}},
		"mips":     {DefaultAction: rspec.ActErrno, Architectures: []rspec.Arch{rspec.ArchMIPS}},
		"disagree": {DefaultAction: rspec.ActErrno, Syscalls: []rspec.LinuxSyscall{allow("read"), {Names: []string{"read"}, Action: rspec.ActKill, Args: args}}},
	} {
		if _, err := compileFor("amd64", p); !errors.Is(err, ErrUnsupported) {
			t.Errorf("%s: %v, want ErrUnsupported", name, err)
		}
	}
	if _, err := compileFor("riscv64", &rspec.LinuxSeccomp{DefaultAction: rspec.ActAllow}); !errors.Is(err, ErrUnsupported) {
		t.Error("riscv64:", err)
	}
	for name, p := range map[string]*rspec.LinuxSeccomp{
		"action":   {DefaultAction: "SCMP_ACT_X"},
		"operator": {DefaultAction: rspec.ActErrno, Syscalls: []rspec.LinuxSyscall{{Names: []string{"read"}, Action: rspec.ActAllow, Args: []rspec.LinuxSeccompArg{{Op: "X"}}}}},
		"index":    {DefaultAction: rspec.ActErrno, Syscalls: []rspec.LinuxSyscall{{Names: []string{"read"}, Action: rspec.ActAllow, Args: []rspec.LinuxSeccompArg{{Index: 6, Op: rspec.OpEqualTo}}}}},
		"no name":  {DefaultAction: rspec.ActErrno, Syscalls: []rspec.LinuxSyscall{allow("")}},
	} {
		if _, err := compileFor("amd64", p); !kind.Is(err, kind.Invalid) {
			t.Errorf("%s: %v, want kind Invalid", name, err)
		}
	}
}

func TestFlags(t *testing.T) {
	for _, c := range []struct {
		flags []rspec.LinuxSeccompFlag
		want  uint
	}{
		{nil, unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW},
		{[]rspec.LinuxSeccompFlag{}, 0},
		{[]rspec.LinuxSeccompFlag{rspec.LinuxSeccompFlagLog, "SECCOMP_FILTER_FLAG_TSYNC"}, unix.SECCOMP_FILTER_FLAG_LOG},
	} {
		f, err := Compile(&rspec.LinuxSeccomp{DefaultAction: rspec.ActAllow, Flags: c.flags})
		if err != nil || f.Flags != c.want {
			t.Errorf("%v: %#x, %v; want %#x", c.flags, f.Flags, err, c.want)
		}
	}
}

func defaultProfile(t testing.TB) *rspec.LinuxSeccomp {
	spec := &rspec.Spec{Process: &rspec.Process{Capabilities: &rspec.LinuxCapabilities{}}, Linux: &rspec.Linux{}}
	p, err := mobyseccomp.GetDefaultProfile(spec)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestTable keeps the numbers and their order right.
func TestTable(t *testing.T) {
	for i := range calls[1:] {
		if calls[i].name >= calls[i+1].name {
			t.Errorf("%q before %q", calls[i].name, calls[i+1].name)
		}
	}
	unknown := 0
	for _, s := range defaultProfile(t).Syscalls {
		for _, n := range s.Names {
			c := find(n)
			a, okA := archAMD64.number(c)
			x, okX := archX32.number(c)
			if okA != okX || okA && (a >= x32Bit || x < x32Bit) {
				t.Error(n, a, x)
			}
			if c == nil {
				unknown++
				t.Log("unknown:", n)
			}
		}
	}
	if unknown > 10 {
		t.Errorf("%d calls of the default profile are unknown", unknown)
	}
}

func BenchmarkCompileDefault(b *testing.B) {
	p := defaultProfile(b)
	n := 0
	for b.Loop() {
		f, err := Compile(p)
		if err != nil {
			b.Fatal(err)
		}
		n = len(f.Program)
	}
	b.ReportMetric(float64(n), "instructions")
}
