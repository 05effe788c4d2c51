package seccomp

import (
	"slices"
	"strings"

	rspec "github.com/opencontainers/runtime-spec/specs-go"
)

//go:generate go run gen.go

// call is one system call with its number on each architecture.
type call struct {
	name   string
	number [numTables]int32
}

// The columns of the table.
const (
	tableAMD64 = iota
	table386
	tableARM64
	tableARM
	tableX32 // without x32Bit
	numTables
)

// x32Bit marks a call of the x32 ABI, which shares its audit architecture with
// x86_64 (__X32_SYSCALL_BIT).
const x32Bit = 0x40000000

// arch is one of the architectures that a filter can name. Its audit value is
// what the kernel gives a filter to tell them apart (AUDIT_ARCH_ of
// linux/audit.h).
type arch struct {
	table  int
	audit  uint32
	narrow bool // 32-bit arguments
}

var (
	archAMD64 = arch{table: tableAMD64, audit: 0xC000003E}
	archX32   = arch{table: tableX32, audit: 0xC000003E}
	arch386   = arch{table: table386, audit: 0x40000003, narrow: true}
	archARM64 = arch{table: tableARM64, audit: 0xC00000B7}
	archARM   = arch{table: tableARM, audit: 0x40000028, narrow: true}
)

// archesFor returns the architectures of the filter on a machine of the given
// Go architecture: its own, which is always in, and those that are named.
func archesFor(goarch string, named []rspec.Arch) ([]arch, error) {
	var native arch
	known := map[rspec.Arch]arch{}
	switch goarch {
	case "amd64":
		native = archAMD64
		known[rspec.ArchX86_64], known[rspec.ArchX32], known[rspec.ArchX86] = archAMD64, archX32, arch386
	case "arm64":
		native = archARM64
		known[rspec.ArchAARCH64], known[rspec.ArchARM] = archARM64, archARM
	default:
		return nil, unsupported("no system call numbers for %s", goarch)
	}
	list := []arch{native}
	for _, name := range named {
		a, ok := known[name]
		if !ok {
			return nil, unsupported("architecture %s on %s", name, goarch)
		}
		if !slices.Contains(list, a) {
			list = append(list, a)
		}
	}
	return list, nil
}

// find looks a system call up; nil if no architecture has one of that name.
func find(name string) *call {
	i, found := slices.BinarySearchFunc(calls[:], name, func(c call, name string) int {
		return strings.Compare(c.name, name)
	})
	if !found {
		return nil
	}
	return &calls[i]
}

// number gives the call's number; ok is false if the architecture has none.
func (a arch) number(c *call) (nr uint32, ok bool) {
	if c == nil || c.number[a.table] < 0 {
		return 0, false
	}
	nr = uint32(c.number[a.table])
	if a.table == tableX32 {
		nr |= x32Bit
	}
	return nr, true
}

// muxed gives the 386 calls that are also reached through socketcall(2) or
// ipc(2), where the first argument says which one is meant (linux/net.h,
// linux/ipc.h).
func muxed(name string) (through string, number uint64, ok bool) {
	sockets := [...]string{
		"", "socket", "bind", "connect", "listen", "accept", "getsockname", "getpeername", "socketpair", "send",
		"recv", "sendto", "recvfrom", "shutdown", "setsockopt", "getsockopt", "sendmsg", "recvmsg", "accept4",
		"recvmmsg", "sendmmsg",
	}
	if i := slices.Index(sockets[:], name); i > 0 {
		return "socketcall", uint64(i), true
	}
	switch name {
	case "semop":
		number = 1
	case "semget":
		number = 2
	case "semctl":
		number = 3
	case "semtimedop":
		number = 4
	case "msgsnd":
		number = 11
	case "msgrcv":
		number = 12
	case "msgget":
		number = 13
	case "msgctl":
		number = 14
	case "shmat":
		number = 21
	case "shmdt":
		number = 22
	case "shmget":
		number = 23
	case "shmctl":
		number = 24
	default:
		return "", 0, false
	}
	return "ipc", number, true
}
