package node

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Image is what containers of tests run unless they say otherwise.
const Image = "registry.test/busybox:1"

// Pod is a running pod of a test.
type Pod struct {
	Node   *Node
	ID     string
	Config *cri.PodSandboxConfig
}

// Container is a container of a test.
type Container struct {
	Pod    *Pod
	ID     string
	Config *cri.ContainerConfig
}

// PodConfig is a plain pod's, with a name that no other has.
func (n *Node) PodConfig(t testing.TB, edits ...func(*cri.PodSandboxConfig)) *cri.PodSandboxConfig {
	uid := fmt.Sprintf("%016x", rand.Uint64())
	name := strings.ToLower(strings.Map(func(r rune) rune {
		if r == '/' || r == '_' || r == '#' {
			return '-'
		}
		return r
	}, t.Name()))
	c := &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: name, Uid: uid, Namespace: "test"},
		Hostname:     "host-" + uid[:6],
		LogDirectory: filepath.Join(t.TempDir(), "logs"),
		Labels:       map[string]string{"test": name},
		Annotations:  map[string]string{"test/annotation": "a value"},
		Linux: &cri.LinuxPodSandboxConfig{
			CgroupParent: n.Cgroup,
			SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: &cri.NamespaceOption{
				Network: cri.NamespaceMode_POD, Pid: cri.NamespaceMode_CONTAINER, Ipc: cri.NamespaceMode_POD}},
		},
	}
	for _, edit := range edits {
		edit(c)
	}
	if err := os.MkdirAll(c.LogDirectory, 0o755); err != nil {
		t.Fatal(err)
	}
	return c
}

// RunPod runs a pod that is stopped and removed at the test's end.
func (n *Node) RunPod(t testing.TB, edits ...func(*cri.PodSandboxConfig)) *Pod {
	t.Helper()
	p, err := n.TryPod(t, n.PodConfig(t, edits...))
	if err != nil {
		t.Fatalf("run pod: %v", err)
	}
	return p
}

// TryPod is RunPod for pods that may be refused.
func (n *Node) TryPod(t testing.TB, config *cri.PodSandboxConfig) (*Pod, error) {
	ctx, cancel := Context()
	defer cancel()
	r, err := n.Runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: config})
	if err != nil {
		return nil, err
	}
	p := &Pod{Node: n, ID: r.PodSandboxId, Config: config}
	t.Cleanup(func() {
		if err := p.Remove(); err != nil {
			t.Errorf("remove pod: %v", err)
		}
	})
	return p, nil
}

// Stop stops the pod.
func (p *Pod) Stop() error {
	ctx, cancel := Context()
	defer cancel()
	_, err := p.Node.Runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: p.ID})
	return err
}

// Remove stops and removes the pod with its containers; again and again is fine.
func (p *Pod) Remove() error {
	if err := p.Stop(); err != nil && !p.Node.server.forgets(err) {
		return err
	}
	ctx, cancel := Context()
	defer cancel()
	_, err := p.Node.Runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: p.ID})
	return err
}

// Status is the pod's now.
func (p *Pod) Status(t testing.TB) *cri.PodSandboxStatus {
	t.Helper()
	ctx, cancel := Context()
	defer cancel()
	r, err := p.Node.Runtime.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: p.ID})
	if err != nil {
		t.Fatalf("pod status: %v", err)
	}
	return r.Status
}

// IP is the pod's first address.
func (p *Pod) IP(t testing.TB) string { t.Helper(); return p.Status(t).GetNetwork().GetIp() }

// ContainerConfig is a plain container's.
func ContainerConfig(name, script string) *cri.ContainerConfig {
	return &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: name},
		Image:    &cri.ImageSpec{Image: Image, UserSpecifiedImage: Image},
		Command:  []string{"/bin/sh", "-c", script},
		LogPath:  name + ".log",
		Labels:   map[string]string{"container": name},
		Linux: &cri.LinuxContainerConfig{
			Resources:       &cri.LinuxContainerResources{},
			SecurityContext: &cri.LinuxContainerSecurityContext{NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER}},
		},
	}
}

// TryCreate creates a container. The pod's namespace modes are the container's
// too, unless config says otherwise, as a kubelet has it.
func (p *Pod) TryCreate(config *cri.ContainerConfig) (*Container, error) {
	ctx, cancel := Context()
	defer cancel()
	r, err := p.Node.Runtime.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: p.ID, Config: config, SandboxConfig: p.Config})
	if err != nil {
		return nil, err
	}
	return &Container{Pod: p, ID: r.ContainerId, Config: config}, nil
}

// Create creates a container that runs a shell script.
func (p *Pod) Create(t testing.TB, script string, edits ...func(*cri.ContainerConfig)) *Container {
	t.Helper()
	config := ContainerConfig(fmt.Sprintf("c%06x", rand.Uint32N(1<<24)), script)
	config.Linux.SecurityContext.NamespaceOptions.Network = p.Config.GetLinux().GetSecurityContext().GetNamespaceOptions().GetNetwork()
	config.Linux.SecurityContext.NamespaceOptions.Pid = p.Config.GetLinux().GetSecurityContext().GetNamespaceOptions().GetPid()
	config.Linux.SecurityContext.NamespaceOptions.Ipc = p.Config.GetLinux().GetSecurityContext().GetNamespaceOptions().GetIpc()
	for _, edit := range edits {
		edit(config)
	}
	c, err := p.TryCreate(config)
	if err != nil {
		t.Fatalf("create container: %v", err)
	}
	return c
}

// Run creates and starts a container that runs a shell script.
func (p *Pod) Run(t testing.TB, script string, edits ...func(*cri.ContainerConfig)) *Container {
	t.Helper()
	c := p.Create(t, script, edits...)
	if err := c.Start(); err != nil {
		t.Fatalf("start container: %v", err)
	}
	return c
}

// Output runs a container to its end and returns what it wrote, failing the
// test if its exit code is not 0.
func (p *Pod) Output(t testing.TB, script string, edits ...func(*cri.ContainerConfig)) string {
	t.Helper()
	c := p.Run(t, script, edits...)
	s := c.WaitExit(t)
	out := c.Log(t).Text()
	if s.ExitCode != 0 {
		t.Fatalf("container ended with %d (%s: %s), having written %q", s.ExitCode, s.Reason, s.Message, out)
	}
	return out
}

// Start starts a created container.
func (c *Container) Start() error {
	ctx, cancel := Context()
	defer cancel()
	_, err := c.Pod.Node.Runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: c.ID})
	return err
}

// Stop stops the container, giving it grace to end by itself.
func (c *Container) Stop(grace time.Duration) error {
	ctx, cancel := Context()
	defer cancel()
	_, err := c.Pod.Node.Runtime.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: c.ID, Timeout: int64(grace / time.Second)})
	return err
}

// Remove removes the container, running or not.
func (c *Container) Remove() error {
	ctx, cancel := Context()
	defer cancel()
	_, err := c.Pod.Node.Runtime.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: c.ID})
	return err
}

// Status is the container's now.
func (c *Container) Status(t testing.TB) *cri.ContainerStatus {
	t.Helper()
	ctx, cancel := Context()
	defer cancel()
	r, err := c.Pod.Node.Runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: c.ID})
	if err != nil {
		t.Fatalf("container status: %v", err)
	}
	return r.Status
}

// WaitExit waits until the container has ended.
func (c *Container) WaitExit(t testing.TB) *cri.ContainerStatus {
	t.Helper()
	var s *cri.ContainerStatus
	Eventually(t, "container ends", 30*time.Second, func() bool {
		s = c.Status(t)
		return s.State == cri.ContainerState_CONTAINER_EXITED
	})
	return s
}

// Exec runs a command in the container.
func (c *Container) Exec(t testing.TB, command ...string) (stdout, stderr string, code int) {
	t.Helper()
	ctx, cancel := Context()
	defer cancel()
	r, err := c.Pod.Node.Runtime.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: c.ID, Cmd: command, Timeout: 20})
	if err != nil {
		t.Fatalf("exec %q: %v", command, err)
	}
	return string(r.Stdout), string(r.Stderr), int(r.ExitCode)
}

// Shell runs a script in the container and returns its output, failing the
// test if it ends with anything but 0.
func (c *Container) Shell(t testing.TB, script string) string {
	t.Helper()
	stdout, stderr, code := c.Exec(t, "/bin/sh", "-c", script)
	if code != 0 {
		t.Fatalf("%q ended with %d: %s%s", script, code, stdout, stderr)
	}
	return stdout
}

// Pids are the host's pids of the container's processes, in the first
// hierarchy that knows them.
func (c *Container) Pids(t testing.TB) []int {
	t.Helper()
	for _, h := range hierarchies() {
		if pids := pidsBelow(filepath.Join(h, c.Pod.Node.Cgroup), c.ID); len(pids) > 0 {
			slices.Sort(pids)
			return pids
		}
	}
	return nil
}

// pidsBelow collects the processes of the groups whose path contains name.
func pidsBelow(dir, name string) []int {
	var pids []int
	filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.Name() != "cgroup.procs" || !strings.Contains(path, name) {
			return nil
		}
		data, _ := os.ReadFile(path)
		for _, line := range strings.Fields(string(data)) {
			var pid int
			fmt.Sscan(line, &pid)
			pids = append(pids, pid)
		}
		return nil
	})
	return pids
}

// Eventually polls until ok says yes, for what has no event; it fails the test
// after the limit.
func Eventually(t testing.TB, what string, limit time.Duration, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", limit, what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// Pull pulls the image of tests, or another.
func (n *Node) Pull(ref string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	r, err := n.Images.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: ref}})
	return r.GetImageRef(), err
}

// Warm pulls the image and runs one container, so that what a daemon makes
// once and keeps (its bridge, its shim) is there before an oracle looks.
func (n *Node) Warm() error {
	if _, err := n.Pull(Image); err != nil {
		return err
	}
	ctx, cancel := Context()
	defer cancel()
	config := &cri.PodSandboxConfig{Metadata: &cri.PodSandboxMetadata{Name: "warm", Uid: "warm", Namespace: "test"}, Linux: &cri.LinuxPodSandboxConfig{CgroupParent: n.Cgroup}}
	r, err := n.Runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: config})
	if err != nil {
		return fmt.Errorf("run the first pod: %w", err)
	}
	p := &Pod{Node: n, ID: r.PodSandboxId, Config: config}
	c, err := p.TryCreate(ContainerConfig("warm", "exit"))
	if err == nil {
		err = c.Start()
	}
	return errors.Join(err, p.Remove())
}
