package hostpath

import (
	"bufio"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// resolveCached is RESOLVE_CACHED of linux/openat2.h.
const resolveCached = 0x20

// quickTypes are file systems without a device that need nobody to answer.
var quickTypes = []string{
	"tmpfs", "ramfs", "rootfs", "devtmpfs", "overlay", "btrfs", "zfs", "proc", "sysfs", "cgroup", "cgroup2", "hugetlbfs", "bpf",
	"debugfs", "tracefs", "securityfs", "configfs", "mqueue", "devpts", "nsfs",
}

// fromMemory finds a path without asking any file system: by what the kernel
// remembers of names (openat2's RESOLVE_CACHED, Linux 5.12), and only where the
// container's own first look will not have to ask anybody either.
func fromMemory(path string, mounts *mountTable) (real string, ok bool) {
	fd, err := unix.Openat2(unix.AT_FDCWD, path, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: resolveCached})
	if err != nil {
		return "", false
	}
	defer unix.Close(fd)
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_MNT_ID, &st); err != nil {
		return "", false
	}
	if st.Dev_major == 0 && !slices.Contains(quickTypes, mounts.byID(st.Mnt_id).fstype) {
		return "", false
	}
	real, err = os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	// The kernel marks so what was deleted in the moment; the helper finds out.
	if err != nil || strings.HasSuffix(real, " (deleted)") {
		return "", false
	}
	return real, true
}

// mount is a line of proc_pid_mountinfo(5).
type mount struct {
	id             uint64
	point          string
	fstype, source string
}

// mountTable is read when it is needed for the first time.
type mountTable struct {
	read bool
	list []mount
}

func (t *mountTable) mounts() []mount {
	if t.read {
		return t.list
	}
	t.read = true
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		left, right, ok := strings.Cut(lines.Text(), " - ")
		a, b := strings.Fields(left), strings.Fields(right)
		if !ok || len(a) < 5 || len(b) < 2 {
			continue
		}
		id, err := strconv.ParseUint(a[0], 10, 64)
		if err == nil {
			t.list = append(t.list, mount{id: id, point: unescape(a[4]), fstype: b[0], source: unescape(b[1])})
		}
	}
	return t.list
}

func (t *mountTable) byID(id uint64) mount {
	for _, m := range t.mounts() {
		if m.id == id {
			return m
		}
	}
	return mount{}
}

// unescape reads the octal escapes of mountinfo.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// behind names the file system of a path that does not answer, by the path's
// letters: links in it cannot be followed without asking.
func behind(path string) string {
	path = filepath.Clean(path)
	best := mount{}
	for _, m := range new(mountTable).mounts() {
		// Of two at one place the later one is on top.
		if (path == m.point || m.point == "/" || strings.HasPrefix(path, m.point+"/")) && len(m.point) >= len(best.point) {
			best = m
		}
	}
	if best.fstype == "" {
		return "a file system that is not known"
	}
	return best.fstype + " from " + best.source + ", mounted at " + best.point
}
