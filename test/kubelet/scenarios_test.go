package kubelet

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"noded.dev/noded/test/node"
)

// TestPods runs every scenario at the same time on one kubelet, and in the
// middle of each the daemon is killed with SIGKILL; so each scenario also sees
// the others' kills at moments of their own.
func TestPods(t *testing.T) {
	scenarios(t, start(t, ""), map[string]func(*testing.T, *Kubelet){
		"web": web, "init": initAndShared, "crash": crash, "oom": oom, "hostnet": hostNetwork, "hostport": hostPort,
		"files": files, "api": api, "rotation": rotation, "grace": grace,
		"userns": userNamespace, "imagevolume": imageVolume, "resize": resize,
	})
}

// scenarios runs all at the same time.
func scenarios(t *testing.T, k *Kubelet, all map[string]func(*testing.T, *Kubelet)) {
	for name, scenario := range all {
		t.Run(name, func(t *testing.T) { t.Parallel(); scenario(t, k) })
	}
}

// web is a web server with an HTTP readiness and an exec liveness probe.
func web(t *testing.T, k *Kubelet) {
	c := shell("web", "mkdir /www; echo page >/www/index.html; touch /alive; httpd -f -p 80 -h /www")
	c.ReadinessProbe = &core.Probe{ProbeHandler: core.ProbeHandler{HTTPGet: &core.HTTPGetAction{Path: "/index.html", Port: intstr.FromInt32(80)}}, PeriodSeconds: 1}
	c.LivenessProbe = &core.Probe{ProbeHandler: core.ProbeHandler{Exec: &core.ExecAction{Command: []string{"cat", "/alive"}}}, PeriodSeconds: 1, FailureThreshold: 3}
	p := pod(t, c)
	apply(t, k, p)
	s := await(t, k, p, "ready", ready)
	if got := fetch(t, "http://"+s.PodIP+"/"); got != "page\n" {
		t.Errorf("page %q", got)
	}
	disturb(t, k, p)
	await(t, k, p, "ready again", ready)

	calm(t, k, func() error { _, _, err := k.Exec(false, p.Name, "web", "", "rm", "/www/index.html"); return err })
	await(t, k, p, "unready without its page", func(s *core.PodStatus) bool { return !s.ContainerStatuses[0].Ready })
	calm(t, k, func() error { _, _, err := k.Exec(false, p.Name, "web", "", "rm", "/alive"); return err })
	await(t, k, p, "restarted by its liveness probe and ready", func(s *core.PodStatus) bool {
		return s.ContainerStatuses[0].RestartCount > 0 && ready(s)
	})
}

// initAndShared is two containers that meet in an emptyDir that an init container filled.
func initAndShared(t *testing.T, k *Kubelet) {
	reader := shell("reader", "until [ -e /shared/answer ]; do sleep 0.1; done; cat /shared/question /shared/answer"+forever)
	writer := shell("writer", "test -e /shared/question && echo 42 >/shared/answer"+forever)
	first := shell("first", "echo what >/shared/question")
	p := pod(t, reader, writer)
	first.Image = node.Image
	p.Spec.InitContainers = []core.Container{first}
	p.Spec.Volumes = []core.Volume{{Name: "shared", VolumeSource: core.VolumeSource{EmptyDir: &core.EmptyDirVolumeSource{}}}}
	mount := []core.VolumeMount{{Name: "shared", MountPath: "/shared"}}
	for _, list := range [][]core.Container{p.Spec.Containers, p.Spec.InitContainers} {
		for i := range list {
			list[i].VolumeMounts = mount
		}
	}
	apply(t, k, p)
	await(t, k, p, "ready", ready)
	disturb(t, k, p)
	awaitLog(t, k, p, "reader", "what\n42\n")
	s := await(t, k, p, "ready", ready)
	if init := s.InitContainerStatuses[0]; init.State.Terminated == nil || init.State.Terminated.Reason != "Completed" {
		t.Errorf("init container: %v", init)
	}
}

// crash is a container that fails, waits out its back-off and starts again.
func crash(t *testing.T, k *Kubelet) {
	p := pod(t, shell("crash", "echo attempt; exit 3"))
	apply(t, k, p)
	await(t, k, p, "failed with 3", func(s *core.PodStatus) bool {
		return len(s.ContainerStatuses) > 0 && s.ContainerStatuses[0].LastTerminationState.Terminated != nil &&
			s.ContainerStatuses[0].LastTerminationState.Terminated.ExitCode == 3 && s.ContainerStatuses[0].LastTerminationState.Terminated.Reason == "Error"
	})
	await(t, k, p, "in back-off", func(s *core.PodStatus) bool {
		w := s.ContainerStatuses[0].State.Waiting
		return w != nil && w.Reason == "CrashLoopBackOff"
	})
	if err := k.KillDaemon(); err != nil {
		t.Fatal(err)
	}
	await(t, k, p, "restarted three times", func(s *core.PodStatus) bool { return s.ContainerStatuses[0].RestartCount >= 3 })
}

// oom is a container over its memory limit.
func oom(t *testing.T, k *Kubelet) {
	c := shell("hog", "sleep 5; exec tail /dev/zero")
	c.Resources = limits("24Mi")
	p := pod(t, c)
	p.Spec.RestartPolicy = core.RestartPolicyNever
	apply(t, k, p)
	await(t, k, p, "running", func(s *core.PodStatus) bool {
		return len(s.ContainerStatuses) > 0 && (s.ContainerStatuses[0].State.Running != nil || s.ContainerStatuses[0].State.Terminated != nil)
	})
	if err := k.KillDaemon(); err != nil {
		t.Fatal(err)
	}
	s := await(t, k, p, "over", func(s *core.PodStatus) bool { return s.ContainerStatuses[0].State.Terminated != nil })
	end := s.ContainerStatuses[0].State.Terminated
	if os.Getenv(node.Peer) != "" && end.Reason == "Error" {
		t.Skip("the peer forgets the reason when it was killed meanwhile")
	}
	if end.Reason != "OOMKilled" || end.ExitCode != 137 {
		t.Errorf("ended with %d, %s", end.ExitCode, end.Reason)
	}
}

// hostNetwork is a pod in the node's network.
func hostNetwork(t *testing.T, k *Kubelet) {
	port, err := node.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	p := pod(t, shell("web", fmt.Sprintf("mkdir /www; readlink /proc/self/ns/net >/www/index.html; httpd -f -p 127.0.0.1:%d -h /www", port)))
	p.Spec.HostNetwork = true
	apply(t, k, p)
	s := await(t, k, p, "ready", ready)
	if s.PodIP != s.HostIP {
		t.Errorf("pod %s, node %s", s.PodIP, s.HostIP)
	}
	disturb(t, k, p)
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	if got := fetch(t, fmt.Sprintf("http://127.0.0.1:%d/", port)); got != own+"\n" {
		t.Errorf("namespace %q, want the host's %q", got, own)
	}
}

// hostPort is a pod whose port is published on the node and reached from another machine.
func hostPort(t *testing.T, k *Kubelet) {
	port, err := node.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	c := shell("web", "mkdir /www; echo published >/www/index.html; httpd -f -p 8080 -h /www")
	c.Ports = []core.ContainerPort{{ContainerPort: 8080, HostPort: int32(port)}}
	c.ReadinessProbe = &core.Probe{ProbeHandler: core.ProbeHandler{TCPSocket: &core.TCPSocketAction{Port: intstr.FromInt32(8080)}}, PeriodSeconds: 1}
	p := pod(t, c)
	apply(t, k, p)
	await(t, k, p, "ready", ready)
	outside := node.NewOutside(t)
	for _, when := range []string{"before", "after"} {
		if got, err := outside.Get(port); err != nil || got != "published\n" {
			t.Errorf("%s the daemon's death: %q, %v", when, got, err)
		}
		if when == "before" {
			disturb(t, k, p)
		}
	}
}

// files is a pod with files projected from its own metadata and a read-only
// mount. A kubelet without an API server refuses volumes of kind "projected"
// whatever their sources; "downwardAPI" makes the same files by the same code.
func files(t *testing.T, k *Kubelet) {
	host := filepath.Join(t.TempDir(), "host")
	if err := os.WriteFile(host, []byte("from the host\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	p := pod(t, shell("c", "cat /meta/labels /meta/name /host; echo x >/host || echo refused"+forever))
	field := func(file, path string) core.DownwardAPIVolumeFile {
		return core.DownwardAPIVolumeFile{Path: file, FieldRef: &core.ObjectFieldSelector{FieldPath: path}}
	}
	p.Spec.Volumes = []core.Volume{
		{Name: "meta", VolumeSource: core.VolumeSource{DownwardAPI: &core.DownwardAPIVolumeSource{Items: []core.DownwardAPIVolumeFile{field("labels", "metadata.labels"), field("name", "metadata.name")}}}},
		{Name: "host", VolumeSource: core.VolumeSource{HostPath: &core.HostPathVolumeSource{Path: host}}},
	}
	p.Spec.Containers[0].VolumeMounts = []core.VolumeMount{{Name: "meta", MountPath: "/meta"}, {Name: "host", MountPath: "/host", ReadOnly: true}}
	apply(t, k, p)
	await(t, k, p, "ready", ready)
	disturb(t, k, p)
	awaitLog(t, k, p, "c", fmt.Sprintf("test=%q", p.Name), p.Name+"-"+Name+"from the host\n", "Read-only file system", "refused")
}

// api is logs, exec and port-forward through the kubelet's own server.
func api(t *testing.T, k *Kubelet) {
	p := pod(t, shell("c", "mkdir /www; echo forwarded >/www/index.html; httpd -p 80 -h /www; echo out; echo err >&2"+forever))
	apply(t, k, p)
	await(t, k, p, "ready", ready)
	use := func(when string) {
		awaitLog(t, k, p, "c", "out\n", "err\n")
		for _, websocket := range []bool{false, true} {
			calm(t, k, func() error {
				out, errs, err := k.Exec(websocket, p.Name, "c", "typed\n", "/bin/sh", "-c", "cat; echo problem >&2; exit 7")
				if out != "typed\n" || errs != "problem\n" || err == nil || !strings.Contains(err.Error(), "exit code 7") {
					t.Errorf("%s the daemon's death, websocket %v: out %q, err %q, %v", when, websocket, out, errs, err)
				}
				return nil
			})
		}
		calm(t, k, func() error {
			return k.Forward(p.Name, 80, func(local int) error {
				if got := fetch(t, fmt.Sprintf("http://127.0.0.1:%d/", local)); got != "forwarded\n" {
					t.Errorf("%s the daemon's death: page %q", when, got)
				}
				return nil
			})
		})
	}
	use("before")
	disturb(t, k, p)
	use("after")
}

// rotation is a talkative container whose log the kubelet rotates; no line may
// be missing between the files that are left.
func rotation(t *testing.T, k *Kubelet) {
	p := pod(t, shell("c", "i=0; while [ $i -lt 6000 ]; do i=$((i+1)); echo line $i; [ $((i%60)) = 0 ] && sleep 0.2; done"+forever))
	apply(t, k, p)
	await(t, k, p, "ready", ready)
	disturb(t, k, p)
	log := ""
	node.Eventually(t, "kubelet rotates the log twice", time.Minute, func() bool {
		log = currentLog(t, k, p.Name, "c")
		old, _ := filepath.Glob(log + ".*")
		return log != "" && len(old) >= 2
	})
	awaitLog(t, k, p, "c", "line 6000\n")
	numbers := rotated(t, log)
	for i := 1; i < len(numbers); i++ {
		if numbers[i] != numbers[i-1]+1 {
			t.Fatalf("line %d follows line %d", numbers[i], numbers[i-1])
		}
	}
	if len(numbers) < 100 || numbers[len(numbers)-1] != 6000 {
		t.Errorf("%d lines, the last is %d", len(numbers), numbers[len(numbers)-1])
	}
}

// grace is a pod that is taken away: its container notices and ends with a record of it.
func grace(t *testing.T, k *Kubelet) {
	record := filepath.Join(t.TempDir(), "record")
	if err := os.WriteFile(record, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	p := pod(t, shell("c", "trap 'sleep 2; echo ended >/record; exit 0' TERM; echo waiting; while :; do sleep 0.1; done"))
	patience := int64(20)
	p.Spec.TerminationGracePeriodSeconds = &patience
	p.Spec.Volumes = []core.Volume{{Name: "record", VolumeSource: core.VolumeSource{HostPath: &core.HostPathVolumeSource{Path: record}}}}
	p.Spec.Containers[0].VolumeMounts = []core.VolumeMount{{Name: "record", MountPath: "/record"}}
	apply(t, k, p)
	awaitLog(t, k, p, "c", "waiting\n")
	disturb(t, k, p)
	begin := time.Now()
	remove(t, k, p)
	if took := time.Since(begin); took > 18*time.Second {
		t.Errorf("deletion took %v: the container was killed by its grace period's end", took)
	}
	if data, err := os.ReadFile(record); err != nil || string(data) != "ended\n" {
		t.Errorf("record %q, %v", data, err)
	}
}

// calm runs what needs an unbroken connection.
func calm(t *testing.T, k *Kubelet, f func() error) {
	t.Helper()
	k.Calm(func() {
		if err := f(); err != nil {
			t.Error(err)
		}
	})
}

// awaitLog waits until a container's log, by the kubelet's API, contains all of want.
func awaitLog(t *testing.T, k *Kubelet, p *core.Pod, container string, want ...string) {
	t.Helper()
	var log string
	var err error
	deadline := time.Now().Add(time.Minute)
	for {
		log, err = k.Logs(p.Name, container)
		missing := false
		for _, text := range want {
			missing = missing || !strings.Contains(log, text)
		}
		if !missing {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("log of %s lacks some of %q: %q, %v", container, want, log[max(0, len(log)-2000):], err)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

func fetch(t *testing.T, url string) string {
	t.Helper()
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get(url)
	if err != nil {
		t.Error(err)
		return ""
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Error(err)
	}
	return string(data)
}
