package builtin

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// settle makes the kernel act now on the carrier of interfaces that came up.
// It otherwise does so in a worker, some time later (net/core/link_watch.c),
// and until then the bridge forwards nothing to the port: a pod's first packet
// is lost and sent again a second later. Asking for the link's state by
// ethtool runs the worker's part for that interface; a netlink request does
// the same from Linux 6.8 on.
func settle(links ...string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open socket: %w", err)
	}
	defer unix.Close(fd)
	for _, name := range links {
		value := struct{ cmd, data uint32 }{cmd: unix.ETHTOOL_GLINK}
		request := struct { // struct ifreq
			name [unix.IFNAMSIZ]byte
			data unsafe.Pointer
			_    [24 - unsafe.Sizeof(uintptr(0))]byte
		}{data: unsafe.Pointer(&value)}
		copy(request.name[:unix.IFNAMSIZ-1], name)
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request)))
		runtime.KeepAlive(&value)
		if errno != 0 {
			return fmt.Errorf("ask for the link of %s: %w", name, errno)
		}
	}
	return nil
}
