package metrics

import (
	"slices"
	"strconv"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/internal/cgroup"
	"noded.dev/noded/internal/namespace"
)

const (
	counter = cri.MetricType_COUNTER
	gauge   = cri.MetricType_GAUGE
)

// table is in the order of the page.
var table = slices.Concat(always, cpu, memory, huge, disk, network, processes, pressure, limits)

var always = []metric{
	{"container_last_seen", "When the container was last measured, in seconds since 1970.", gauge, nil,
		func(s *Sample) []point { return one(seconds(s.At)) }},
	{"container_start_time_seconds", "When the container was started, or the pod made, in seconds since 1970.", gauge, nil,
		func(s *Sample) []point {
			if s.Started.IsZero() {
				return nil
			}
			return one(seconds(s.Started))
		}},
}

var cpu = []metric{
	{"container_cpu_usage_seconds_total", "CPU time used, of all CPUs (the label is always \"total\").", counter, []string{"cpu"},
		ofCPU(func(c cgroup.CPUStats) []point {
			return []point{{value: whole(c.Usage), labels: []string{"total"}}}
		})},
	{"container_cpu_user_seconds_total", "CPU time used in user mode.", counter, nil,
		ofCPU(func(c cgroup.CPUStats) []point { return one(whole(c.User)) })},
	{"container_cpu_system_seconds_total", "CPU time used in the kernel.", counter, nil,
		ofCPU(func(c cgroup.CPUStats) []point { return one(whole(c.System)) })},
	{"container_cpu_cfs_periods_total", "Periods in which the CPU quota was watched; only with a quota.", counter, nil,
		ofQuota(func(c cgroup.CPUStats) []point { return one(c.Periods) })},
	{"container_cpu_cfs_throttled_periods_total", "Periods in which the quota was used up.", counter, nil,
		ofQuota(func(c cgroup.CPUStats) []point { return one(c.ThrottledPeriods) })},
	{"container_cpu_cfs_throttled_seconds_total", "Time for which the quota held up the tasks, summed over CPUs.", counter, nil,
		ofQuota(func(c cgroup.CPUStats) []point { return one(whole(c.Throttled)) })},
	{"container_cpu_cfs_burst_periods_total", "Periods in which more than the quota was used, out of what was saved.", counter, nil,
		ofQuota(func(c cgroup.CPUStats) []point { return one(c.Bursts) })},
	{"container_cpu_cfs_burst_seconds_total", "CPU time used above the quota in such periods.", counter, nil,
		ofQuota(func(c cgroup.CPUStats) []point { return one(whole(c.Burst)) })},
}

var memory = []metric{
	{"container_memory_usage_bytes", "Memory in use, with caches.", gauge, nil,
		ofMemory(func(m cgroup.MemoryStats) []point { return one(m.Usage) })},
	{"container_memory_working_set_bytes", "Memory in use less inactive file cache; what the kubelet evicts by.", gauge, nil,
		ofMemory(func(m cgroup.MemoryStats) []point { return one(m.WorkingSet) })},
	{"container_memory_rss", "Anonymous memory.", gauge, nil,
		ofMemory(func(m cgroup.MemoryStats) []point { return one(m.RSS) })},
	{"container_memory_cache", "File cache.", gauge, nil,
		ofMemory(func(m cgroup.MemoryStats) []point { return one(m.Cache) })},
	{"container_memory_mapped_file", "Mapped files.", gauge, nil,
		ofMemory(func(m cgroup.MemoryStats) []point { return one(m.MappedFile) })},
	{"container_memory_total_active_file_bytes", "File cache that was used lately.", gauge, nil,
		ofMemory(func(m cgroup.MemoryStats) []point { return one(m.ActiveFile) })},
	{"container_memory_total_inactive_file_bytes", "File cache that was not.", gauge, nil,
		ofMemory(func(m cgroup.MemoryStats) []point { return one(m.InactiveFile) })},
	{"container_memory_kernel_usage", "Memory that the kernel uses for the container.", gauge, nil,
		ofCgroup(func(d *cgroup.Details) []point { return maybe(d.MemoryKernel) })},
	{"container_memory_max_usage_bytes", "The most memory that was ever in use.", gauge, nil,
		ofCgroup(func(d *cgroup.Details) []point { return maybe(d.MemoryMax) })},
	{"container_memory_failcnt", "How often the memory limit was met.", counter, nil,
		ofCgroup(func(d *cgroup.Details) []point { return maybe(d.MemoryFailures) })},
	{"container_memory_failures_total", "Page faults: pgfault (all) and pgmajfault (that had to read), of the cgroup alone and with those below it. cgroup v2 does not tell the two apart.",
		counter, []string{"failure_type", "scope"}, ofMemory(faults)},
	{"container_memory_swap", "Swap in use.", gauge, nil,
		ofCgroup(func(d *cgroup.Details) []point {
			if !d.Has.Swap {
				return nil
			}
			return one(d.Swap.Usage)
		})},
	{"container_oom_events_total", "Processes that were killed for want of memory (containers only).", counter, nil,
		ofCgroup(func(d *cgroup.Details) []point { return maybe(d.OOMKills) })},
}

func faults(m cgroup.MemoryStats) []point {
	own, ownMajor := m.OwnPageFaults, m.OwnMajorPageFaults
	if own == 0 { // v2
		own, ownMajor = m.PageFaults, m.MajorPageFaults
	}
	return []point{
		{value: own, labels: []string{"pgfault", "container"}},
		{value: ownMajor, labels: []string{"pgmajfault", "container"}},
		{value: m.PageFaults, labels: []string{"pgfault", "hierarchy"}},
		{value: m.MajorPageFaults, labels: []string{"pgmajfault", "hierarchy"}},
	}
}

var huge = []metric{
	{"container_hugetlb_usage_bytes", "Huge pages in use.", gauge, []string{"pagesize"},
		ofHuge(func(h cgroup.HugetlbStats) *uint64 { return &h.Usage })},
	{"container_hugetlb_max_usage_bytes", "The most huge pages that were ever in use; cgroup v1 only.", gauge, []string{"pagesize"},
		ofHuge(func(h cgroup.HugetlbStats) *uint64 { return h.Max })},
	{"container_hugetlb_failcnt", "How often the limit of huge pages was met.", counter, []string{"pagesize"},
		ofHuge(func(h cgroup.HugetlbStats) *uint64 { return h.Failures })},
}

var disk = []metric{
	{"container_fs_usage_bytes", "Size of the writable layer. A large layer is measured now and then: the metric carries the time.", gauge, []string{"device"},
		func(s *Sample) []point {
			if s.Layer == nil {
				return nil
			}
			return []point{{value: s.Layer.Used, labels: []string{s.Layer.Device}, at: s.Layer.CachedAt}}
		}},
	{"container_fs_limit_bytes", "Size of the file system that the writable layer lies on.", gauge, []string{"device"},
		ofLayer(func(l *Layer) uint64 { return l.Capacity })},
	{"container_fs_inodes_total", "Inodes of that file system.", gauge, []string{"device"},
		ofLayer(func(l *Layer) uint64 { return l.Inodes })},
	{"container_fs_inodes_free", "Free inodes of that file system.", gauge, []string{"device"},
		ofLayer(func(l *Layer) uint64 { return l.InodesFree })},
	{"container_fs_reads_total", "Reads from a block device.", counter, []string{"device"},
		ofDevices(func(d cgroup.IOStats) uint64 { return d.Reads })},
	{"container_fs_reads_bytes_total", "Bytes read from a block device.", counter, []string{"device"},
		ofDevices(func(d cgroup.IOStats) uint64 { return d.ReadBytes })},
	{"container_fs_writes_total", "Writes to a block device.", counter, []string{"device"},
		ofDevices(func(d cgroup.IOStats) uint64 { return d.Writes })},
	{"container_fs_writes_bytes_total", "Bytes written to a block device.", counter, []string{"device"},
		ofDevices(func(d cgroup.IOStats) uint64 { return d.WriteBytes })},
	{"container_blkio_device_usage_total", "Bytes moved from (Read) and to (Write) a block device.", counter, []string{"device", "major", "minor", "operation"},
		func(s *Sample) (list []point) {
			if s.Cgroup == nil {
				return nil
			}
			for _, d := range s.Cgroup.IO {
				labels := []string{s.Device(d.Major, d.Minor), strconv.FormatUint(d.Major, 10), strconv.FormatUint(d.Minor, 10)}
				list = append(list,
					point{value: d.ReadBytes, labels: append(slices.Clone(labels), "Read")},
					point{value: d.WriteBytes, labels: append(slices.Clone(labels), "Write")})
			}
			return list
		}},
}

var network = []metric{
	{"container_network_receive_bytes_total", "Bytes received (network metrics are the pod's).", counter, []string{"interface"},
		ofNetwork(func(i namespace.Interface) uint64 { return i.Rx.Bytes })},
	{"container_network_receive_packets_total", "Packets received.", counter, []string{"interface"},
		ofNetwork(func(i namespace.Interface) uint64 { return i.Rx.Packets })},
	{"container_network_receive_packets_dropped_total", "Packets dropped when received.", counter, []string{"interface"},
		ofNetwork(func(i namespace.Interface) uint64 { return i.Rx.Dropped })},
	{"container_network_receive_errors_total", "Errors when receiving.", counter, []string{"interface"},
		ofNetwork(func(i namespace.Interface) uint64 { return i.Rx.Errors })},
	{"container_network_transmit_bytes_total", "Bytes sent.", counter, []string{"interface"},
		ofNetwork(func(i namespace.Interface) uint64 { return i.Tx.Bytes })},
	{"container_network_transmit_packets_total", "Packets sent.", counter, []string{"interface"},
		ofNetwork(func(i namespace.Interface) uint64 { return i.Tx.Packets })},
	{"container_network_transmit_packets_dropped_total", "Packets dropped when sent.", counter, []string{"interface"},
		ofNetwork(func(i namespace.Interface) uint64 { return i.Tx.Dropped })},
	{"container_network_transmit_errors_total", "Errors when sending.", counter, []string{"interface"},
		ofNetwork(func(i namespace.Interface) uint64 { return i.Tx.Errors })},
}

var processes = []metric{
	{"container_processes", "Processes.", gauge, nil,
		ofTasks(func(t *Tasks) []point { return one(t.Processes) })},
	{"container_threads", "Threads of all processes.", gauge, nil,
		ofPids(func(p cgroup.PidsStats) uint64 { return p.Current })},
	{"container_threads_max", "The most threads that are allowed, 0 for no limit.", gauge, nil,
		ofPids(func(p cgroup.PidsStats) uint64 { return limit(p.Limit) })},
	{"container_file_descriptors", "Open file descriptors; none above 10,000, which are too many to count.", gauge, nil,
		ofTasks(func(t *Tasks) []point { return maybe(t.Files) })},
	{"container_sockets", "Open sockets; counted with the descriptors.", gauge, nil,
		ofTasks(func(t *Tasks) []point { return maybe(t.Sockets) })},
	{"container_ulimits_soft", "Soft limit of open descriptors (max_open_files) of the first process; none if unlimited.", gauge, []string{"ulimit"},
		ofTasks(func(t *Tasks) []point {
			if t.FilesLimit == nil {
				return nil
			}
			return []point{{value: *t.FilesLimit, labels: []string{"max_open_files"}}}
		})},
}

var pressure = []metric{
	{"container_pressure_cpu_waiting_seconds_total", "Time in which some tasks waited for a CPU (cgroup v2, as all of pressure).", counter, nil,
		ofPressure(func(p cgroup.PSIStats) *cgroup.Pressure { return p.CPU }, some)},
	{"container_pressure_cpu_stalled_seconds_total", "Time in which all tasks waited for a CPU.", counter, nil,
		ofPressure(func(p cgroup.PSIStats) *cgroup.Pressure { return p.CPU }, full)},
	{"container_pressure_memory_waiting_seconds_total", "Time in which some tasks waited for memory.", counter, nil,
		ofPressure(func(p cgroup.PSIStats) *cgroup.Pressure { return p.Memory }, some)},
	{"container_pressure_memory_stalled_seconds_total", "Time in which all tasks waited for memory.", counter, nil,
		ofPressure(func(p cgroup.PSIStats) *cgroup.Pressure { return p.Memory }, full)},
	{"container_pressure_io_waiting_seconds_total", "Time in which some tasks waited for a disk.", counter, nil,
		ofPressure(func(p cgroup.PSIStats) *cgroup.Pressure { return p.IO }, some)},
	{"container_pressure_io_stalled_seconds_total", "Time in which all tasks waited for a disk.", counter, nil,
		ofPressure(func(p cgroup.PSIStats) *cgroup.Pressure { return p.IO }, full)},
}

var limits = []metric{
	{"container_spec_cpu_period", "Period of the CPU quota, in microseconds.", gauge, nil,
		ofLimits(func(d *cgroup.Details) []point { return one(d.Limits.CPUPeriod) })},
	{"container_spec_cpu_quota", "CPU quota, in microseconds per period; none without a quota.", gauge, nil,
		ofLimits(func(d *cgroup.Details) []point {
			if d.Limits.CPUQuota <= 0 {
				return nil
			}
			return one(uint64(d.Limits.CPUQuota))
		})},
	{"container_spec_cpu_shares", "CPU shares (on cgroup v2 what the weight stands for).", gauge, nil,
		ofLimits(func(d *cgroup.Details) []point { return one(d.Limits.CPUShares) })},
	{"container_spec_memory_limit_bytes", "Memory limit, 0 for none.", gauge, nil,
		ofMemory(func(m cgroup.MemoryStats) []point { return one(limit(m.Limit)) })},
	{"container_spec_memory_reservation_limit_bytes", "Memory that reclaim spares, 0 for none.", gauge, nil,
		ofCgroup(func(d *cgroup.Details) []point {
			if d.MemoryProtected == nil {
				return nil
			}
			return one(limit(*d.MemoryProtected))
		})},
	{"container_spec_memory_swap_limit_bytes", "Limit of swap alone, 0 for none.", gauge, nil,
		ofCgroup(func(d *cgroup.Details) []point {
			if !d.Has.Swap {
				return nil
			}
			return one(limit(d.Swap.Limit))
		})},
}
