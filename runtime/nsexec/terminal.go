package nsexec

import (
	"fmt"

	"golang.org/x/sys/unix"

	"noded.dev/noded/internal/kind"
)

// openTerminal makes a terminal in the container's devpts; the thread is in
// the container. The container may have put anything at these paths, so the
// master is opened only beneath a real devpts and without following a link or
// a mount, and the slave through the master.
func openTerminal(p *plan) (master, slave int, err error) {
	dir, err := unix.Open("/dev/pts", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, -1, fmt.Errorf("open container's /dev/pts: %w", err)
	}
	defer unix.Close(dir)
	var fs unix.Statfs_t
	if err := unix.Fstatfs(dir, &fs); err != nil || fs.Type != unix.DEVPTS_SUPER_MAGIC {
		return -1, -1, kind.Errorf(kind.Precondition, "container's /dev/pts is not a devpts file system")
	}
	// Not blocking, so that the caller can poll it and close it while reading.
	master, err = unix.Openat2(dir, "ptmx", &unix.OpenHow{
		Flags:   unix.O_RDWR | unix.O_NOCTTY | unix.O_NONBLOCK | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	})
	if err != nil {
		return -1, -1, fmt.Errorf("open container's /dev/pts/ptmx: %w", err)
	}
	if slave, err = openSlave(master, p); err != nil {
		unix.Close(master)
		return -1, -1, fmt.Errorf("open terminal: %w", err)
	}
	return master, slave, nil
}

func openSlave(master int, p *plan) (int, error) {
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		return -1, err
	}
	if p.size != nil {
		if err := unix.IoctlSetWinsize(master, unix.TIOCSWINSZ, p.size); err != nil {
			return -1, err
		}
	}
	fd, _, errno := unix.RawSyscall(unix.SYS_IOCTL, uintptr(master), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		return -1, errno
	}
	slave := int(fd)
	if err := giveTo(slave, p.uid); err != nil {
		unix.Close(slave)
		return -1, err
	}
	return slave, nil
}

// giveTo makes the user own a standard stream, so that opening /dev/stdout
// works. Like runc, it leaves the group and /dev/null alone, and what may not
// be changed.
func giveTo(fd int, uid uint32) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Uid == uid || st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == unix.Mkdev(1, 3) {
		return nil
	}
	err := unix.Fchown(fd, int(uid), -1)
	if err == unix.EPERM || err == unix.EROFS {
		return nil
	}
	return err
}
