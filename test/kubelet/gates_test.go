package kubelet

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	core "k8s.io/api/core/v1"
	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"noded.dev/noded/test/node"
)

// gates are the kubelet's features that ask more of a runtime and are off by default.
const gates = `featureGates: {EventedPLEG: true, CRIListStreaming: true, PodAndContainerStatsFromCRI: true}
`

// TestGates runs scenarios on a kubelet that follows events, lists by streams
// and takes its statistics from the runtime.
func TestGates(t *testing.T) {
	k := start(t, gates)
	t.Run("pods", func(t *testing.T) { // which ends when all in it have
		scenarios(t, k, map[string]func(*testing.T, *Kubelet){
			"web": web, "crash": crash, "grace": grace, "event": event, "statistics": statistics,
		})
	})
	t.Run("calls", func(t *testing.T) { calls(t, k) })
}

// event is a container whose end the kubelet learns of at once: with events it
// lists containers only every five minutes.
func event(t *testing.T, k *Kubelet) {
	p := pod(t, shell("c", "trap 'exit 4' TERM; while :; do sleep 1 & wait; done"))
	p.Spec.RestartPolicy = core.RestartPolicyNever
	apply(t, k, p)
	await(t, k, p, "ready", ready)
	k.Calm(func() {
		k.Exec(false, p.Name, "c", "", "/bin/kill", "1")
		began := time.Now()
		s := await(t, k, p, "over", func(s *core.PodStatus) bool { return s.ContainerStatuses[0].State.Terminated != nil })
		if took := time.Since(began); took > 20*time.Second {
			t.Errorf("the kubelet learned of the end after %v", took)
		}
		if code := s.ContainerStatuses[0].State.Terminated.ExitCode; code != 4 {
			t.Errorf("exit code %d", code)
		}
	})
}

// statistics are the kubelet's summary and its metrics, both of figures from
// the runtime.
func statistics(t *testing.T, k *Kubelet) {
	p := pod(t, shell("c", "dd if=/dev/zero of=/big bs=1M count=3 2>/dev/null; while :; do :; done"))
	apply(t, k, p)
	await(t, k, p, "ready", ready)
	var summary stats.PodStats
	node.Eventually(t, "the summary shows the pod's processor time", time.Minute, func() bool {
		data, err := k.get("/stats/summary")
		var all stats.Summary
		if err != nil || json.Unmarshal(data, &all) != nil {
			return false
		}
		for _, summary = range all.Pods {
			if strings.HasPrefix(summary.PodRef.Name, p.Name) && summary.CPU != nil && summary.CPU.UsageNanoCores != nil && *summary.CPU.UsageNanoCores > 0 {
				return len(summary.Containers) == 1 && summary.Containers[0].CPU.UsageNanoCores != nil
			}
		}
		return false
	})
	c := summary.Containers[0]
	switch {
	case c.Memory == nil || c.Memory.WorkingSetBytes == nil || *c.Memory.WorkingSetBytes == 0:
		t.Errorf("memory of the container: %+v", c.Memory)
	case c.Rootfs == nil || c.Rootfs.UsedBytes == nil || *c.Rootfs.UsedBytes < 3<<20:
		t.Errorf("writable layer: %+v", c.Rootfs)
	case summary.Network == nil || summary.Network.RxBytes == nil:
		t.Errorf("network: %+v", summary.Network)
	case summary.ProcessStats == nil || summary.ProcessStats.ProcessCount == nil || *summary.ProcessStats.ProcessCount == 0:
		t.Errorf("processes: %+v", summary.ProcessStats)
	}
	for _, metric := range []string{"container_cpu_usage_seconds_total", "container_memory_working_set_bytes", "container_network_receive_bytes_total"} {
		node.Eventually(t, "the kubelet's metrics have "+metric, 30*time.Second, func() bool {
			data, err := k.get("/metrics/cadvisor")
			return err == nil && hasMetric(string(data), metric, p.Name)
		})
	}
}

// hasMetric says whether a metric with a label of the pod's name is there and not 0.
func hasMetric(text, metric, pod string) bool {
	for _, line := range strings.Split(text, "\n") {
		if strings.HasPrefix(line, metric+"{") && strings.Contains(line, fmt.Sprintf("pod=\"%s", pod)) && !strings.Contains(line, "} 0 ") {
			return true
		}
	}
	return false
}

// calls asserts by the daemon's log that the kubelet made the calls that its
// features are about, and not those they replace.
func calls(t *testing.T, k *Kubelet) {
	data, err := os.ReadFile(k.Node.LogFile())
	if err != nil {
		t.Fatal(err)
	}
	for _, call := range []string{"StreamPodSandboxes", "StreamContainers", "StreamPodSandboxMetrics", "ListMetricDescriptors"} {
		if !strings.Contains(string(data), call) {
			t.Errorf("the kubelet has never called %s", call)
		}
	}
}
