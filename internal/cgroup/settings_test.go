package cgroup

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"noded.dev/noded/internal/kind"
)

func sorted(list []Setting) []Setting {
	slices.SortFunc(list, func(a, b Setting) int { return strings.Compare(a.File, b.File) })
	return list
}

func TestSettings(t *testing.T) {
	v1 := &Host{mode: V1, v1: []hierarchy{{"/c/cpu", []string{"cpu"}}, {"/c/memory", []string{"memory"}}, {"/c/cpuset", []string{"cpuset"}}}}
	v2 := &Host{mode: V2, unified: "/c"}
	now := Limits{CPUQuota: 20000, CPUPeriod: 50000, MemoryLimit: 1 << 20}
	for name, c := range map[string]struct {
		wanted Wanted
		v1, v2 []Setting
	}{
		"nothing": {Wanted{}, nil, nil},
		"all": {Wanted{CPUShares: 1024, CPUQuota: 50000, CPUPeriod: 100000, CpusetCPUs: "0", CpusetMems: "0", MemoryLimit: 4096, MemorySwap: 8192},
			[]Setting{{"cpu.cfs_period_us", "100000"}, {"cpu.cfs_quota_us", "50000"}, {"cpu.shares", "1024"}, {"cpuset.cpus", "0"}, {"cpuset.mems", "0"}, {"memory.limit_in_bytes", "4096"}, {"memory.memsw.limit_in_bytes", "8192"}},
			[]Setting{{"cpu.max", "50000 100000"}, {"cpu.weight", "100"}, {"cpuset.cpus", "0"}, {"cpuset.mems", "0"}, {"memory.max", "4096"}, {"memory.swap.max", "4096"}}},
		"no limits": {Wanted{CPUQuota: -1, MemoryLimit: -1, MemorySwap: -1},
			[]Setting{{"cpu.cfs_quota_us", "-1"}, {"memory.limit_in_bytes", "-1"}, {"memory.memsw.limit_in_bytes", "-1"}},
			[]Setting{{"cpu.max", "max 50000"}, {"memory.max", "max"}, {"memory.swap.max", "max"}}},
		"quota alone":  {Wanted{CPUQuota: 10000}, []Setting{{"cpu.cfs_quota_us", "10000"}}, []Setting{{"cpu.max", "10000 50000"}}},
		"period alone": {Wanted{CPUPeriod: 10000}, []Setting{{"cpu.cfs_period_us", "10000"}}, []Setting{{"cpu.max", "20000 10000"}}},
		"swap alone":   {Wanted{MemorySwap: 3 << 20}, []Setting{{"memory.memsw.limit_in_bytes", "3145728"}}, []Setting{{"memory.swap.max", "2097152"}}},
		"unified":      {Wanted{Unified: map[string]string{"memory.high": "1"}}, []Setting{{"memory.high", "1"}}, []Setting{{"memory.high", "1"}}},
	} {
		if got := sorted(v1.Settings(c.wanted, now)); !slices.Equal(got, c.v1) {
			t.Errorf("%s on v1: %v, want %v", name, got, c.v1)
		}
		if got := sorted(v2.Settings(c.wanted, now)); !slices.Equal(got, c.v2) {
			t.Errorf("%s on v2: %v, want %v", name, got, c.v2)
		}
	}
}

// A weight stands for several shares: what was asked for is told where it is
// one of them.
func TestShares(t *testing.T) {
	for shares := uint64(2); shares <= 262144; shares += 1 + shares/50 {
		for _, weight := range []uint64{WeightOf(shares), oldWeightOf(shares)} {
			if weight < 1 || weight > 10000 {
				t.Fatalf("%d shares have the weight %d", shares, weight)
			}
			if got := (Limits{CPUWeight: weight, CPUShares: sharesOf(weight)}).SharesAs(shares); got != shares {
				t.Errorf("%d shares, weight %d, are told as %d", shares, weight, got)
			}
		}
	}
	if got := (Limits{CPUWeight: 500, CPUShares: sharesOf(500)}).SharesAs(1024); got == 1024 || got == 0 {
		t.Errorf("a weight that somebody else set is told as %d shares", got)
	}
	if got := (Limits{CPUShares: 77}).SharesAs(1024); got != 77 {
		t.Errorf("v1: %d", got)
	}
}

// TestApply writes to real cgroups: what depends on each other in any order,
// and nothing where a part is refused.
func TestApply(t *testing.T) {
	h, dir := realGroup(t)
	if h.mode == V2 {
		t.Skip("the files of v1 are written")
	}
	limits := func() Limits {
		t.Helper()
		g := h.Open(dir)
		defer g.Close()
		l, err := g.Limits()
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	before, err := h.Save(dir)
	if err != nil || len(before) < 5 {
		t.Fatalf("saved %v, %v", before, err)
	}
	fresh := limits()
	for _, w := range []Wanted{
		{MemoryLimit: 64 << 20, MemorySwap: 64 << 20, CPUQuota: 50000, CPUPeriod: 100000, CPUShares: 512},
		{MemoryLimit: 128 << 20, MemorySwap: 256 << 20, CPUQuota: 900000, CPUPeriod: 1000000},
		{MemoryLimit: 32 << 20, MemorySwap: 32 << 20, CPUQuota: 1000, CPUPeriod: 1000},
	} {
		if err := h.Apply(dir, h.Settings(w, limits())); err != nil {
			t.Fatalf("%+v: %v", w, err)
		}
		if l := limits(); l.MemoryLimit != uint64(w.MemoryLimit) || l.MemorySwap != uint64(w.MemorySwap) || l.CPUQuota != w.CPUQuota || l.CPUPeriod != w.CPUPeriod || l.CPUShares != 512 {
			t.Errorf("%+v became %+v", w, l)
		}
	}
	was := limits()
	err = h.Apply(dir, append(h.Settings(Wanted{MemoryLimit: 16 << 20, MemorySwap: 16 << 20, CPUShares: 99, CPUQuota: 2000}, was), Setting{"cpuset.cpus", "4000"}))
	var refused *SettingError
	if !errors.As(err, &refused) || refused.File != "cpuset.cpus" || strings.Contains(err.Error(), "/sys/fs") {
		t.Errorf("refused: %v", err)
	}
	if l := limits(); !reflect.DeepEqual(l, was) {
		t.Errorf("half of it is in force: %+v, want %+v", l, was)
	}
	for range 2 {
		if err := h.Restore(dir, before); err != nil {
			t.Fatal(err)
		}
	}
	if l := limits(); !reflect.DeepEqual(l, fresh) {
		t.Errorf("restored %+v, want %+v", l, fresh)
	}
	if err := h.Restore("noded-no-such-cgroup", before); err != nil {
		t.Errorf("a cgroup that is gone: %v", err)
	}
}

// device lines are taken out again that an update put in.
func TestResets(t *testing.T) {
	got := resets(Setting{"io.max", "8:0 rbps=1 wbps=max riops=max wiops=max"}, "8:0 rbps=5 wbps=max riops=max wiops=max\n8:16 rbps=7 wbps=max riops=max wiops=max")
	if want := []string{"8:16 rbps=max wbps=max riops=max wiops=max"}; !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	if got := resets(Setting{"io.weight", "default 100"}, "default 200\n8:0 50"); !slices.Equal(got, []string{"8:0 default"}) {
		t.Errorf("%q", got)
	}
	if got := resets(Setting{"memory.max", "1"}, "2"); got != nil {
		t.Errorf("%q", got)
	}
}

// A v2 memory limit below what stays in use after reclaim is refused.
func TestCheckMemoryLimit(t *testing.T) {
	root := t.TempDir()
	h := &Host{mode: V2, unified: root}
	if err := h.CheckMemoryLimit("c", 1); err != nil {
		t.Errorf("unknown cgroup: %v", err)
	}
	if err := os.Mkdir(filepath.Join(root, "c"), 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(file, value string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(root, "c", file), []byte(value), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("memory.current", "5000\n")
	for limit, ok := range map[int64]bool{6000: true, 5001: true, 5000: false, 1: false, 0: true, -1: true} {
		if err := h.CheckMemoryLimit("c", limit); (err == nil) != ok || !ok && !kind.Is(err, kind.Precondition) {
			t.Errorf("limit %d: %v", limit, err)
		}
	}
	write("memory.reclaim", "")
	if err := h.CheckMemoryLimit("c", 4000); err == nil || !strings.Contains(err.Error(), "5000") {
		t.Errorf("%v", err)
	}
	if b, _ := os.ReadFile(filepath.Join(root, "c", "memory.reclaim")); string(b) != "1001" {
		t.Errorf("asked to reclaim %q", b)
	}
	v1 := &Host{mode: V1, v1: []hierarchy{{root, []string{"memory"}}}}
	if err := v1.CheckMemoryLimit("c", 1); err != nil {
		t.Errorf("a v1 kernel refuses itself: %v", err)
	}
}

func TestSetOOMScore(t *testing.T) {
	h, dir := realGroup(t)
	cmd := shell(t, h.Folders(dir), "sleep 1000")
	if err := h.SetOOMScore(dir, 999, 998); err != nil {
		t.Fatal(err)
	}
	before, err := OOMScore(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.SetOOMScore(dir, before, 700); err != nil && !errors.Is(err, unix.EACCES) {
		t.Fatal(err)
	}
	if got, err := OOMScore(cmd.Process.Pid); err != nil || got != 700 {
		t.Errorf("score %d, %v", got, err)
	}
	if own, _ := OOMScore(os.Getpid()); own == 700 {
		t.Error("the score of a process outside was changed")
	}
	kill(t, h, dir)
}
