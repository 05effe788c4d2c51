package cri

import (
	"context"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	api "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func podConfig() *api.PodSandboxConfig {
	return &api.PodSandboxConfig{Metadata: &api.PodSandboxMetadata{Name: "web", Uid: "u1", Namespace: "default"}}
}

func containerConfig() *api.ContainerConfig {
	return &api.ContainerConfig{
		Metadata: &api.ContainerMetadata{Name: "web"},
		Image:    &api.ImageSpec{Image: "busybox"},
	}
}

func many(n int) map[string]string {
	m := make(map[string]string, n)
	for i := range n {
		m[fmt.Sprint("label", i)] = "x"
	}
	return m
}

func TestPodShape(t *testing.T) {
	e := newEdge(t)
	ran := 0
	e.sandboxes.runPod = func(context.Context, *api.PodSandboxConfig, string) (string, error) { ran++; return "p1", nil }
	change := func(f func(*api.PodSandboxConfig)) *api.PodSandboxConfig {
		c := podConfig()
		f(c)
		return c
	}
	for name, c := range map[string]struct {
		config *api.PodSandboxConfig
		want   codes.Code
	}{
		"good":             {podConfig(), codes.OK},
		"nil config":       {nil, codes.InvalidArgument},
		"nil metadata":     {&api.PodSandboxConfig{}, codes.InvalidArgument},
		"empty name":       {change(func(c *api.PodSandboxConfig) { c.Metadata.Name = "" }), codes.InvalidArgument},
		"empty uid":        {change(func(c *api.PodSandboxConfig) { c.Metadata.Uid = "" }), codes.InvalidArgument},
		"empty namespace":  {change(func(c *api.PodSandboxConfig) { c.Metadata.Namespace = "" }), codes.InvalidArgument},
		"1 MiB name":       {change(func(c *api.PodSandboxConfig) { c.Metadata.Name = strings.Repeat("n", 1<<20) }), codes.InvalidArgument},
		"NUL in name":      {change(func(c *api.PodSandboxConfig) { c.Metadata.Name = "a\x00b" }), codes.InvalidArgument},
		"100 k labels":     {change(func(c *api.PodSandboxConfig) { c.Labels = many(100_000) }), codes.InvalidArgument},
		"2 MiB annotation": {change(func(c *api.PodSandboxConfig) { c.Annotations = map[string]string{"a": strings.Repeat("v", 2<<20)} }), codes.InvalidArgument},
		"15.9 MiB":         {change(func(c *api.PodSandboxConfig) { c.LogDirectory = strings.Repeat("l", 159<<20/10) }), codes.InvalidArgument},
		"16.1 MiB":         {change(func(c *api.PodSandboxConfig) { c.LogDirectory = strings.Repeat("l", 161<<20/10) }), codes.ResourceExhausted},
	} {
		ran = 0
		_, err := e.runtime.RunPodSandbox(t.Context(), &api.RunPodSandboxRequest{Config: c.config})
		if got := status.Code(err); got != c.want {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
		if (ran == 1) != (c.want == codes.OK) {
			t.Errorf("%s: the core was called %d times", name, ran)
		}
	}
}

func TestContainerShape(t *testing.T) {
	e := newEdge(t)
	e.sandboxes.createFunc = func(context.Context, string, *api.ContainerConfig) (string, error) { return "c1", nil }
	change := func(f func(*api.ContainerConfig)) *api.ContainerConfig {
		c := containerConfig()
		f(c)
		return c
	}
	for name, c := range map[string]struct {
		config *api.ContainerConfig
		want   codes.Code
	}{
		"good":         {containerConfig(), codes.OK},
		"nil config":   {nil, codes.InvalidArgument},
		"nil metadata": {change(func(c *api.ContainerConfig) { c.Metadata = nil }), codes.InvalidArgument},
		"empty name":   {change(func(c *api.ContainerConfig) { c.Metadata.Name = "" }), codes.InvalidArgument},
		"nil image":    {change(func(c *api.ContainerConfig) { c.Image = nil }), codes.InvalidArgument},
		"empty image":  {change(func(c *api.ContainerConfig) { c.Image.Image = "" }), codes.InvalidArgument},
		"1 MiB image":  {change(func(c *api.ContainerConfig) { c.Image.Image = strings.Repeat("i", 1<<20) }), codes.InvalidArgument},
		"100 k labels": {change(func(c *api.ContainerConfig) { c.Labels = many(100_000) }), codes.InvalidArgument},
	} {
		_, err := e.runtime.CreateContainer(t.Context(), &api.CreateContainerRequest{PodSandboxId: "p1", Config: c.config})
		if got := status.Code(err); got != c.want {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

// TestIDs calls every verb with ids that cannot be: stopping and removing
// succeed, the rest does not find them, and the core is not asked.
func TestIDs(t *testing.T) {
	e := newEdge(t)
	ctx, r := t.Context(), e.runtime
	verbs := map[string]func(id string) error{
		"PodSandboxStatus": func(id string) error {
			_, err := r.PodSandboxStatus(ctx, &api.PodSandboxStatusRequest{PodSandboxId: id})
			return err
		},
		"CreateContainer": func(id string) error {
			_, err := r.CreateContainer(ctx, &api.CreateContainerRequest{PodSandboxId: id, Config: containerConfig()})
			return err
		},
		"StartContainer": func(id string) error {
			_, err := r.StartContainer(ctx, &api.StartContainerRequest{ContainerId: id})
			return err
		},
		"ContainerStatus": func(id string) error {
			_, err := r.ContainerStatus(ctx, &api.ContainerStatusRequest{ContainerId: id})
			return err
		},
		"UpdateContainerResources": func(id string) error {
			_, err := r.UpdateContainerResources(ctx, &api.UpdateContainerResourcesRequest{ContainerId: id, Linux: &api.LinuxContainerResources{}})
			return err
		},
		"ReopenContainerLog": func(id string) error {
			_, err := r.ReopenContainerLog(ctx, &api.ReopenContainerLogRequest{ContainerId: id})
			return err
		},
		"ExecSync": func(id string) error {
			_, err := r.ExecSync(ctx, &api.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}})
			return err
		},
		"Exec": func(id string) error {
			_, err := r.Exec(ctx, &api.ExecRequest{ContainerId: id, Cmd: []string{"true"}, Stdout: true})
			return err
		},
		"Attach": func(id string) error {
			_, err := r.Attach(ctx, &api.AttachRequest{ContainerId: id, Stdout: true})
			return err
		},
		"PortForward": func(id string) error {
			_, err := r.PortForward(ctx, &api.PortForwardRequest{PodSandboxId: id})
			return err
		},
		"ContainerStats": func(id string) error {
			_, err := r.ContainerStats(ctx, &api.ContainerStatsRequest{ContainerId: id})
			return err
		},
		"PodSandboxStats": func(id string) error {
			_, err := r.PodSandboxStats(ctx, &api.PodSandboxStatsRequest{PodSandboxId: id})
			return err
		},
	}
	ends := map[string]func(id string) error{
		"StopPodSandbox": func(id string) error {
			_, err := r.StopPodSandbox(ctx, &api.StopPodSandboxRequest{PodSandboxId: id})
			return err
		},
		"RemovePodSandbox": func(id string) error {
			_, err := r.RemovePodSandbox(ctx, &api.RemovePodSandboxRequest{PodSandboxId: id})
			return err
		},
		"StopContainer": func(id string) error {
			_, err := r.StopContainer(ctx, &api.StopContainerRequest{ContainerId: id})
			return err
		},
		"RemoveContainer": func(id string) error {
			_, err := r.RemoveContainer(ctx, &api.RemoveContainerRequest{ContainerId: id})
			return err
		},
	}
	impossible := []string{"", "../..", "c1/../c1", "a b", "é", strings.Repeat("a", 1<<20), "a\x00"}
	for _, id := range impossible {
		for name, verb := range verbs {
			if err := verb(id); status.Code(err) != codes.NotFound {
				t.Errorf("%s(%.20q): %v", name, id, err)
			} else if len(err.Error()) > 400 {
				t.Errorf("%s(%.20q): error of %d bytes", name, id, len(err.Error()))
			}
		}
		for name, verb := range ends {
			if err := verb(id); err != nil {
				t.Errorf("%s(%.20q): %v", name, id, err)
			}
		}
	}
	if calls := e.sandboxes.called(); len(calls) > 0 {
		t.Errorf("the core was asked for %.80q", calls)
	}
	for name, verb := range verbs { // what can be an id does reach the core
		if err := verb("unknown"); status.Code(err) != codes.NotFound {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, verb := range ends {
		if err := verb("unknown"); err != nil {
			t.Error(err)
		}
	}
	if calls := e.sandboxes.called(); len(calls) != len(verbs)+len(ends) {
		t.Errorf("the core was asked %d times, want %d", len(calls), len(verbs)+len(ends))
	}
}

func TestSeconds(t *testing.T) {
	for in, want := range map[int64]time.Duration{
		-1: 0, 0: 0, 30: 30 * time.Second, 1 << 62: time.Duration(math.MaxInt64) / time.Second * time.Second,
	} {
		if got := seconds(in); got != want {
			t.Errorf("seconds(%d) = %v, want %v", in, got, want)
		}
	}
}

func TestUpdateRuntimeConfig(t *testing.T) {
	e := newEdge(t)
	for cidr, want := range map[string]codes.Code{
		"": codes.OK, "10.1.0.0/24": codes.OK, "10.1.0.0/24,fd00::/64": codes.OK, "10.1.0.0": codes.InvalidArgument, "x,y": codes.InvalidArgument,
	} {
		_, err := e.runtime.UpdateRuntimeConfig(t.Context(), &api.UpdateRuntimeConfigRequest{
			RuntimeConfig: &api.RuntimeConfig{NetworkConfig: &api.NetworkConfig{PodCidr: cidr}},
		})
		if status.Code(err) != want {
			t.Errorf("%q: %v, want %v", cidr, err, want)
		}
	}
	if _, err := e.runtime.UpdateRuntimeConfig(t.Context(), &api.UpdateRuntimeConfigRequest{}); err != nil {
		t.Error(err)
	}
	if len(e.sandboxes.cidrs) == 0 {
		t.Error("no range reached the core")
	}
}
