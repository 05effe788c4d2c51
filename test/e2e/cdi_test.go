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

// cdiSpec describes two devices of a vendor of the test's own.
const cdiSpec = `{
  "cdiVersion": "0.7.0", "kind": "test.example/dev",
  "containerEdits": {"env": ["CDI_VENDOR=test"]},
  "devices": [
    {"name": "one", "containerEdits": {
      "env": ["CDI_ONE=1"],
      "additionalGids": [4711],
      "deviceNodes": [{"path": "/dev/cdi-node", "hostPath": "%[2]s", "permissions": "r"}],
      "mounts": [{"hostPath": "%[1]s/lib", "containerPath": "/opt/vendor", "options": ["ro", "bind"]}],
      "hooks": [{"hookName": "createRuntime", "path": "/bin/sh", "args": ["sh", "-c", "cat >%[1]s/hook"]}]}},
    {"name": "two", "containerEdits": {"env": ["CDI_TWO=1"], "deviceNodes": [{"path": "/dev/cdi-full", "hostPath": "/dev/full"}]}}]}
`

// someDevice is a node that anybody may open and that no container has anyway.
func someDevice(t *testing.T) string {
	t.Helper()
	for _, path := range []string{"/dev/fuse", "/dev/loop-control", "/dev/net/tun"} {
		if f, err := os.Open(path); err == nil {
			f.Close()
			return path
		}
	}
	t.Skip("none of the usual devices is here")
	return ""
}

// TestCDI gives containers devices that a file describes, asked for by the
// field and by annotations.
func TestCDI(t *testing.T) {
	skipOnPeer(t, "it is older than this")
	dir := t.TempDir()
	specs := filepath.Join(dir, "cdi")
	n := node.New(t, node.Options{Binary: binary, Registry: registry, Config: fmt.Sprintf("[runtime]\ncdi_spec_dirs = [%q, %q]\n", filepath.Join(dir, "none"), specs)})
	_, err := n.Pull(node.Image)
	must(t, err)
	p := n.RunPod(t)
	one := func(c *cri.ContainerConfig) { c.CDIDevices = []*cri.CDIDevice{{Name: "test.example/dev=one"}} }
	config := node.ContainerConfig("early", "true")
	one(config)
	_, err = p.TryCreate(config)
	wantCode(t, err, codes.NotFound)
	for _, part := range []string{"test.example/dev=one", specs, filepath.Join(dir, "none")} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%s is not in %v", part, err)
		}
	}
	// The folder and the file come while noded runs.
	must(t, os.MkdirAll(filepath.Join(dir, "lib"), 0o755))
	must(t, os.WriteFile(filepath.Join(dir, "lib", "driver"), []byte("driver\n"), 0o644))
	must(t, os.Mkdir(specs, 0o755))
	must(t, os.WriteFile(filepath.Join(specs, "test.json"), fmt.Appendf(nil, cdiSpec, dir, someDevice(t)), 0o644))
	c := p.Run(t, "sleep 1000", one)
	for script, want := range map[string]string{
		"true </dev/cdi-node && echo yes":             "yes\n",
		"true 2>/dev/null >>/dev/cdi-node || echo no": "no\n", // permissions "r" alone
		"cat /opt/vendor/driver":                      "driver\n",
		"touch /opt/vendor/x 2>/dev/null || echo no":  "no\n",
		"echo $CDI_VENDOR $CDI_ONE ${CDI_TWO-unset}":  "test 1 unset\n",
		"id -G | grep -c 4711":                        "1\n",
		"ls /dev/cdi-full 2>/dev/null | wc -l":        "0\n",
	} {
		if got := c.Shell(t, script); got != want {
			t.Errorf("%s: %q, want %q", script, got, want)
		}
	}
	if state, err := os.ReadFile(filepath.Join(dir, "hook")); err != nil || !strings.Contains(string(state), c.ID) {
		t.Errorf("the hook got %s, %v", state, err)
	}
	got := p.Output(t, "echo $CDI_VENDOR $CDI_ONE $CDI_TWO; echo x 2>&1 >/dev/cdi-full", func(c *cri.ContainerConfig) {
		one(c)
		c.Annotations = map[string]string{"cdi.k8s.io/plugin_a": "test.example/dev=one,test.example/dev=two"}
		c.Command[2] += " || true"
	})
	if !strings.HasPrefix(got, "test 1 1\n") || !strings.Contains(got, "No space left") {
		t.Errorf("by field and annotation: %q", got)
	}
	for name, bad := range map[string]string{"form": "a/b=c=d", "path": "../../etc/passwd", "empty": ""} {
		_, err := p.TryCreate(&cri.ContainerConfig{Metadata: config.Metadata, Image: config.Image, Annotations: map[string]string{"cdi.k8s.io/x": bad}})
		if wantCode(t, err, codes.InvalidArgument); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	_, err = p.TryCreate(&cri.ContainerConfig{Metadata: config.Metadata, Image: config.Image, CDIDevices: []*cri.CDIDevice{{Name: "test.example/dev=three"}}})
	wantCode(t, err, codes.NotFound)
	if list := containers(t, n, &cri.ContainerFilter{PodSandboxId: p.ID}); len(list) != 2 {
		t.Errorf("refused containers are listed: %v", list)
	}
}
