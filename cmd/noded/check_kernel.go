package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"noded.dev/noded/internal/cgroup"
)

// oldestKernel has all that noded relies on: openat2 (5.6), clone into a
// cgroup (5.7), setns by pidfd (5.8), volatile overlay mounts (5.10).
var oldestKernel = [2]int{5, 10}

func (i *inspector) privileges() {
	if os.Geteuid() != 0 {
		i.add(levelFail, "privileges", "this runs as an ordinary user, and so would noded", "run it as root: sudo noded check")
		return
	}
	bits, err := i.capabilities()
	if err != nil {
		i.add(levelWarn, "privileges", "the capabilities cannot be read: "+err.Error(), "")
		return
	}
	var missing []string
	for _, c := range []struct {
		name string
		bit  int
	}{
		{"CAP_SYS_ADMIN", unix.CAP_SYS_ADMIN}, {"CAP_NET_ADMIN", unix.CAP_NET_ADMIN}, {"CAP_SYS_CHROOT", unix.CAP_SYS_CHROOT},
		{"CAP_MKNOD", unix.CAP_MKNOD}, {"CAP_CHOWN", unix.CAP_CHOWN}, {"CAP_SETUID", unix.CAP_SETUID}, {"CAP_SETGID", unix.CAP_SETGID},
		{"CAP_DAC_OVERRIDE", unix.CAP_DAC_OVERRIDE}, {"CAP_FOWNER", unix.CAP_FOWNER}, {"CAP_KILL", unix.CAP_KILL}, {"CAP_SYS_PTRACE", unix.CAP_SYS_PTRACE},
		{"CAP_SETFCAP", unix.CAP_SETFCAP}, {"CAP_SETPCAP", unix.CAP_SETPCAP},
	} {
		if bits&(1<<c.bit) == 0 {
			missing = append(missing, c.name)
		}
	}
	if len(missing) > 0 {
		i.add(levelFail, "privileges", "root here lacks "+strings.Join(missing, ", "), "noded needs a machine or a container with full privileges")
		return
	}
	if bits&(1<<unix.CAP_SYS_RESOURCE) == 0 {
		i.add(levelWarn, "privileges", "root here lacks CAP_SYS_RESOURCE: oom_score_adj cannot be lowered nor hard limits raised, so pods get the nearest possible value",
			"give it back if this is a container or a restricted machine")
		return
	}
	i.ok("privileges", "root with all capabilities that noded needs")
}

func (i *inspector) capabilities() (uint64, error) {
	for line := range strings.Lines(i.value("proc/self/status")) {
		if text, ok := strings.CutPrefix(line, "CapEff:"); ok {
			return strconv.ParseUint(strings.TrimSpace(text), 16, 64)
		}
	}
	return 0, errors.New("no CapEff in /proc/self/status")
}

func (i *inspector) kernel() {
	release := i.value("proc/sys/kernel/osrelease")
	major, minor, err := kernelVersion(release)
	switch {
	case err != nil:
		i.add(levelWarn, "kernel", err.Error(), "")
	case major < oldestKernel[0] || major == oldestKernel[0] && minor < oldestKernel[1]:
		i.add(levelFail, "kernel", fmt.Sprintf("%s is older than %d.%d", release, oldestKernel[0], oldestKernel[1]), "boot a newer kernel")
	default:
		i.ok("kernel", "%s", release)
	}
	var missing []string
	for _, ns := range []string{"mnt", "net", "ipc", "uts", "pid", "cgroup"} {
		if _, err := os.Stat(i.path("proc/self/ns/" + ns)); err != nil {
			missing = append(missing, ns)
		}
	}
	if len(missing) > 0 {
		i.add(levelFail, "namespaces", "the kernel has no namespaces of the kinds "+strings.Join(missing, ", "), "boot a kernel with CONFIG_NAMESPACES and all kinds")
	} else {
		i.ok("namespaces", "mnt, net, ipc, uts, pid and cgroup")
	}
	if _, err := os.Stat(i.path("proc/self/ns/user")); err != nil || i.value("proc/sys/user/max_user_namespaces") == "0" {
		i.add(levelWarn, "namespaces", "no user namespaces: pods with hostUsers: false cannot run", "sysctl user.max_user_namespaces, or a kernel with CONFIG_USER_NS")
	}
	if i.value("proc/sys/kernel/seccomp/actions_avail") == "" {
		i.add(levelFail, "seccomp", "the kernel cannot filter system calls, so RuntimeDefault profiles cannot be applied", "boot a kernel with CONFIG_SECCOMP_FILTER")
	} else {
		i.ok("seccomp", "filters available")
	}
}

func kernelVersion(release string) (major, minor int, err error) {
	if n, _ := fmt.Sscanf(release, "%d.%d", &major, &minor); n != 2 {
		return 0, 0, fmt.Errorf("the release %q does not begin with a version", release)
	}
	return major, minor, nil
}

// overlay makes an overlay file system of temporary folders where images and
// writable layers will lie, without attaching it to any mount point, and lets it
// go again.
func (i *inspector) overlay() {
	if os.Geteuid() != 0 {
		return
	}
	i.overlayOn("root", i.cfg.Root)
	if dir := i.cfg.Images.ContainerRoot; dir != "" {
		i.overlayOn("images.container_root", dir)
	}
}

func (i *inspector) overlayOn(key, path string) {
	below := existing(path)
	dir, err := os.MkdirTemp(below, ".noded-check-")
	if err != nil {
		i.add(levelFail, "overlayfs", "cannot be tried: "+err.Error(), "make "+path+" writable, or set "+key+" to a folder that is")
		return
	}
	defer os.RemoveAll(dir)
	if err := tryOverlay(dir); err != nil {
		i.add(levelFail, "overlayfs", fmt.Sprintf("does not work on %s: %v", below, err),
			"load the module (modprobe overlay), and put "+key+" on ext4, xfs (ftype=1), btrfs or tmpfs, not on overlayfs or NFS")
		return
	}
	i.ok("overlayfs", "works on %s, with volatile mounts", below)
}

func tryOverlay(dir string) error {
	for _, name := range []string{"lower", "upper", "work"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			return err
		}
	}
	fd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fmt.Errorf("open file system: %w", err)
	}
	defer unix.Close(fd)
	for _, o := range [][2]string{{"lowerdir", dir + "/lower"}, {"upperdir", dir + "/upper"}, {"workdir", dir + "/work"}} {
		if err := unix.FsconfigSetString(fd, o[0], o[1]); err != nil {
			return fmt.Errorf("set %s: %w", o[0], err)
		}
	}
	if err := unix.FsconfigSetFlag(fd, "volatile"); err != nil {
		return fmt.Errorf("set volatile: %w", err)
	}
	if err := unix.FsconfigCreate(fd); err != nil {
		return fmt.Errorf("create: %w", err)
	}
	return nil
}

// existing is the nearest folder at or above path that exists.
func existing(path string) string {
	for {
		if info, err := os.Stat(path); err == nil && info.IsDir() || path == "/" {
			return path
		}
		path = filepath.Dir(path)
	}
}

func (i *inspector) cgroups() {
	host, err := cgroup.Detect("")
	if err != nil {
		i.add(levelFail, "cgroups", err.Error(), "mount the hierarchies: mount -t cgroup2 none /sys/fs/cgroup, or the cgroupfs-mount package")
		return
	}
	controllers := host.Controllers()
	var missing, wanted []string
	for _, c := range []string{"cpu", "memory", "pids"} {
		if !slices.Contains(controllers, c) {
			missing = append(missing, c)
		}
	}
	io := "blkio"
	if host.Mode() == cgroup.V2 {
		io = "io"
	}
	for _, c := range []string{"cpuset", io} {
		if !slices.Contains(controllers, c) {
			wanted = append(wanted, c)
		}
	}
	switch {
	case len(missing) > 0:
		i.add(levelFail, "cgroups", fmt.Sprintf("%s, without %s", host.Mode(), strings.Join(missing, ", ")), "enable the controllers: kernel options cgroup_enable=, or cgroup.subtree_control on v2")
	case len(wanted) > 0:
		i.add(levelWarn, "cgroups", fmt.Sprintf("%s, without %s: these limits and figures are left out", host.Mode(), strings.Join(wanted, ", ")), "enable the controllers")
	default:
		i.ok("cgroups", "%s with %s", host.Mode(), strings.Join(controllers, ", "))
	}
	i.hugetlb(host)
	systemd := host.Systemd()
	switch driver := i.cfg.Runtime.CgroupDriver; {
	case driver == "systemd" && !systemd:
		i.add(levelFail, "cgroup driver", "systemd is configured, and systemd is not pid 1 here", `set runtime.cgroup_driver = "auto"`)
	case driver == "cgroupfs" && systemd && host.Mode() == cgroup.V2:
		i.add(levelWarn, "cgroup driver", "cgroupfs is configured, and systemd manages the one hierarchy there is", `set runtime.cgroup_driver = "auto"`)
	case systemd && driver != "cgroupfs":
		i.ok("cgroup driver", "systemd")
	default:
		i.ok("cgroup driver", "cgroupfs")
	}
}

// hugetlb knows one oddity: a v2 tree beside v1 controllers that holds hugetlb
// alone. crun takes such a machine for v2 and refuses to start containers.
func (i *inspector) hugetlb(host *cgroup.Host) {
	if host.Mode() != cgroup.Hybrid {
		return
	}
	unified := host.Unified("")
	data, err := os.ReadFile(filepath.Join(unified, "cgroup.controllers"))
	if err == nil && strings.TrimSpace(string(data)) == "hugetlb" {
		i.add(levelWarn, "cgroups", "the v2 tree at "+unified+" holds hugetlb alone, and crun does not start on such a machine",
			"mkdir /sys/fs/cgroup/hugetlb && mount -t cgroup -o hugetlb cgroup /sys/fs/cgroup/hugetlb")
	}
}
