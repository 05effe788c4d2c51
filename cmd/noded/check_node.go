package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/cni"
	"noded.dev/noded/config"
)

// network asks the same code as the daemon uses; it executes CNI plugins with
// the verbs VERSION and STATUS only.
func (i *inspector) network(ctx context.Context) {
	if os.Geteuid() != 0 {
		return // netlink and nftables answer only root
	}
	options, err := networkOptions(i.cfg, nil)
	if err != nil {
		i.add(levelFail, "network", err.Error(), "")
		return
	}
	if options.Mode == cni.ModeCNI && i.value("proc/sys/net/ipv4/ip_forward") != "1" {
		i.add(levelWarn, "network", "the kernel does not forward IPv4: pods of most networks reach nothing outside", "sysctl -w net.ipv4.ip_forward=1, and a file in /etc/sysctl.d")
	}
	for _, f := range cni.Inspect(ctx, options) {
		switch {
		case f.Problem && f.Minor:
			i.add(levelWarn, "network", f.Text, "docs/networking.md says more")
		case f.Problem:
			i.add(levelFail, "network", f.Text, "docs/networking.md says more")
		default:
			i.ok("network", "%s", f.Text)
		}
	}
}

// limits are kernel settings that a node with many pods runs into.
func (i *inspector) limits() {
	low := false
	for _, l := range []struct {
		file   string
		least  uint64
		reason string
	}{
		{"fs/inotify/max_user_instances", 1024, "programs in pods share the instances of root"},
		{"fs/inotify/max_user_watches", 65536, "programs in pods share the watches of root"},
		{"kernel/pid_max", 65536, "all pods' processes and threads count"},
		{"fs/file-max", 100_000, "all pods' open files count"},
	} {
		text := i.value("proc/sys/" + l.file)
		n, err := strconv.ParseUint(text, 10, 64)
		if err == nil && n < l.least {
			low = true
			key := sysctlName(l.file)
			i.add(levelWarn, "limits", fmt.Sprintf("%s is %d: %s", key, n, l.reason), fmt.Sprintf("sysctl -w %s=%d, and a file in /etc/sysctl.d", key, l.least))
		}
	}
	var nofile unix.Rlimit
	const least = 65536
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &nofile); err == nil && nofile.Max < least {
		low = true
		i.add(levelWarn, "limits", fmt.Sprintf("a process may open %d files: noded and its shim hold some for every container", nofile.Max), "packaging's noded.service raises this (LimitNOFILE); elsewhere use ulimit -Hn")
	}
	if !low {
		i.ok("limits", "inotify, pids and open files are ample")
	}
}

func sysctlName(file string) string {
	name := []byte(file)
	for i, c := range name {
		if c == '/' {
			name[i] = '.'
		}
	}
	return string(name)
}

// leastFree is the share of a disk below which the kubelet begins to evict
// pods (its imagefs.available and nodefs.available defaults are 15 and 10 %).
const leastFree = 15

func (i *inspector) folders() {
	disk := existing(i.cfg.Root)
	var st unix.Statfs_t
	if err := unix.Statfs(disk, &st); err != nil {
		i.add(levelFail, "disk", fmt.Sprintf("%s cannot be measured: %v", disk, err), "")
	} else {
		free := uint64(st.Bsize) * st.Bavail
		percent, inodes := 100*st.Bavail/max(st.Blocks, 1), uint64(100)
		if st.Files > 0 { // btrfs has no fixed number
			inodes = 100 * st.Ffree / st.Files
		}
		text := fmt.Sprintf("%s has %s (%d%%) and %d%% of its inodes free", disk, bytesText(free), percent, inodes)
		if percent < leastFree || inodes < leastFree {
			i.add(levelWarn, "disk", text, "free some: the kubelet evicts pods for this")
		} else {
			i.ok("disk", "%s", text)
		}
	}
	state := existing(i.cfg.State)
	if err := unix.Statfs(state, &st); err == nil && st.Type != unix.TMPFS_MAGIC {
		i.add(levelWarn, "disk", fmt.Sprintf("state (%s) is not on a tmpfs: what a crash leaves there survives a reboot, and every change costs disk", i.cfg.State), "put it on one; on most machines /run is a tmpfs")
	}
	for _, dir := range []string{i.cfg.Root, i.cfg.State} {
		info, err := os.Stat(dir)
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			i.add(levelWarn, "permissions", fmt.Sprintf("%s has mode %#o: users of this machine reach setuid programs of images", dir, info.Mode().Perm()), "noded closes it when it starts; or chmod 0700 "+dir)
		}
	}
}

// daemon asks whether a daemon answers, and what it says of itself.
func (i *inspector) daemon(ctx context.Context) {
	path, err := config.SocketPath(i.cfg.CRI.Listen)
	if err != nil {
		return
	}
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		i.ok("daemon", "none runs (there is no %s)", path)
		return
	}
	if err == nil && info.Mode().Perm()&0o077 != 0 {
		i.add(levelFail, "permissions", fmt.Sprintf("%s has mode %#o: whoever opens it is root on this machine", path, info.Mode().Perm()), "chmod 0600 "+path)
	}
	c, err := (&app{listen: i.cfg.CRI.Listen}).connect()
	if err != nil {
		return
	}
	defer c.conn.Close()
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	reply, err := c.Status(ctx, &cri.StatusRequest{})
	switch {
	case status.Code(err) == codes.Unavailable:
		i.add(levelWarn, "daemon", "nothing listens at "+path, "start it: systemctl start noded, or noded serve")
	case err != nil:
		i.add(levelFail, "daemon", "it does not answer: "+explain(err, i.cfg.CRI.Listen), "see its log; docs/debugging.md says how to see where it is stuck")
	default:
		for _, condition := range reply.GetStatus().GetConditions() {
			if condition.GetStatus() {
				i.ok("daemon", "%s", condition.GetType())
			} else {
				i.add(levelFail, "daemon", fmt.Sprintf("not %s: %s %s", condition.GetType(), condition.GetReason(), condition.GetMessage()), "")
			}
		}
	}
}
