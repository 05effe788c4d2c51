package cgroup

import (
	"os"
	"slices"
	"strings"
	"testing"
)

const (
	rootMount = "23 1 8:1 / / rw - ext4 /dev/root rw\n31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n"
	v1Mounts  = "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct\n" +
		"35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n" +
		"40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,release_agent=/x,name=systemd\n"
	v2Beside = "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
	v2Alone  = "31 23 0:28 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
	elsewher = "99 23 0:99 / /var/lib/x/cgroup rw - cgroup2 cgroup2 rw\n"
)

func TestParseMounts(t *testing.T) {
	for _, c := range []struct {
		name, mounts string
		mode         Mode
		unified      string
		cpu          string
	}{
		{"v1", rootMount + v1Mounts + elsewher, V1, "", "/sys/fs/cgroup/cpu,cpuacct"},
		{"hybrid", rootMount + v1Mounts + v2Beside, Hybrid, "/sys/fs/cgroup/unified", "/sys/fs/cgroup/cpu,cpuacct"},
		{"v2", v2Alone + elsewher, V2, "/sys/fs/cgroup", "/sys/fs/cgroup"},
		{"v2 with a named v1 tree", v2Alone + strings.SplitAfter(v1Mounts, "\n")[2], V2, "/sys/fs/cgroup", "/sys/fs/cgroup"},
	} {
		h, err := parseMounts(strings.NewReader(c.mounts), DefaultRoot)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		cpu, _ := h.controller("cpuacct")
		if h.Mode() != c.mode || h.unified != c.unified || cpu != c.cpu {
			t.Errorf("%s: mode %v, v2 tree %q, cpuacct %q", c.name, h.Mode(), h.unified, cpu)
		}
	}
	if _, err := parseMounts(strings.NewReader(elsewher), DefaultRoot); err == nil {
		t.Error("no error without any mount below the root")
	}
}

func TestUnescape(t *testing.T) {
	if got := unescape(`/a\040b\134c`); got != `/a b\c` {
		t.Errorf("got %q", got)
	}
}

func TestDetectThisMachine(t *testing.T) {
	h, err := Detect("")
	if err != nil {
		t.Skip("no cgroups here:", err)
	}
	if st, err := os.Stat("/run/systemd/system"); (err == nil && st.IsDir()) != h.Systemd() {
		t.Errorf("Systemd() = %v, but /run/systemd/system: %v", h.Systemd(), err)
	}
	for _, c := range []string{"cpu", "memory", "pids"} {
		if !slices.Contains(h.Controllers(), c) {
			t.Errorf("controller %s is missing in %v", c, h.Controllers())
		}
	}
}
