package kubelet

import (
	"crypto/rand"
	"fmt"
	"strings"
	"testing"

	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"
)

// userNamespace is a pod whose root is nobody on the node, with a volume that
// both of its containers write to.
func userNamespace(t *testing.T, k *Kubelet) {
	writer := shell("writer", "cat /proc/self/uid_map; echo shared >/data/file; stat -c 'owner %u' /data/file /bin/busybox"+forever)
	reader := shell("reader", "until [ -e /data/file ]; do sleep 0.1; done; stat -c 'owner %u' /data/file; readlink /proc/self/ns/user"+forever)
	p := pod(t, writer, reader)
	own := false
	p.Spec.HostUsers = &own
	p.Spec.Volumes = []core.Volume{{Name: "data", VolumeSource: core.VolumeSource{EmptyDir: &core.EmptyDirVolumeSource{}}}}
	for i := range p.Spec.Containers {
		p.Spec.Containers[i].VolumeMounts = []core.VolumeMount{{Name: "data", MountPath: "/data"}}
	}
	apply(t, k, p)
	await(t, k, p, "ready", ready)
	awaitLog(t, k, p, "writer", "owner 0\nowner 0\n")
	awaitLog(t, k, p, "reader", "owner 0\nuser:[")
	log, err := k.Logs(p.Name, "writer")
	if err != nil {
		t.Fatal(err)
	}
	var inside, outside, size uint32
	if _, err := fmt.Sscan(log, &inside, &outside, &size); err != nil || inside != 0 || outside == 0 || size != 65536 {
		t.Errorf("id map %q, %v", log, err)
	}
	disturb(t, k, p)
	calm(t, k, func() error {
		out, _, err := k.Exec(false, p.Name, "reader", "", "/bin/sh", "-c", "id -u; cat /data/file; cat /proc/self/uid_map")
		if want := fmt.Sprintf("0\nshared\n%10d %10d %10d\n", 0, outside, size); out != want {
			t.Errorf("exec printed %q, want %q", out, want)
		}
		return err
	})
}

// imageVolume is a pod that reads another image's files, all of them and a
// folder of them.
func imageVolume(t *testing.T, k *Kubelet) {
	p := pod(t, shell("c", "cat /all/dir/file /sub/file; echo x 2>/dev/null >/all/new || echo refused"+forever))
	p.Spec.Volumes = []core.Volume{{Name: "data", VolumeSource: core.VolumeSource{Image: &core.ImageVolumeSource{
		Reference: "registry.test/data:1", PullPolicy: core.PullIfNotPresent,
	}}}}
	p.Spec.Containers[0].VolumeMounts = []core.VolumeMount{{Name: "data", MountPath: "/all"}, {Name: "data", MountPath: "/sub", SubPath: "dir"}}
	apply(t, k, p)
	await(t, k, p, "ready", ready)
	disturb(t, k, p)
	awaitLog(t, k, p, "c", "from the image\nfrom the image\nrefused\n")
}

// resize is a container whose limits grow and shrink while it runs. A pod keeps
// its identity over a change of its manifest by a uid of its own in it.
func resize(t *testing.T, k *Kubelet) {
	p := pod(t, shell("c", "echo up"+forever))
	p.UID = types.UID(rand.Text())
	p.Spec.Containers[0].Resources = quantities("100m", "32Mi")
	apply(t, k, p)
	before := identities(await(t, k, p, "ready", ready))
	for i, size := range []struct{ cpu, memory string }{{"200m", "48Mi"}, {"150m", "40Mi"}} {
		want := quantities(size.cpu, size.memory)
		p.Spec.Containers[0].Resources = want
		if err := k.Apply(p); err != nil {
			t.Fatal(err)
		}
		s := await(t, k, p, "resized to "+size.cpu+" and "+size.memory, func(s *core.PodStatus) bool {
			r := s.ContainerStatuses[0].Resources
			return r != nil && r.Limits.Cpu().Equal(*want.Limits.Cpu()) && r.Limits.Memory().Equal(*want.Limits.Memory())
		})
		if after := identities(s); after["c"] != before["c"] {
			t.Errorf("resizing made container %s of %s", after["c"], before["c"])
		}
		if i == 0 {
			disturb(t, k, p)
		}
		if got, want := memoryLimit(t, k, p), want.Limits.Memory().Value(); got != want {
			t.Errorf("the kernel's limit is %d, want %d", got, want)
		}
	}
}

// memoryLimit is what a container itself reads of its cgroup, in v1 and v2.
func memoryLimit(t *testing.T, k *Kubelet, p *core.Pod) (limit int64) {
	t.Helper()
	calm(t, k, func() error {
		out, _, err := k.Exec(false, p.Name, "c", "", "/bin/sh", "-c",
			"cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null; true")
		if _, scan := fmt.Sscan(strings.TrimSpace(out), &limit); scan != nil {
			t.Errorf("limit %q: %v", out, scan)
		}
		return err
	})
	return limit
}

// quantities are equal requests and limits: resizing must not change the
// pod's class of service.
func quantities(cpu, memory string) core.ResourceRequirements {
	list := core.ResourceList{core.ResourceCPU: resource.MustParse(cpu), core.ResourceMemory: resource.MustParse(memory)}
	return core.ResourceRequirements{Limits: list, Requests: list}
}
