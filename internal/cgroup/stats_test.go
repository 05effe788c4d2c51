package cgroup

import (
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"noded.dev/noded/internal/kind"
)

// v2Files has the formats of Documentation/admin-guide/cgroup-v2.rst.
var v2Files = map[string]string{
	"cpu.stat": "usage_usec 3000\nuser_usec 2000\nsystem_usec 1000\nnice_usec 0\ncore_sched.force_idle_usec 0\n" +
		"nr_periods 7\nnr_throttled 2\nthrottled_usec 50\nnr_bursts 3\nburst_usec 40\n",
	"cpu.weight":             "100\n",
	"cpu.max":                "50000 100000\n",
	"cpuset.cpus":            "0-1\n",
	"cpuset.mems":            "\n",
	"memory.current":         "10000\n",
	"memory.max":             "20000\n",
	"memory.peak":            "15000\n",
	"memory.min":             "100\n",
	"memory.swap.current":    "300\n",
	"memory.swap.max":        "1000\n",
	"memory.stat":            "anon 4000\nfile 5000\nkernel 800\ninactive_anon 0\ninactive_file 3000\nactive_file 2000\nfile_mapped 1500\npgfault 11\npgmajfault 3\n",
	"memory.events":          "low 0\nhigh 0\nmax 9\noom 2\noom_kill 4\noom_group_kill 0\n",
	"pids.current":           "5\n",
	"pids.max":               "max\n",
	"io.stat":                "8:16 rbytes=1459200 wbytes=314773504 rios=192 wios=353 dbytes=0 dios=0\n8:0 \n254:0 rbytes=1 wbytes=2 rios=3 wios=4\n",
	"cpu.pressure":           "some avg10=1.50 avg60=0.20 avg300=0.01 total=123\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=4\n",
	"memory.pressure":        "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
	"io.pressure":            "some avg10=0.00 avg60=0.00 avg300=0.00 total=9\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=8\n",
	"hugetlb.2MB.current":    "2097152\n",
	"hugetlb.2MB.max":        "max\n",
	"hugetlb.2MB.events":     "max 6\n",
	"hugetlb.1GB.current":    "0\n",
	"hugetlb.1GB.max":        "0\n",
	"cgroup.subtree_control": "",
}

func fixture(t *testing.T, mode Mode, files map[string]string) *Group {
	t.Helper()
	root := t.TempDir()
	dir := filepath.Join(root, "pod", "c1")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	h := &Host{mode: mode}
	if mode == V2 {
		h.unified = root
	} else {
		h.v1 = []hierarchy{{root, []string{"cpu", "cpuacct", "cpuset", "memory", "pids", "blkio", "hugetlb", "freezer"}}}
	}
	g := h.Open("/pod/c1")
	t.Cleanup(g.Close)
	return g
}

// checkDetails checks what the two versions keep in different files.
func checkDetails(t *testing.T, d Details, protected uint64) {
	t.Helper()
	for name, c := range map[string]struct {
		got  *uint64
		want uint64
	}{
		"most memory": {d.MemoryMax, 15000}, "failures": {d.MemoryFailures, 9}, "kernel": {d.MemoryKernel, 800},
		"protected": {d.MemoryProtected, protected}, "oom kills": {d.OOMKills, 4},
	} {
		if c.got == nil || *c.got != c.want {
			t.Errorf("%s: %v, want %d", name, c.got, c.want)
		}
	}
	if d.Has != (Has{true, true, true, true}) || d.Limits.MemoryLimit != 20000 {
		t.Errorf("has %+v, limits %+v", d.Has, d.Limits)
	}
}

// What a kernel does not give is not taken for zero.
func TestDetailsThatAreMissing(t *testing.T) {
	files := maps.Clone(v2Files)
	for _, f := range []string{"memory.current", "memory.stat", "memory.max", "memory.peak", "memory.min", "memory.events", "memory.swap.current", "memory.swap.max", "pids.current"} {
		delete(files, f)
	}
	d, err := fixture(t, V2, files).Details()
	if err != nil || d.Has != (Has{CPU: true}) {
		t.Errorf("has %+v, %v", d.Has, err)
	}
	if d.MemoryMax != nil || d.MemoryFailures != nil || d.MemoryKernel != nil || d.MemoryProtected != nil || d.OOMKills != nil {
		t.Errorf("details %+v", d)
	}
}

func TestStatsV2(t *testing.T) {
	g := fixture(t, V2, v2Files)
	s, err := g.Details()
	if err != nil {
		t.Fatal(err)
	}
	if want := (CPUStats{3e6, 2e6, 1e6, 7, 2, 50e3, 3, 40e3}); s.CPU != want {
		t.Errorf("cpu %+v, want %+v", s.CPU, want)
	}
	if want := (MemoryStats{Usage: 10000, WorkingSet: 7000, RSS: 4000, Cache: 5000, Limit: 20000, Available: 13000, PageFaults: 11, MajorPageFaults: 3,
		MappedFile: 1500, ActiveFile: 2000, InactiveFile: 3000}); s.Memory != want {
		t.Errorf("memory %+v, want %+v", s.Memory, want)
	}
	if want := (SwapStats{300, 1000, 700}); s.Swap != want {
		t.Errorf("swap %+v, want %+v", s.Swap, want)
	}
	if want := (PidsStats{5, Unlimited}); s.Pids != want {
		t.Errorf("pids %+v, want %+v", s.Pids, want)
	}
	if want := []IOStats{{8, 16, 1459200, 314773504, 192, 353}, {254, 0, 1, 2, 3, 4}}; !reflect.DeepEqual(s.IO, want) {
		t.Errorf("io %+v, want %+v", s.IO, want)
	}
	if s.PSI.CPU == nil || *s.PSI.CPU != (Pressure{Stall{1.5, .2, .01, 123}, Stall{0, 0, 0, 4}}) || s.PSI.IO == nil || s.PSI.IO.Full.Total != 8 {
		t.Errorf("pressure %+v", s.PSI)
	}
	for _, ht := range s.Hugetlb {
		if ht.PageSize == "2MB" && (ht.Usage != 2<<20 || ht.Limit != Unlimited || ht.Failures == nil || *ht.Failures != 6 || ht.Max != nil) {
			t.Errorf("hugetlb %+v", ht)
		}
	}
	checkDetails(t, s, 100)
	if n, err := g.OOMKills(); n != 4 || err != nil {
		t.Errorf("oom kills %d, %v; want 4", n, err)
	}
	l, err := g.Limits()
	want := Limits{CPUShares: 1024, CPUWeight: 100, CPUQuota: 50000, CPUPeriod: 100000, CpusetCPUs: "0-1", MemoryLimit: 20000, MemorySwap: 21000, PidsLimit: Unlimited}
	if err != nil || !reflect.DeepEqual(l, want) {
		t.Errorf("limits %+v, %v; want %+v", l, err, want)
	}
}

// A value is read anew each time, from the descriptor that is open already.
func TestStatsReadAgain(t *testing.T) {
	g := fixture(t, V2, v2Files)
	if _, err := g.Stats(); err != nil {
		t.Fatal(err)
	}
	p := filepath.Join(g.host.unified, "pod/c1/memory.current")
	if err := os.WriteFile(p, []byte("12345\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if s, err := g.Stats(); err != nil || s.Memory.Usage != 12345 {
		t.Errorf("usage %d, %v; want 12345", s.Memory.Usage, err)
	}
}

func TestStatsWithoutOptionalFiles(t *testing.T) {
	files := maps.Clone(v2Files)
	for _, f := range []string{"memory.swap.current", "memory.swap.max", "io.stat", "cpu.pressure", "memory.pressure", "io.pressure"} {
		delete(files, f)
	}
	s, err := fixture(t, V2, files).Details()
	if err != nil || s.Memory.Usage != 10000 || s.PSI.CPU != nil || s.IO != nil {
		t.Errorf("%+v, %v", s, err)
	}
}

func TestStatsGone(t *testing.T) {
	h := &Host{mode: V2, unified: t.TempDir()}
	g := h.Open("no/such")
	defer g.Close()
	if _, err := g.Stats(); !kind.Is(err, kind.NotFound) {
		t.Errorf("error %v, want kind NotFound", err)
	}
	if _, err := g.OOMKills(); !kind.Is(err, kind.NotFound) {
		t.Errorf("error %v, want kind NotFound", err)
	}
}

// v1Files has the formats of Documentation/admin-guide/cgroup-v1.
var v1Files = map[string]string{
	"cpuacct.usage":                             "3000000\n",
	"cpuacct.stat":                              "user 2\nsystem 1\n",
	"cpu.stat":                                  "nr_periods 7\nnr_throttled 2\nthrottled_time 50000\nnr_bursts 3\nburst_time 40\n",
	"cpu.shares":                                "512\n",
	"cpu.cfs_quota_us":                          "-1\n",
	"cpu.cfs_period_us":                         "100000\n",
	"cpuset.cpus":                               "0\n",
	"cpuset.mems":                               "0\n",
	"memory.usage_in_bytes":                     "10000\n",
	"memory.max_usage_in_bytes":                 "15000\n",
	"memory.failcnt":                            "9\n",
	"memory.kmem.usage_in_bytes":                "800\n",
	"memory.soft_limit_in_bytes":                "9223372036854771712\n",
	"memory.limit_in_bytes":                     "20000\n",
	"memory.memsw.usage_in_bytes":               "10300\n",
	"memory.memsw.limit_in_bytes":               "9223372036854771712\n",
	"memory.stat":                               "cache 1\nrss 1\ninactive_file 1\ntotal_cache 5000\ntotal_rss 4000\ntotal_pgfault 11\ntotal_pgmajfault 3\ntotal_inactive_file 3000\ntotal_active_file 2000\ntotal_mapped_file 1500\npgfault 10\npgmajfault 2\n",
	"memory.oom_control":                        "oom_kill_disable 0\nunder_oom 0\noom_kill 4\n",
	"pids.current":                              "5\n",
	"pids.max":                                  "100\n",
	"blkio.throttle.io_service_bytes_recursive": "8:0 Read 4096\n8:0 Write 8192\n8:0 Sync 1\n8:0 Async 1\n8:0 Discard 0\n8:0 Total 12288\nTotal 12288\n",
	"blkio.throttle.io_serviced_recursive":      "8:0 Read 1\n8:0 Write 2\n8:0 Total 3\nTotal 3\n",
	"hugetlb.2MB.usage_in_bytes":                "0\n",
	"hugetlb.2MB.limit_in_bytes":                "9223372036852678656\n",
	"hugetlb.1GB.usage_in_bytes":                "0\n",
	"hugetlb.1GB.limit_in_bytes":                "0\n",
}

func TestStatsV1(t *testing.T) {
	g := fixture(t, V1, v1Files)
	s, err := g.Details()
	if err != nil {
		t.Fatal(err)
	}
	if want := (CPUStats{3e6, 20e6, 10e6, 7, 2, 50e3, 3, 40}); s.CPU != want {
		t.Errorf("cpu %+v, want %+v", s.CPU, want)
	}
	if want := (MemoryStats{Usage: 10000, WorkingSet: 7000, RSS: 4000, Cache: 5000, Limit: 20000, Available: 13000, PageFaults: 11, MajorPageFaults: 3,
		MappedFile: 1500, ActiveFile: 2000, InactiveFile: 3000, OwnPageFaults: 10, OwnMajorPageFaults: 2}); s.Memory != want {
		t.Errorf("memory %+v, want %+v", s.Memory, want)
	}
	if want := (SwapStats{300, Unlimited, 0}); s.Swap != want {
		t.Errorf("swap %+v, want %+v", s.Swap, want)
	}
	if want := []IOStats{{8, 0, 4096, 8192, 1, 2}}; !reflect.DeepEqual(s.IO, want) {
		t.Errorf("io %+v, want %+v", s.IO, want)
	}
	checkDetails(t, s, Unlimited)
	if n, err := g.OOMKills(); n != 4 || err != nil {
		t.Errorf("oom kills %d, %v; want 4", n, err)
	}
	l, err := g.Limits()
	want := Limits{CPUShares: 512, CPUQuota: -1, CPUPeriod: 100000, CpusetCPUs: "0", CpusetMems: "0", MemoryLimit: 20000, MemorySwap: Unlimited, PidsLimit: 100}
	if err != nil || !reflect.DeepEqual(l, want) {
		t.Errorf("limits %+v, %v; want %+v", l, err, want)
	}
}

func TestSharesOf(t *testing.T) {
	for weight, want := range map[uint64]uint64{1: 2, 100: 1024, 10000: 262144} {
		if got := sharesOf(weight); got < want-want/50 || got > want+want/50 {
			t.Errorf("sharesOf(%d) = %d, want about %d", weight, got, want)
		}
	}
}
