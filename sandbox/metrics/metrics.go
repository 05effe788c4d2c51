// Package metrics is the table of the metrics that noded gives of pods and
// containers, under the names, labels and units that cAdvisor made known. The
// descriptors, the values and the page docs/metrics.md come from this one table.
package metrics

import (
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/internal/cgroup"
	"noded.dev/noded/internal/namespace"
)

// Labels are those of every metric. What a pod has none of (Container, Image)
// is empty. ID and Name together are unique on the node: no two metrics of a
// name may have the same labels.
type Labels struct {
	ID        string // the cgroup, "/kubepods/…"
	Name      string // the container's or pod's id
	Image     string // as the user named it
	Container string
	Pod       string
	Namespace string
}

// keys are the names of values, in their order.
var keys = []string{"id", "name", "image", "container", "pod", "namespace"}

func (l Labels) values() []string {
	return []string{l.ID, l.Name, l.Image, l.Container, l.Pod, l.Namespace}
}

// Sample is what was measured of a container or a pod. What is nil or zero was
// not, and gives no metric.
type Sample struct {
	Labels
	At      time.Time // of the sample
	Started time.Time
	Cgroup  *cgroup.Details
	Tasks   *Tasks
	Layer   *Layer
	Network []namespace.Interface
	// Device names a block device: "/dev/sda".
	Device func(major, minor uint64) string
}

// Tasks are counted by looking at the processes.
type Tasks struct {
	Processes  uint64
	Files      *uint64 // open descriptors; nil if there are too many to count
	Sockets    *uint64 // of these
	FilesLimit *uint64 // soft limit of the first process; nil if there is none
}

// Layer is a container's writable layer and the file system it lies on.
type Layer struct {
	Device      string
	Used        uint64    // bytes
	CachedAt    time.Time // of Used, where it was not measured for this sample
	Capacity    uint64    // bytes of the file system, which is all that limits the layer
	Inodes      uint64    // of the file system
	InodesFree  uint64
	HasCapacity bool
}

// point is one value of a metric with the values of its own labels.
type point struct {
	value  uint64
	labels []string
	at     time.Time // zero: measured for this sample
}

// metric is a row of the table.
type metric struct {
	name, help string
	kind       cri.MetricType
	labels     []string // its own, after those of every metric
	points     func(*Sample) []point
}

// Descriptors describe all metrics that there can be; they are the same as long
// as noded runs.
func Descriptors() []*cri.MetricDescriptor {
	list := make([]*cri.MetricDescriptor, 0, len(table))
	for _, m := range table {
		list = append(list, &cri.MetricDescriptor{Name: m.name, Help: m.help, LabelKeys: append(append([]string{}, keys...), m.labels...)})
	}
	return list
}

// Of makes the metrics of a sample.
func Of(s *Sample) []*cri.Metric {
	var list []*cri.Metric
	base := s.values()
	for _, m := range table {
		for _, p := range m.points(s) {
			labels := base
			if len(p.labels) > 0 {
				labels = append(append(make([]string, 0, len(base)+len(p.labels)), base...), p.labels...)
			}
			out := &cri.Metric{Name: m.name, MetricType: m.kind, LabelValues: labels, Value: &cri.UInt64Value{Value: p.value}}
			if !p.at.IsZero() {
				out.Timestamp = p.at.UnixNano() // the CRI: of what is not live
			}
			list = append(list, out)
		}
	}
	return list
}
