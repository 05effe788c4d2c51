package e2e

import (
	"context"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/test/node"
)

// TestUnknown calls everything with ids of nothing: stopping and removing what
// is gone has succeeded, everything else says so.
func TestUnknown(t *testing.T) {
	n := start(t)
	r := n.Runtime
	for _, id := range []string{strings.Repeat("0f", 32), "zz", "../../etc", strings.Repeat("a", 5000)} {
		for name, c := range map[string]struct {
			call func(context.Context) error
			want codes.Code
		}{
			"StopPodSandbox": {func(ctx context.Context) error {
				_, err := r.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: id})
				return err
			}, codes.OK},
			"RemovePodSandbox": {func(ctx context.Context) error {
				_, err := r.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: id})
				return err
			}, codes.OK},
			"StopContainer": {func(ctx context.Context) error {
				_, err := r.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: id})
				return err
			}, codes.OK},
			"RemoveContainer": {func(ctx context.Context) error {
				_, err := r.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: id})
				return err
			}, codes.OK},
			"PodSandboxStatus": {func(ctx context.Context) error {
				_, err := r.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: id})
				return err
			}, codes.NotFound},
			"ContainerStatus": {func(ctx context.Context) error {
				_, err := r.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: id})
				return err
			}, codes.NotFound},
			"StartContainer": {func(ctx context.Context) error {
				_, err := r.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: id})
				return err
			}, codes.NotFound},
			"ContainerStats": {func(ctx context.Context) error {
				_, err := r.ContainerStats(ctx, &cri.ContainerStatsRequest{ContainerId: id})
				return err
			}, codes.NotFound},
			"PodSandboxStats": {func(ctx context.Context) error {
				_, err := r.PodSandboxStats(ctx, &cri.PodSandboxStatsRequest{PodSandboxId: id})
				return err
			}, codes.NotFound},
			"ReopenLog": {func(ctx context.Context) error {
				_, err := r.ReopenContainerLog(ctx, &cri.ReopenContainerLogRequest{ContainerId: id})
				return err
			}, codes.NotFound},
			"ExecSync": {func(ctx context.Context) error {
				_, err := r.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}})
				return err
			}, codes.NotFound},
			"Exec": {func(ctx context.Context) error {
				_, err := r.Exec(ctx, &cri.ExecRequest{ContainerId: id, Cmd: []string{"true"}, Stdout: true})
				return err
			}, codes.NotFound},
			"Attach": {func(ctx context.Context) error {
				_, err := r.Attach(ctx, &cri.AttachRequest{ContainerId: id, Stdout: true})
				return err
			}, codes.NotFound},
			"PortForward": {func(ctx context.Context) error {
				_, err := r.PortForward(ctx, &cri.PortForwardRequest{PodSandboxId: id, Port: []int32{80}})
				return err
			}, codes.NotFound},
			"Update": {func(ctx context.Context) error {
				_, err := r.UpdateContainerResources(ctx, &cri.UpdateContainerResourcesRequest{ContainerId: id, Linux: &cri.LinuxContainerResources{CpuShares: 100}})
				return err
			}, codes.NotFound},
			"CreateContainer": {func(ctx context.Context) error {
				_, err := r.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: id, Config: node.ContainerConfig("c", "true"), SandboxConfig: n.PodConfig(t)})
				return err
			}, codes.NotFound},
		} {
			t.Run(name+" "+id[:2], func(t *testing.T) {
				if !noded() && len(id) != 64 {
					t.Skip("the peer takes these for prefixes")
				}
				ctx, cancel := node.Context()
				defer cancel()
				if err := c.call(ctx); noded() || err == nil && c.want != codes.OK {
					wantCode(t, err, c.want)
				}
			})
		}
	}
}

// TestRefused sends pods and containers that cannot be: each is refused as the
// caller's mistake, and nothing of it is left.
func TestRefused(t *testing.T) {
	skipOnPeer(t, "it leaves many of these to the runtime")
	n := start(t)
	for name, c := range map[string]struct {
		edit func(*cri.PodSandboxConfig)
		want codes.Code
	}{
		"no metadata":      {func(c *cri.PodSandboxConfig) { c.Metadata = nil }, codes.InvalidArgument},
		"no name":          {func(c *cri.PodSandboxConfig) { c.Metadata.Name = "" }, codes.InvalidArgument},
		"no uid":           {func(c *cri.PodSandboxConfig) { c.Metadata.Uid = "" }, codes.InvalidArgument},
		"cgroup elsewhere": {func(c *cri.PodSandboxConfig) { c.Linux.CgroupParent = "/../../etc" }, codes.InvalidArgument},
		"port too high": {func(c *cri.PodSandboxConfig) {
			c.PortMappings = []*cri.PortMapping{{HostPort: 70000, ContainerPort: 80}}
		}, codes.InvalidArgument},
		"group without user":  {func(c *cri.PodSandboxConfig) { c.Linux.SecurityContext.RunAsGroup = &cri.Int64Value{Value: 5} }, codes.InvalidArgument},
		"hostname too long":   {func(c *cri.PodSandboxConfig) { c.Hostname = strings.Repeat("h", 300) }, codes.InvalidArgument},
		"unknown mode":        {func(c *cri.PodSandboxConfig) { network(c, 77) }, codes.InvalidArgument},
		"relative log folder": {func(c *cri.PodSandboxConfig) { c.LogDirectory = "logs" }, codes.InvalidArgument},
	} {
		t.Run("pod "+name, func(t *testing.T) {
			config := n.PodConfig(t)
			c.edit(config)
			_, err := n.TryPod(t, config)
			wantCode(t, err, c.want)
		})
	}
	p := n.RunPod(t)
	for name, c := range map[string]struct {
		edit func(*cri.ContainerConfig)
		want codes.Code
	}{
		"no metadata":      {func(c *cri.ContainerConfig) { c.Metadata = nil }, codes.InvalidArgument},
		"no image":         {func(c *cri.ContainerConfig) { c.Image = nil }, codes.InvalidArgument},
		"unknown image":    {func(c *cri.ContainerConfig) { c.Image = &cri.ImageSpec{Image: "registry.test/nothing:1"} }, codes.NotFound},
		"log path upwards": {func(c *cri.ContainerConfig) { c.LogPath = "../../escape.log" }, codes.InvalidArgument},
		"relative mount":   {func(c *cri.ContainerConfig) { c.Mounts = []*cri.Mount{{ContainerPath: "x", HostPath: "/tmp"}} }, codes.InvalidArgument},
		"mount on root":    {func(c *cri.ContainerConfig) { c.Mounts = []*cri.Mount{{ContainerPath: "/", HostPath: "/tmp"}} }, codes.InvalidArgument},
		"unknown user":     {func(c *cri.ContainerConfig) { c.Linux.SecurityContext.RunAsUsername = "nobody-knows" }, codes.InvalidArgument},
		"group alone":      {func(c *cri.ContainerConfig) { c.Linux.SecurityContext.RunAsGroup = &cri.Int64Value{Value: 5} }, codes.InvalidArgument},
		"unknown cap": {func(c *cri.ContainerConfig) {
			c.Linux.SecurityContext.Capabilities = &cri.Capability{AddCapabilities: []string{"FLY"}}
		}, codes.InvalidArgument},
		"seccomp nowhere": {func(c *cri.ContainerConfig) { seccomp(c, cri.SecurityProfile_Localhost, "/nowhere/profile.json") }, codes.NotFound},
		"seccomp empty":   {func(c *cri.ContainerConfig) { seccomp(c, cri.SecurityProfile_Localhost, "") }, codes.InvalidArgument},
		"device nowhere": {func(c *cri.ContainerConfig) {
			c.Devices = []*cri.Device{{HostPath: "/dev/nowhere", ContainerPath: "/dev/x", Permissions: "rwm"}}
		}, codes.NotFound},
		"device rights": {func(c *cri.ContainerConfig) {
			c.Devices = []*cri.Device{{HostPath: "/dev/null", ContainerPath: "/dev/x", Permissions: "xyz"}}
		}, codes.InvalidArgument},
		"negative memory":   {func(c *cri.ContainerConfig) { c.Linux.Resources.MemoryLimitInBytes = -5 }, codes.InvalidArgument},
		"cpuset of letters": {func(c *cri.ContainerConfig) { c.Linux.Resources.CpusetCpus = "a-b" }, codes.InvalidArgument},
		"target of nothing": {func(c *cri.ContainerConfig) {
			namespaces(c).Pid = cri.NamespaceMode_TARGET
			namespaces(c).TargetId = "nothing"
		}, codes.FailedPrecondition},
	} {
		t.Run("container "+name, func(t *testing.T) {
			config := node.ContainerConfig("refused", "true")
			c.edit(config)
			_, err := p.TryCreate(config)
			wantCode(t, err, c.want)
		})
	}
	if list := containers(t, n, &cri.ContainerFilter{PodSandboxId: p.ID}); len(list) != 0 {
		t.Errorf("refused containers are listed: %v", list)
	}
}
