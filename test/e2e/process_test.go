package e2e

import (
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const webImage = "registry.test/web:1"

// TestProcess checks what of the request and of the image becomes the process.
func TestProcess(t *testing.T) {
	n := start(t)
	p := n.RunPod(t)
	id := func(c *cri.ContainerConfig) {
		c.Command = []string{"/bin/sh", "-c", "id -u; id -g; echo $(id -G | tr ' ' '\\n' | sort -n)"}
	}
	user := func(c *cri.ContainerConfig) *cri.LinuxContainerSecurityContext { return c.Linux.SecurityContext }
	for name, c := range map[string]struct {
		edit func(*cri.ContainerConfig)
		want string
	}{
		"image's entrypoint and command": {func(c *cri.ContainerConfig) { image(c, webImage); c.Command = nil }, "entry default\n"},
		"arguments replace the command":  {func(c *cri.ContainerConfig) { image(c, webImage); c.Command, c.Args = nil, []string{"a", "b c"} }, "entry a b c\n"},
		"command replaces both":          {func(c *cri.ContainerConfig) { image(c, webImage); c.Command = []string{"/bin/echo", "x"} }, "x\n"},
		"command and arguments":          {func(c *cri.ContainerConfig) { c.Command, c.Args = []string{"/bin/echo"}, []string{"y"} }, "y\n"},
		"command found in PATH":          {func(c *cri.ContainerConfig) { c.Command = []string{"echo", "z"} }, "z\n"},
		"environment": {func(c *cri.ContainerConfig) {
			c.Envs = []*cri.KeyValue{{Key: "A", Value: []byte("b=c d")}, {Key: "EMPTY"}}
			c.Command[2] = `echo "$A|${EMPTY-unset}|$FROM_IMAGE"`
		}, "b=c d||yes\n"},
		"environment over the image's": {func(c *cri.ContainerConfig) {
			c.Envs = []*cri.KeyValue{{Key: "FROM_IMAGE", Value: []byte("no")}}
			c.Command[2] = "env | grep FROM_IMAGE"
		}, "FROM_IMAGE=no\n"},
		"working folder":              {func(c *cri.ContainerConfig) { c.WorkingDir = "/tmp"; c.Command[2] = "pwd" }, "/tmp\n"},
		"working folder of the image": {func(c *cri.ContainerConfig) { image(c, webImage); c.Command = []string{"/bin/pwd"} }, "/home/web\n"},
		"working folder is made":      {func(c *cri.ContainerConfig) { c.WorkingDir = "/made/for/it"; c.Command[2] = "pwd" }, "/made/for/it\n"},
		"home of the user":            {func(c *cri.ContainerConfig) { image(c, webImage); c.Command = []string{"/bin/sh", "-c", "echo $HOME"} }, "/home/web\n"},
		"root by default":             {id, "0\n0\n0\n"},
		"user by number":              {func(c *cri.ContainerConfig) { id(c); user(c).RunAsUser = &cri.Int64Value{Value: 1000} }, "1000\n1000\n1000 2000\n"},
		"user by name":                {func(c *cri.ContainerConfig) { id(c); user(c).RunAsUsername = "web" }, "1000\n1000\n1000 2000\n"},
		"user that has no name":       {func(c *cri.ContainerConfig) { id(c); user(c).RunAsUser = &cri.Int64Value{Value: 4321} }, "4321\n0\n0\n"},
		"user and group": {func(c *cri.ContainerConfig) {
			id(c)
			user(c).RunAsUser, user(c).RunAsGroup = &cri.Int64Value{Value: 4321}, &cri.Int64Value{Value: 55}
		}, "4321\n55\n55\n"},
		"supplemental groups": {func(c *cri.ContainerConfig) {
			id(c)
			user(c).RunAsUser, user(c).SupplementalGroups = &cri.Int64Value{Value: 1000}, []int64{3000}
		}, "1000\n1000\n1000 2000 3000\n"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := p.Output(t, "true", c.edit); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
	t.Run("image's user with groups", func(t *testing.T) {
		skipOnPeer(t, "it gives image users no more groups")
		if got := p.Output(t, "", func(c *cri.ContainerConfig) { image(c, webImage); id(c) }); got != "1000\n1000\n1000 2000\n" {
			t.Errorf("got %q", got)
		}
	})
	t.Run("strict groups", func(t *testing.T) {
		skipOnPeer(t, "it is older than this")
		got := p.Output(t, "", id, func(c *cri.ContainerConfig) {
			user(c).RunAsUser, user(c).SupplementalGroups = &cri.Int64Value{Value: 1000}, []int64{3000}
			user(c).SupplementalGroupsPolicy = cri.SupplementalGroupsPolicy_Strict
		})
		if got != "1000\n1000\n1000 3000\n" {
			t.Errorf("got %q", got)
		}
	})
}

// TestNotExecutable checks commands that cannot be executed: the error tells
// why, and the container is over and can be removed.
func TestNotExecutable(t *testing.T) {
	n := start(t)
	p := n.RunPod(t)
	for name, c := range map[string]struct {
		command string
		code    int32
	}{
		"nowhere": {"/no/such/command", 127}, "not in PATH": {"no-such-command", 127}, "not a program": {"/etc/passwd", 126}, "folder": {"/etc", 126},
	} {
		t.Run(name, func(t *testing.T) {
			c1 := p.Create(t, "", func(config *cri.ContainerConfig) { config.Command = []string{c.command} })
			err := c1.Start()
			if err == nil || !strings.Contains(err.Error(), c.command) {
				t.Errorf("error %v", err)
			}
			s := c1.Status(t)
			if s.State != cri.ContainerState_CONTAINER_EXITED || s.ExitCode == 0 || s.FinishedAt == 0 {
				t.Errorf("state %v, code %d, finished %d", s.State, s.ExitCode, s.FinishedAt)
			}
			if noded() && (s.Reason != "StartError" || s.ExitCode != c.code || s.StartedAt != 0 || !strings.Contains(s.Message, c.command)) {
				t.Errorf("reason %q, code %d, started %d, message %q", s.Reason, s.ExitCode, s.StartedAt, s.Message)
			}
			must(t, c1.Remove())
		})
	}
}

// TestContainerStatus checks that a container is told as it was asked for, in every state.
func TestContainerStatus(t *testing.T) {
	n := start(t)
	p := n.RunPod(t)
	c := p.Create(t, "echo out; sleep 1000", func(c *cri.ContainerConfig) { c.Annotations = map[string]string{"an": "annotation"} })
	s := c.Status(t)
	if s.State != cri.ContainerState_CONTAINER_CREATED || s.CreatedAt <= 0 || s.StartedAt != 0 || s.FinishedAt != 0 {
		t.Errorf("created: %v, %d, %d, %d", s.State, s.CreatedAt, s.StartedAt, s.FinishedAt)
	}
	must(t, c.Start())
	s = c.Status(t)
	if s.State != cri.ContainerState_CONTAINER_RUNNING || s.StartedAt < s.CreatedAt || s.FinishedAt != 0 {
		t.Errorf("running: %v, %d, %d, %d", s.State, s.CreatedAt, s.StartedAt, s.FinishedAt)
	}
	if s.Metadata.Name != c.Config.Metadata.Name || s.Labels["container"] != c.Config.Labels["container"] || s.Annotations["an"] != "annotation" ||
		s.Image.GetImage() == "" || s.ImageRef == "" || s.LogPath != c.LogPath() {
		t.Errorf("status %v", s)
	}
	if list := containers(t, n, &cri.ContainerFilter{Id: c.ID}); len(list) != 1 || list[0].PodSandboxId != p.ID || list[0].ImageRef == "" || list[0].CreatedAt != s.CreatedAt {
		t.Errorf("list %v", list)
	}
	if err := c.Start(); noded() || err == nil {
		wantCode(t, err, codes.FailedPrecondition)
	}
	must(t, c.Stop(0))
	s = c.Status(t)
	if s.State != cri.ContainerState_CONTAINER_EXITED || s.FinishedAt < s.StartedAt || s.ExitCode != 137 || s.Reason != "Error" {
		t.Errorf("stopped: %v, finished %d, started %d, code %d, %s", s.State, s.FinishedAt, s.StartedAt, s.ExitCode, s.Reason)
	}
	must(t, c.Remove())
	must(t, c.Remove())
	if list := containers(t, n, &cri.ContainerFilter{Id: c.ID}); len(list) != 0 {
		t.Errorf("removed container is listed: %v", list)
	}
}

func image(c *cri.ContainerConfig, name string) {
	c.Image = &cri.ImageSpec{Image: name, UserSpecifiedImage: name}
}

func namespaces(c *cri.ContainerConfig) *cri.NamespaceOption {
	return c.Linux.SecurityContext.NamespaceOptions
}
