package kubelet

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/test/node"
)

// pod is a pod of containers that run the test image. Its name is its identity,
// so that it ends in what tells repeated tests apart.
func pod(t *testing.T, containers ...core.Container) *core.Pod {
	name := strings.NewReplacer("/", "-", "_", "-", "#", "-").Replace(strings.ToLower(t.Name()))
	name += fmt.Sprintf("-%05x", rand.Uint32N(1<<20))
	grace := int64(1)
	for i := range containers {
		containers[i].Image, containers[i].ImagePullPolicy = node.Image, core.PullIfNotPresent
	}
	return &core.Pod{
		TypeMeta:   meta.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: meta.ObjectMeta{Name: name, Namespace: "default", Labels: map[string]string{"test": name}},
		Spec:       core.PodSpec{Containers: containers, TerminationGracePeriodSeconds: &grace},
	}
}

// shell is a container that runs a script.
func shell(name, script string) core.Container {
	return core.Container{Name: name, Command: []string{"/bin/sh", "-c", script}}
}

// forever keeps a container running and lets it end on SIGTERM at once.
const forever = "; trap exit TERM; while :; do sleep 1 & wait; done"

// apply runs a pod that is taken away at the test's end, and waited for.
func apply(t *testing.T, k *Kubelet, p *core.Pod) {
	t.Helper()
	if err := k.Apply(p); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := os.Stat(k.manifest(p.Name)); err == nil {
			remove(t, k, p)
		}
	})
}

// remove takes a pod away and waits until the kubelet has stopped it. The
// kubelet's own list forgets a pod when it begins to stop it.
func remove(t *testing.T, k *Kubelet, p *core.Pod) {
	t.Helper()
	if err := k.Delete(p.Name); err != nil {
		t.Fatal(err)
	}
	node.Eventually(t, "pod is stopped", time.Minute, func() bool { return stopped(k, p.Name+"-"+Name) })
}

func stopped(k *Kubelet, name string) bool {
	ctx, cancel := node.Context()
	defer cancel()
	labels := map[string]string{"io.kubernetes.pod.name": name}
	containers, err := k.Node.Runtime.ListContainers(ctx, &cri.ListContainersRequest{Filter: &cri.ContainerFilter{LabelSelector: labels,
		State: &cri.ContainerStateValue{State: cri.ContainerState_CONTAINER_RUNNING}}})
	if err != nil || len(containers.Containers) > 0 {
		return false
	}
	pods, err := k.Node.Runtime.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{Filter: &cri.PodSandboxFilter{LabelSelector: labels,
		State: &cri.PodSandboxStateValue{State: cri.PodSandboxState_SANDBOX_READY}}})
	return err == nil && len(pods.Items) == 0
}

// await waits until the kubelet says of the pod what ok asks for.
func await(t *testing.T, k *Kubelet, p *core.Pod, what string, ok func(*core.PodStatus) bool) *core.PodStatus {
	t.Helper()
	var last *core.Pod
	deadline := time.Now().Add(90 * time.Second)
	for {
		s, err := k.Pod(p.Name)
		if err == nil && s != nil {
			last = s
			if ok(&s.Status) {
				return &s.Status
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("pod %s is not %s: %s", p.Name, what, describe(last))
		}
		time.Sleep(100 * time.Millisecond) // the kubelet's API has no watch
	}
}

func describe(p *core.Pod) string {
	if p == nil {
		return "the kubelet does not know it"
	}
	text := string(p.Status.Phase)
	for _, c := range append(p.Status.InitContainerStatuses, p.Status.ContainerStatuses...) {
		text += fmt.Sprintf("; %s: ready %v, %d restarts, state %v, last %v", c.Name, c.Ready, c.RestartCount, c.State.String(), c.LastTerminationState.String())
	}
	return text
}

// ready says that all containers run and their probes are content.
func ready(s *core.PodStatus) bool {
	for _, c := range s.ContainerStatuses {
		if !c.Ready || c.State.Running == nil {
			return false
		}
	}
	return len(s.ContainerStatuses) > 0
}

// disturb kills the daemon in the middle of a test, and demands that
// afterwards the kubelet finds the pod's containers as they were.
func disturb(t *testing.T, k *Kubelet, p *core.Pod) {
	t.Helper()
	before := identities(await(t, k, p, "there", func(s *core.PodStatus) bool { return len(s.ContainerStatuses) > 0 }))
	if err := k.KillDaemon(); err != nil {
		t.Fatalf("restart the daemon: %v", err)
	}
	time.Sleep(2500 * time.Millisecond) // two rounds of the kubelet's look at all containers, which has no event
	after := identities(await(t, k, p, "there", func(s *core.PodStatus) bool { return len(s.ContainerStatuses) > 0 }))
	for name, id := range before {
		if after[name] != id {
			t.Errorf("after the daemon's death container %s is %s, was %s", name, after[name], id)
		}
	}
}

// identities are of running containers: id, restarts and time of start.
func identities(s *core.PodStatus) map[string]string {
	ids := map[string]string{}
	for _, c := range s.ContainerStatuses {
		if c.State.Running != nil {
			ids[c.Name] = fmt.Sprintf("%s restart %d started %v", c.ContainerID, c.RestartCount, c.State.Running.StartedAt)
		}
	}
	return ids
}

func limits(memory string) core.ResourceRequirements {
	return core.ResourceRequirements{Limits: core.ResourceList{core.ResourceMemory: resource.MustParse(memory)}}
}
