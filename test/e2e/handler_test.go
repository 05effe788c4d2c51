package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/test/node"
)

// namedRuntime is an OCI runtime that notes what it is asked.
type namedRuntime struct{ path, log string }

func newNamedRuntime(t *testing.T, dir, name string) namedRuntime {
	t.Helper()
	real := os.Getenv("NODED_TEST_RUNC")
	if real == "" {
		real = "runc"
	}
	r := namedRuntime{filepath.Join(dir, name), filepath.Join(dir, name+".log")}
	must(t, os.WriteFile(r.path, fmt.Appendf(nil, "#!/bin/sh\necho \"$@\" >>%s\nexec %s \"$@\"\n", r.log, real), 0o755))
	return r
}

// asked says whether the runtime was told to do something with a container.
func (r namedRuntime) asked(verb, id string) bool {
	data, _ := os.ReadFile(r.log)
	for _, line := range strings.Split(string(data), "\n") {
		if strings.Contains(line, " "+verb+" ") && strings.Contains(line, id) {
			return true
		}
	}
	return false
}

func runWith(t *testing.T, n *node.Node, handler string) (*node.Pod, error) {
	t.Helper()
	ctx, cancel := node.Context()
	defer cancel()
	config := n.PodConfig(t, func(c *cri.PodSandboxConfig) { c.Metadata.Name += "-" + handler })
	r, err := n.Runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: config, RuntimeHandler: handler})
	if err != nil {
		return nil, err
	}
	p := &node.Pod{Node: n, ID: r.PodSandboxId, Config: config}
	t.Cleanup(func() { must(t, p.Remove()) })
	return p, nil
}

// TestRuntimeHandlers runs pods with two handlers, lets the configuration give
// one another command and take it out, and wants each container to be served by
// the command that it was made with.
func TestRuntimeHandlers(t *testing.T) {
	skipOnPeer(t, "its configuration is another")
	dir := t.TempDir()
	first, second := newNamedRuntime(t, dir, "first"), newNamedRuntime(t, dir, "second")
	n := node.New(t, node.Options{Binary: binary, Registry: registry, Config: fmt.Sprintf("runtime.handlers.other.path = %q", first.path)})
	must(t, n.Warm())
	ctx, cancel := node.Context()
	defer cancel()
	status, err := n.Runtime.Status(ctx, &cri.StatusRequest{})
	must(t, err)
	features := map[string]*cri.RuntimeHandlerFeatures{}
	for _, h := range status.RuntimeHandlers {
		features[h.Name] = h.Features
	}
	for _, name := range []string{"", "runc", "other"} {
		if f := features[name]; f == nil || f.RecursiveReadOnlyMounts != features["runc"].RecursiveReadOnlyMounts || f.UserNamespaces != features["runc"].UserNamespaces {
			t.Errorf("handler %q: %v", name, f)
		}
	}
	_, err = runWith(t, n, "none")
	wantCode(t, err, codes.NotFound)

	p, err := runWith(t, n, "other")
	must(t, err)
	if got := p.Status(t).RuntimeHandler; got != "other" {
		t.Errorf("the pod's handler is %q", got)
	}
	old, gone := p.Run(t, "sleep 1000"), p.Run(t, "sleep 1000")
	usual := n.RunPod(t).Run(t, "sleep 1000")
	if !first.asked("create", old.ID) || first.asked("create", usual.ID) {
		t.Error("the handler's command did not make its own container alone")
	}

	n.Config = fmt.Sprintf("runtime.handlers.other.path = %q", second.path)
	n.Kill()
	must(t, n.Launch())
	if got := old.Shell(t, "echo lives"); got != "lives\n" {
		t.Errorf("exec: %q", got)
	}
	must(t, old.Stop(0))
	must(t, old.Remove())
	if !first.asked("delete", old.ID) || second.asked("delete", old.ID) {
		t.Error("the old container was not removed by the command that made it")
	}
	again, err := runWith(t, n, "other")
	must(t, err)
	if c := again.Run(t, "sleep 1000"); !second.asked("create", c.ID) {
		t.Error("the new container was not made by the new command")
	}

	n.Config = ""
	n.Kill()
	must(t, n.Launch())
	_, err = runWith(t, n, "other")
	wantCode(t, err, codes.NotFound)
	must(t, gone.Stop(0))
	must(t, gone.Remove())
	if !first.asked("delete", gone.ID) {
		t.Error("the handler is gone, and its container was not removed by its command")
	}
}
