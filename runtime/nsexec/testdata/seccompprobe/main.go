// Command seccompprobe prints what many system calls answer, so that two
// seccomp filters can be compared from inside.
package main

import (
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"syscall"
)

// int80 makes a call by the 32-bit entry of the kernel.
func int80(nr, a, b, c uint32) int32

const bad = ^uintptr(0)

func main() {
	runtime.LockOSThread()
	for nr := uintptr(0); nr < 600; nr++ {
		if !skip(nr) {
			show("x86_64", nr, bad, bad, bad)
		}
	}
	for family := uintptr(0); family < 50; family++ {
		show("socket", 41, family, 2|syscall.SOCK_CLOEXEC, 0)
	}
	for _, p := range []uintptr{0, 1, 8, 0x20000, 0x20008, 0xffffffff, 0x40000, 3} {
		show("personality", 135, p, 0, 0)
		syscall.RawSyscall(135, 0, 0, 0)
	}
	for bit := uintptr(1); bit < 1<<32; bit <<= 1 {
		// CLONE_THREAD without CLONE_SIGHAND and CLONE_VM: refused behind the filter.
		show("clone", 56, bit|0x10000, 0, 0)
		show("unshare", 272, bit&0x7e020000, 0, 0)
	}
	for _, nr := range []uintptr{0, 13, 39, 102, 157, 169, 206, 512, 520, 521, 528, 547, 548, 600} {
		show("x32", nr|0x40000000, bad, bad, bad)
	}
	show("skipped", uintptr(0xffffffff), bad, bad, bad)
	if len(os.Args) > 1 {
		probe32()
	}
}

func show(what string, nr, a, b, c uintptr) {
	r, _, e := syscall.RawSyscall6(nr, a, b, c, bad, bad, bad)
	if e == 0 && what == "socket" {
		syscall.Close(int(r))
	}
	fmt.Println(what, nr, a, int(e))
}

// skip are calls that end, stop or blind this process.
func skip(nr uintptr) bool {
	switch nr {
	case 15, 34, 57, 58, 60, 112, 130, 162, 219, 231, 37, 95, 153, 158, 12, 435, 24, 68, 335, 336: // the last two are for uprobes alone: SIGILL
		return true
	}
	return false
}

func probe32() {
	// A kernel without 32-bit programs (CONFIG_IA32_EMULATION) faults here.
	debug.SetPanicOnFault(true)
	defer func() {
		if recover() != nil {
			fmt.Println("i386 absent")
		}
	}()
	for nr := uint32(0); nr < 500; nr++ {
		switch nr {
		// exit, fork, pause, alarm, sync, sigsuspend, vfork, clone, exit_group and what changes this process
		case 1, 2, 27, 29, 36, 45, 60, 66, 68, 69, 72, 111, 119, 120, 158, 173, 179, 190, 243, 0, 252, 399, 435:
			continue
		}
		fmt.Println("i386", nr, min(int80(nr, ^uint32(0), ^uint32(0), ^uint32(0)), 0))
	}
	for number := uint32(0); number < 30; number++ { // their arguments are behind a bad pointer
		fmt.Println("i386 socketcall", number, min(int80(102, number, 8, 0), 0))
		if number != 2 && number != 13 && number != 23 { // make something that stays
			fmt.Println("i386 ipc", number, min(int80(117, number, ^uint32(0), ^uint32(0)), 0))
		}
	}
	for family := uint32(1); family < 45; family++ {
		r := int80(359, family, 2, 0)
		if r > 0 {
			syscall.Close(int(r))
			r = 0
		}
		fmt.Println("i386 socket", family, r)
	}
}
