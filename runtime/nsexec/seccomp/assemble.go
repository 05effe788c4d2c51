package seccomp

import (
	"maps"
	"slices"

	rspec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Offsets in struct seccomp_data.
const (
	offNumber = 0
	offArch   = 4
	offArgs   = 16
)

// Opcodes.
const (
	opLoad = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
	opRet  = unix.BPF_RET | unix.BPF_K
	opJump = unix.BPF_JMP | unix.BPF_JA
	opJEQ  = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
	opJGT  = unix.BPF_JMP | unix.BPF_JGT | unix.BPF_K
	opJGE  = unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K
	opAnd  = unix.BPF_ALU | unix.BPF_AND | unix.BPF_K
)

type code = []unix.SockFilter

func insn(op uint16, k uint32) unix.SockFilter { return unix.SockFilter{Code: op, K: k} }

func ret(k uint32) code { return code{insn(opRet, k)} }

// assemble makes the program: one block for each audit architecture, and death
// for any other, as the arguments of its calls would mean something else.
func assemble(tables []*table) []unix.SockFilter {
	prog := code{insn(opLoad, offArch)}
	for len(tables) > 0 {
		block := code{insn(opLoad, offNumber)}
		audit := tables[0].audit
		same := slices.IndexFunc(tables[1:], func(t *table) bool { return t.audit == audit }) + 1
		parts := segments(tables[0])
		switch {
		case same > 0: // x86_64 with x32
			parts = append(below(parts, x32Bit), from(segments(tables[same]), x32Bit)...)
			tables = slices.Delete(tables, same, same+1)
		case audit == archAMD64.audit:
			// x32 is not wanted. -1 is no x32 call but one that a tracer skips.
			parts = append(below(parts, x32Bit), segment{start: x32Bit, ret: retKillThread}, segment{start: ^uint32(0), ret: tables[0].def})
		}
		block = append(block, search(merge(parts))...)
		prog = append(prog, unix.SockFilter{Code: opJEQ, K: audit, Jt: 1}, insn(opJump, uint32(len(block))))
		prog = append(prog, block...)
		tables = tables[1:]
	}
	return append(prog, ret(retKillThread)...)
}

// segment is what happens to call numbers from start up to the next segment.
type segment struct {
	start uint32
	ret   uint32
	code  code // instead of ret, where arguments count
}

func (s *segment) equal(other *segment) bool {
	return s.ret == other.ret && slices.Equal(s.code, other.code)
}

// segments covers all numbers from 0 on.
func segments(t *table) []segment {
	list := make([]segment, 1, 2*len(t.rules)+4)
	list[0].ret = t.def
	for _, nr := range slices.Sorted(maps.Keys(t.rules)) {
		s := segment{start: nr}
		if rules := t.rules[nr]; len(rules[0].conditions) == 0 {
			s.ret = rules[0].ret
		} else {
			s.code = t.leaf(rules)
		}
		list = append(list, s, segment{start: nr + 1, ret: t.def})
	}
	return append(list, segment{start: t.last + 1, ret: t.newer()})
}

func below(list []segment, limit uint32) []segment {
	return slices.DeleteFunc(list, func(s segment) bool { return s.start >= limit })
}

// from keeps the segments that begin at start or later; the one that reaches
// over it begins there then.
func from(list []segment, start uint32) []segment {
	i := 0
	for i+1 < len(list) && list[i+1].start <= start {
		i++
	}
	list = list[i:]
	list[0].start = max(list[0].start, start)
	return list
}

// merge drops empty segments and joins neighbours with equal code.
func merge(list []segment) []segment {
	out := list[:0]
	for i, s := range list {
		if i+1 < len(list) && list[i+1].start == s.start {
			continue // replaced by the next at once
		}
		if len(out) == 0 || !out[len(out)-1].equal(&s) {
			out = append(out, s)
		}
	}
	return out
}

// search finds the segment of the number in the accumulator by halving.
func search(list []segment) code {
	if len(list) == 1 && list[0].code != nil {
		return list[0].code
	}
	if len(list) == 1 {
		return ret(list[0].ret)
	}
	mid := len(list) / 2
	left, right := search(list[:mid]), search(list[mid:])
	var head code
	if len(left) <= 255 {
		head = code{{Code: opJGE, K: list[mid].start, Jt: uint8(len(left))}}
	} else { // a conditional jump has eight bits
		head = code{{Code: opJGE, K: list[mid].start, Jf: 1}, insn(opJump, uint32(len(left)))}
	}
	return append(append(head, left...), right...)
}

// leaf is the code for one call: its rules in turn, then the default.
func (t *table) leaf(rules []rule) code {
	var out code
	for _, r := range rules { // add keeps an unconditional rule alone
		out = append(out, t.ruleCode(r)...)
	}
	return append(out, ret(t.def)...)
}

// Jump targets of a condition before it has a place.
const (
	next = iota // the following instruction
	pass        // behind the condition
	fail        // behind the rule
)

// step is an instruction whose jumps are not resolved.
type step struct {
	op     uint16
	k      uint32
	jt, jf int
}

// ruleCode checks all conditions and returns if they hold; else it ends behind
// its last instruction. Six conditions of seven instructions stay far below
// the range of a jump.
func (t *table) ruleCode(r rule) code {
	var steps []step
	var ends []int // where the condition of each step ends
	for _, c := range r.conditions {
		s := t.compare(c)
		for range s {
			ends = append(ends, len(steps)+len(s))
		}
		steps = append(steps, s...)
	}
	out := make(code, 0, len(steps)+1)
	for i, s := range steps {
		offset := func(target int) uint8 {
			switch target {
			case pass:
				return uint8(ends[i] - i - 1)
			case fail:
				return uint8(len(steps) - i) // over the return, too
			}
			return 0
		}
		out = append(out, unix.SockFilter{Code: s.op, K: s.k, Jt: offset(s.jt), Jf: offset(s.jf)})
	}
	return append(out, ret(r.ret)...)
}

// compare is the code of one condition on 64 bits, in two halves, of which the
// low one comes first in memory. Architectures with 32-bit arguments have no
// high half.
func (t *table) compare(c condition) []step {
	lo, hi := uint32(c.value), uint32(c.value>>32)
	offset := uint32(offArgs + 8*c.index)
	load := step{op: opLoad, k: offset}
	var low []step
	high := []step{{op: opLoad, k: offset + 4}}
	switch c.op {
	case rspec.OpEqualTo:
		high = append(high, step{opJEQ, hi, next, fail})
		low = []step{load, {opJEQ, lo, next, fail}}
	case rspec.OpNotEqual:
		high = append(high, step{opJEQ, hi, next, pass})
		low = []step{load, {opJEQ, lo, fail, next}}
	case rspec.OpGreaterThan:
		high = append(high, step{opJGT, hi, pass, next}, step{opJEQ, hi, next, fail})
		low = []step{load, {opJGT, lo, next, fail}}
	case rspec.OpGreaterEqual:
		high = append(high, step{opJGT, hi, pass, next}, step{opJEQ, hi, next, fail})
		low = []step{load, {opJGE, lo, next, fail}}
	case rspec.OpLessThan:
		high = append(high, step{opJGT, hi, fail, next}, step{opJEQ, hi, next, pass})
		low = []step{load, {opJGE, lo, fail, next}}
	case rspec.OpLessEqual:
		high = append(high, step{opJGT, hi, fail, next}, step{opJEQ, hi, next, pass})
		low = []step{load, {opJGT, lo, fail, next}}
	case rspec.OpMaskedEqual:
		high = append(high, step{op: opAnd, k: uint32(c.mask >> 32)}, step{opJEQ, hi, next, fail})
		low = []step{load, {op: opAnd, k: uint32(c.mask)}, {opJEQ, lo, next, fail}}
	}
	if t.narrow {
		return low
	}
	return append(high, low...)
}
