package pidfd

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// siginfoStatus reads si_status of a SIGCHLD siginfo_t, which x/sys leaves
// opaque: on 64-bit Linux it is the int at offset 24 (after si_pid and si_uid).
func siginfoStatus(si *unix.Siginfo) int {
	return int(*(*int32)(unsafe.Add(unsafe.Pointer(si), 24)))
}
