package metrics

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/internal/cgroup"
	"noded.dev/noded/internal/namespace"
)

var update = flag.Bool("update", false, "write the generated page")

func p(v uint64) *uint64 { return &v }

// fullSample is one of which everything was measured.
func fullSample() *Sample {
	stall := &cgroup.Pressure{Some: cgroup.Stall{Total: 7_900_000}, Full: cgroup.Stall{Total: 3_100_000}}
	return &Sample{
		Labels: Labels{"/kubepods/pod1/c1", "c1", "img:1", "main", "web", "default"},
		At:     time.Unix(2000, 5e8), Started: time.Unix(1000, 0),
		Cgroup: &cgroup.Details{
			Stats: cgroup.Stats{
				Has: cgroup.Has{CPU: true, Memory: true, Swap: true, Pids: true},
				CPU: cgroup.CPUStats{Usage: 12_900_000_000, User: 8_100_000_000, System: 4_800_000_000, Periods: 70, ThrottledPeriods: 20, Throttled: 5_500_000_000, Bursts: 3, Burst: 2_000_000_000},
				Memory: cgroup.MemoryStats{Usage: 1000, WorkingSet: 800, RSS: 400, Cache: 500, Limit: 9000, MappedFile: 60, ActiveFile: 300, InactiveFile: 200,
					PageFaults: 11, MajorPageFaults: 3, OwnPageFaults: 10, OwnMajorPageFaults: 2},
				Swap: cgroup.SwapStats{Usage: 30, Limit: cgroup.Unlimited},
				Pids: cgroup.PidsStats{Current: 5, Limit: 100},
				PSI:  cgroup.PSIStats{CPU: stall, Memory: stall, IO: stall},
			},
			IO:        []cgroup.IOStats{{Major: 8, Minor: 16, ReadBytes: 4096, WriteBytes: 8192, Reads: 1, Writes: 2}},
			Hugetlb:   []cgroup.HugetlbStats{{PageSize: "2MB", Usage: 2 << 20, Max: p(4 << 20), Failures: p(6)}},
			Limits:    cgroup.Limits{CPUShares: 512, CPUQuota: 50000, CPUPeriod: 100000},
			MemoryMax: p(1500), MemoryFailures: p(9), MemoryKernel: p(80), MemoryProtected: p(cgroup.Unlimited), OOMKills: p(4),
		},
		Tasks:   &Tasks{Processes: 2, Files: p(12), Sockets: p(3), FilesLimit: p(1024)},
		Layer:   &Layer{Device: "/dev/vda", Used: 777, CachedAt: time.Unix(1990, 0), HasCapacity: true, Capacity: 1 << 30, Inodes: 5000, InodesFree: 4000},
		Network: []namespace.Interface{{Name: "eth0", Rx: namespace.Traffic{Bytes: 1, Packets: 2, Errors: 3, Dropped: 4}, Tx: namespace.Traffic{Bytes: 5, Packets: 6, Errors: 7, Dropped: 8}}},
		Device:  func(major, minor uint64) string { return fmt.Sprintf("/dev/b%d-%d", major, minor) },
	}
}

// text is a metric as Prometheus writes it.
func text(m *cri.Metric, d *cri.MetricDescriptor) string {
	var labels []string
	for i, key := range d.LabelKeys[6:] {
		labels = append(labels, key+"="+m.LabelValues[6+i])
	}
	return fmt.Sprintf("%s{%s} %d @%d", m.Name, strings.Join(labels, ","), m.Value.Value, m.Timestamp)
}

// Every metric of the table comes out of a full sample, with as many labels as
// its descriptor has, and no two are the same.
func TestTable(t *testing.T) {
	descriptors := map[string]*cri.MetricDescriptor{}
	for i, d := range Descriptors() {
		if descriptors[d.Name] != nil || !strings.HasPrefix(d.Name, "container_") || d.Help == "" {
			t.Errorf("descriptor %v", d)
		}
		if counts := strings.HasSuffix(d.Name, "_total") || strings.HasSuffix(d.Name, "failcnt"); counts != (table[i].kind == counter) && d.Name != "container_fs_inodes_total" {
			t.Errorf("%s is a %v", d.Name, table[i].kind)
		}
		descriptors[d.Name] = d
	}
	seen := map[string]bool{}
	of := map[string]bool{}
	for _, m := range Of(fullSample()) {
		d := descriptors[m.Name]
		if d == nil || len(d.LabelKeys) != len(m.LabelValues) || m.Value == nil {
			t.Fatalf("metric %v of descriptor %v", m, d)
		}
		key := m.Name + strings.Join(m.LabelValues, "\x00")
		if seen[key] {
			t.Errorf("twice: %v", m)
		}
		seen[key], of[m.Name] = true, true
		base := strings.Join(m.LabelValues[:6], " ")
		if base != "/kubepods/pod1/c1 c1 img:1 main web default" || strings.Join(d.LabelKeys[:6], " ") != "id name image container pod namespace" {
			t.Errorf("%s has the labels %v of %v", m.Name, m.LabelValues, d.LabelKeys)
		}
		if (m.Timestamp != 0) != (m.Name == "container_fs_usage_bytes") {
			t.Errorf("%s is of %d", m.Name, m.Timestamp)
		}
	}
	for name := range descriptors {
		if !of[name] {
			t.Errorf("a full sample has no %s", name)
		}
	}
}

// Values are in cAdvisor's units.
func TestValues(t *testing.T) {
	descriptors := map[string]*cri.MetricDescriptor{}
	for _, d := range Descriptors() {
		descriptors[d.Name] = d
	}
	got := map[string]bool{}
	for _, m := range Of(fullSample()) {
		got[text(m, descriptors[m.Name])] = true
	}
	for _, want := range []string{
		"container_last_seen{} 2000 @0", "container_start_time_seconds{} 1000 @0",
		"container_cpu_usage_seconds_total{cpu=total} 12 @0", "container_cpu_user_seconds_total{} 8 @0", "container_cpu_system_seconds_total{} 4 @0",
		"container_cpu_cfs_periods_total{} 70 @0", "container_cpu_cfs_throttled_periods_total{} 20 @0", "container_cpu_cfs_throttled_seconds_total{} 5 @0",
		"container_cpu_cfs_burst_seconds_total{} 2 @0", "container_memory_working_set_bytes{} 800 @0", "container_memory_failcnt{} 9 @0",
		"container_memory_failures_total{failure_type=pgfault,scope=container} 10 @0", "container_memory_failures_total{failure_type=pgmajfault,scope=hierarchy} 3 @0",
		"container_hugetlb_max_usage_bytes{pagesize=2MB} 4194304 @0", "container_fs_usage_bytes{device=/dev/vda} 777 @1990000000000",
		"container_fs_writes_bytes_total{device=/dev/b8-16} 8192 @0", "container_blkio_device_usage_total{device=/dev/b8-16,major=8,minor=16,operation=Write} 8192 @0",
		"container_network_receive_packets_dropped_total{interface=eth0} 4 @0", "container_network_transmit_errors_total{interface=eth0} 7 @0",
		"container_threads{} 5 @0", "container_threads_max{} 100 @0", "container_ulimits_soft{ulimit=max_open_files} 1024 @0",
		"container_pressure_io_waiting_seconds_total{} 7 @0", "container_pressure_cpu_stalled_seconds_total{} 3 @0",
		"container_spec_cpu_quota{} 50000 @0", "container_spec_memory_limit_bytes{} 9000 @0", "container_spec_memory_swap_limit_bytes{} 0 @0",
		"container_spec_memory_reservation_limit_bytes{} 0 @0", "container_oom_events_total{} 4 @0",
	} {
		if !got[want] {
			t.Errorf("there is no %s", want)
		}
	}
}

// What was not measured is left out: a zero would be taken for a measurement.
func TestNothingIsMadeUp(t *testing.T) {
	names := func(s *Sample) (list []string) {
		for _, m := range Of(s) {
			list = append(list, m.Name)
		}
		return list
	}
	if got := names(&Sample{At: time.Unix(1, 0)}); len(got) != 1 || got[0] != "container_last_seen" {
		t.Errorf("an empty sample has %v", got)
	}
	for _, name := range names(&Sample{Cgroup: &cgroup.Details{Limits: cgroup.Limits{CPUQuota: -1}}}) {
		if name != "container_last_seen" {
			t.Errorf("a cgroup without controllers has %s", name)
		}
	}
	s := fullSample()
	s.Cgroup.Limits.CPUQuota = -1
	for _, name := range names(s) {
		if strings.Contains(name, "_cfs_") || name == "container_spec_cpu_quota" {
			t.Errorf("without a quota there is %s", name)
		}
	}
}

// TestPage keeps docs/metrics.md equal to the table.
func TestPage(t *testing.T) {
	const path, begin = "../../docs/metrics.md", "<!-- The rest is made by go test ./sandbox/metrics -run TestPage -update -->\n"
	page, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	head, _, ok := strings.Cut(string(page), begin)
	if !ok {
		t.Fatalf("%s has no line %s", path, begin)
	}
	var b strings.Builder
	b.WriteString(head + begin + "\n| metric | type | own labels | what it is |\n| --- | --- | --- | --- |\n")
	for _, m := range table {
		own := ""
		if len(m.labels) > 0 {
			own = "`" + strings.Join(m.labels, "`, `") + "`"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", m.name, strings.ToLower(m.kind.String()), own, m.help)
	}
	if *update {
		if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if b.String() != string(page) {
		t.Errorf("%s is not what the table says: run go test ./sandbox/metrics -run TestPage -update", path)
	}
}
