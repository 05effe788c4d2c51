package e2e

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/test/node"
)

// scrape is what the daemon gives of one pod, by name and own labels, for the
// pod and for each container. It checks every metric against its descriptor.
func scrape(t *testing.T, n *node.Node, p *node.Pod) (pod map[string]uint64, containers map[string]map[string]uint64) {
	t.Helper()
	ctx, cancel := node.Context()
	defer cancel()
	described, err := n.Runtime.ListMetricDescriptors(ctx, &cri.ListMetricDescriptorsRequest{})
	must(t, err)
	keys := map[string][]string{}
	for _, d := range described.Descriptors {
		keys[d.Name] = d.LabelKeys
	}
	stream, err := n.Runtime.StreamPodSandboxMetrics(ctx, &cri.StreamPodSandboxMetricsRequest{})
	all := readList(t, stream, err, (*cri.StreamPodSandboxMetricsResponse).GetPodSandboxMetrics)
	list, err := n.Runtime.ListPodSandboxMetrics(ctx, &cri.ListPodSandboxMetricsRequest{})
	must(t, err)
	if len(list.PodMetrics) != len(all) {
		t.Errorf("the stream has %d pods, the list %d", len(all), len(list.PodMetrics))
	}
	seen := map[string]bool{}
	figures := func(metrics []*cri.Metric, name, container string) map[string]uint64 {
		values := map[string]uint64{}
		for _, m := range metrics {
			labels := map[string]string{}
			if len(keys[m.Name]) != len(m.LabelValues) {
				t.Fatalf("%s has the labels %q, its descriptor %q", m.Name, m.LabelValues, keys[m.Name])
			}
			var own []string
			for i, key := range keys[m.Name] {
				labels[key] = m.LabelValues[i]
				if i >= 6 {
					own = append(own, m.LabelValues[i])
				}
			}
			if labels["name"] != name || labels["container"] != container || labels["pod"] != p.Config.Metadata.Name || labels["namespace"] != "test" || !strings.HasPrefix(labels["id"], "/") {
				t.Errorf("%s has the labels %v", m.Name, labels)
			}
			whole := m.Name + strings.Join(m.LabelValues, "\x00")
			if seen[whole] {
				t.Errorf("twice: %v", m)
			}
			seen[whole] = true
			values[strings.TrimSpace(m.Name+" "+strings.Join(own, " "))] = m.Value.Value
		}
		return values
	}
	containers = map[string]map[string]uint64{}
	for _, item := range all {
		if item.PodSandboxId != p.ID {
			continue
		}
		pod = figures(item.Metrics, p.ID, "")
		for _, c := range item.ContainerMetrics {
			name := ""
			for _, m := range c.Metrics {
				name = m.LabelValues[3]
			}
			containers[c.ContainerId] = figures(c.Metrics, c.ContainerId, name)
		}
	}
	return pod, containers
}

// TestMetrics checks figures that a container makes, under cAdvisor's names.
func TestMetrics(t *testing.T) {
	skipOnPeer(t, "it is older than this")
	n := start(t)
	p := n.RunPod(t)
	c := p.Run(t, `head -c 3000000 /dev/urandom >/file; x=$(head -c 8000000 /dev/zero | tr '\0' x)
		sleep 1000 & end=$(($(date +%s) + 3)); while [ $(date +%s) -lt $end ]; do :; done; echo ready; sleep 1000; echo $x`,
		func(c *cri.ContainerConfig) {
			c.Linux.Resources.MemoryLimitInBytes, c.Linux.Resources.CpuQuota, c.Linux.Resources.CpuPeriod = 256<<20, 90000, 100000
		})
	node.Eventually(t, "it is ready", 60*time.Second, func() bool { return c.Log(t).Text() == "ready\n" })
	pod, containers := scrape(t, n, p)
	got := containers[c.ID]
	now := uint64(time.Now().Unix())
	for name, between := range map[string][2]uint64{
		"container_cpu_usage_seconds_total total":              {1, 60},
		"container_memory_usage_bytes":                         {7 << 20, 256 << 20},
		"container_memory_working_set_bytes":                   {7 << 20, 256 << 20},
		"container_memory_rss":                                 {7 << 20, 256 << 20},
		"container_memory_failcnt":                             {0, 1000000},
		"container_memory_failures_total pgfault container":    {1000, 1 << 40},
		"container_cpu_cfs_periods_total":                      {5, 10000},
		"container_spec_cpu_quota":                             {90000, 90000},
		"container_spec_cpu_period":                            {100000, 100000},
		"container_spec_memory_limit_bytes":                    {256 << 20, 256 << 20},
		"container_processes":                                  {3, 3},
		"container_threads":                                    {3, 3},
		"container_file_descriptors":                           {6, 50},
		"container_sockets":                                    {0, 10},
		"container_oom_events_total":                           {0, 0},
		"container_last_seen":                                  {now - 60, now + 1},
		"container_start_time_seconds":                         {now - 120, now},
		"container_memory_max_usage_bytes":                     {7 << 20, 256 << 20},
		"container_memory_cache":                               {1, 256 << 20},
		"container_spec_memory_reservation_limit_bytes":        {0, 0},
		"container_ulimits_soft max_open_files":                {1, 1 << 40},
		"container_memory_failures_total pgmajfault hierarchy": {0, 1 << 40},
	} {
		if v, ok := got[name]; !ok || v < between[0] || v > between[1] {
			t.Errorf("%s is %d (%v), want one between %d and %d", name, v, ok, between[0], between[1])
		}
	}
	if layer := prefixed(got, "container_fs_usage_bytes "); layer < 2900000 || layer > 4000000 {
		t.Errorf("a file of 3000000 bytes: %d", layer)
	}
	if prefixed(got, "container_fs_limit_bytes ") == 0 || prefixed(got, "container_fs_inodes_free ") == 0 {
		t.Errorf("the file system: %v", got)
	}
	for name := range got {
		if strings.HasPrefix(name, "container_network_") {
			t.Errorf("a container has %s", name)
		}
	}
	if pod["container_network_receive_bytes_total eth0"] == 0 || pod["container_memory_usage_bytes"] == 0 || pod["container_start_time_seconds"] == 0 {
		t.Errorf("the pod: %v", pod)
	}
}

// prefixed is the one value whose name begins so.
func prefixed(values map[string]uint64, prefix string) uint64 {
	for name, v := range values {
		if strings.HasPrefix(name, prefix) {
			return v
		}
	}
	return 0
}

// TestDescriptorsAreStatic asks twice, with and without a pod.
func TestDescriptorsAreStatic(t *testing.T) {
	skipOnPeer(t, "it is older than this")
	n := start(t)
	ctx, cancel := node.Context()
	defer cancel()
	before, err := n.Runtime.ListMetricDescriptors(ctx, &cri.ListMetricDescriptorsRequest{})
	must(t, err)
	n.RunPod(t).Run(t, "sleep 1000")
	after, err := n.Runtime.ListMetricDescriptors(ctx, &cri.ListMetricDescriptorsRequest{})
	must(t, err)
	if len(before.Descriptors) < 50 || !proto.Equal(before, after) {
		t.Errorf("%d descriptors, then %d", len(before.Descriptors), len(after.Descriptors))
	}
}
