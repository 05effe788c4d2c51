package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/test/oracle"
)

// Close removes all pods, ends the daemon and its helpers and deletes the
// node's folders, bridge and cgroup. What a daemon should have removed itself
// and did not is an error; it is removed all the same.
func (n *Node) Close() error {
	var errs []error
	if n.daemon != nil {
		select {
		case <-n.ended:
		default:
			errs = append(errs, n.removePods())
			_, err := n.Terminate()
			errs = append(errs, err)
		}
	}
	if n.conn != nil {
		errs = append(errs, n.conn.Close())
	}
	for _, pid := range n.server.helpers(n) {
		errs = append(errs, end(pid))
	}
	errs = append(errs, n.keepLogs(), n.scrub())
	if n.before != nil && errors.Join(errs...) == nil {
		errs = append(errs, n.leftovers())
	}
	return errors.Join(errs...)
}

// Logs is the environment variable that names a folder where logs are kept.
const Logs = "NODED_TEST_LOGS"

// keepLogs saves what the daemon, and what else was told to log into the
// node's folder, wrote.
func (n *Node) keepLogs() error {
	keep := os.Getenv(Logs)
	if keep == "" {
		return nil
	}
	logs, err := filepath.Glob(filepath.Join(n.Dir, "*.log"))
	if err != nil {
		return err
	}
	for _, path := range logs {
		data, err := os.ReadFile(path)
		if err == nil {
			err = os.WriteFile(filepath.Join(keep, n.Tag+"-"+filepath.Base(path)), data, 0o600)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// leftovers polls, because the kernel ends some things in its own time.
func (n *Node) leftovers() error {
	deadline := time.Now().Add(oracle.Settle)
	for {
		after, err := oracle.Take(n.whole())
		if err != nil {
			return err
		}
		lines := oracle.Diff(n.before, after)
		if len(lines) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("node left behind:\n%s", strings.Join(lines, "\n"))
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func (n *Node) removePods() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	pods, err := n.Runtime.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
	if err != nil {
		return fmt.Errorf("list pods: %w", err)
	}
	var errs []error
	for _, p := range pods.Items {
		_, err := n.Runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: p.Id})
		errs = append(errs, err)
		_, err = n.Runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: p.Id})
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// end stops a process that is not this one's child: SIGTERM, then SIGKILL.
func end(pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil // ended
	}
	defer unix.Close(fd)
	for _, signal := range []syscall.Signal{unix.SIGTERM, unix.SIGKILL} {
		unix.PidfdSendSignal(fd, signal, nil, 0)
		if wait, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 3000); err == nil && wait == 1 {
			return nil
		}
	}
	return fmt.Errorf("process %d does not end", pid)
}

// scrub removes what outlives the daemon by design (its bridge and folders),
// and what it should have removed, which is an error.
func (n *Node) scrub() error {
	var errs []error
	for _, point := range mountsBelow(n.Dir) {
		// Folders that hold pods' namespaces may be mounts that live as long as the node.
		if point != n.Root && point != n.State && point != filepath.Join(n.State, "ns") {
			errs = append(errs, fmt.Errorf("mount left behind: %s", point))
		}
		errs = append(errs, unix.Unmount(point, unix.MNT_DETACH))
	}
	links, err := netlink.LinkList()
	errs = append(errs, err)
	for _, l := range links {
		if strings.HasPrefix(l.Attrs().Name, n.Bridge) {
			errs = append(errs, netlink.LinkDel(l))
		}
	}
	errs = append(errs, n.deleteRules(), removeCgroup(n.Cgroup), os.RemoveAll(n.Dir))
	return errors.Join(errs...)
}

// mountsBelow lists mount points under dir, deepest first.
func mountsBelow(dir string) []string {
	data, _ := os.ReadFile("/proc/self/mountinfo")
	var points []string
	for _, line := range strings.Split(string(data), "\n") {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			points = append(points, f[4])
		}
	}
	sort.Sort(sort.Reverse(sort.StringSlice(points)))
	return points
}

// hierarchies are the mount points of all cgroup file systems.
func hierarchies() []string {
	data, _ := os.ReadFile("/proc/self/mountinfo")
	var points []string
	for _, line := range strings.Split(string(data), "\n") {
		left, right, _ := strings.Cut(line, " - ")
		if f := strings.Fields(left); len(f) > 4 && f[3] == "/" && strings.HasPrefix(right, "cgroup") {
			points = append(points, f[4])
		}
	}
	return points
}

// makeCgroup makes the parent of pods, as a kubelet does before it starts any.
func makeCgroup(path string) error {
	for _, h := range hierarchies() {
		if err := os.MkdirAll(filepath.Join(h, path), 0o755); err != nil {
			return err
		}
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} { // empty in a new v1 group, which then takes no process
			if value, err := os.ReadFile(filepath.Join(h, file)); err == nil {
				os.WriteFile(filepath.Join(h, path, file), value, 0o644)
			}
		}
	}
	return nil
}

// removeCgroup removes the parent of pods; a group left below it is an error.
func removeCgroup(path string) error {
	var errs []error
	for _, h := range hierarchies() {
		var dirs []string
		filepath.WalkDir(filepath.Join(h, path), func(p string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, p)
			}
			return nil
		})
		for i := len(dirs) - 1; i >= 0; i-- {
			if i > 0 {
				errs = append(errs, fmt.Errorf("cgroup left behind: %s", dirs[i]))
			}
			if err := os.Remove(dirs[i]); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}
