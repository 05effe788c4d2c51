package cdi

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	rspec "github.com/opencontainers/runtime-spec/specs-go"

	"noded.dev/noded/internal/kind"
)

func TestNames(t *testing.T) {
	names, err := Names([]string{"a.com/gpu=0", "a.com/gpu=0"}, map[string]string{
		"cdi.k8s.io/plugin_1": "a.com/gpu=1,b.org/nic=x", "cdi.k8s.io/plugin_2": "a.com/gpu=0", "other": "no device",
	})
	if want := []string{"a.com/gpu=0", "a.com/gpu=1", "b.org/nic=x"}; err != nil || !slices.Equal(names, want) {
		t.Errorf("names %v, %v", names, err)
	}
	for _, bad := range []string{"", "gpu=0", "a/b=c=d", "a.com/gpu", "a.com/gpu=", "/etc/passwd=x", "a.com/../gpu=0", "a.com/gpu=0\n", "a.com/gpu=" + strings.Repeat("x", 1<<20) + "/"} {
		if _, err := Names([]string{bad}, nil); !kind.Is(err, kind.Invalid) || len(err.Error()) > 1<<10 && len(bad) < 1<<10 {
			t.Errorf("%.40q: %v", bad, err)
		}
		if _, err := Names(nil, map[string]string{"cdi.k8s.io/x": bad}); !kind.Is(err, kind.Invalid) {
			t.Errorf("annotation %.40q: %v", bad, err)
		}
	}
	var many []string
	for i := range maxDevices + 1 {
		many = append(many, "a.com/gpu="+strings.Repeat("x", i+1))
	}
	if _, err := Names(many, nil); !kind.Is(err, kind.Exhausted) {
		t.Errorf("too many: %v", err)
	}
}

func write(t *testing.T, dir, name, content string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func env(t *testing.T, dirs []string, names ...string) ([]string, error) {
	t.Helper()
	s := &rspec.Spec{Process: &rspec.Process{}, Linux: &rspec.Linux{}}
	err := Inject(s, names, dirs)
	return s.Process.Env, err
}

func TestInject(t *testing.T) {
	static, dynamic := t.TempDir(), t.TempDir()
	dirs := []string{static, dynamic, filepath.Join(static, "missing")}
	write(t, static, "a.json", `{"cdiVersion": "0.6.0", "kind": "a.com/gpu", "containerEdits": {"env": ["ALL=1"]},
		"devices": [{"name": "0", "containerEdits": {"env": ["GPU=static"]}}]}`)
	if got, err := env(t, dirs, "a.com/gpu=0"); err != nil || !slices.Equal(got, []string{"ALL=1", "GPU=static"}) {
		t.Errorf("%v, %v", got, err)
	}
	// A file that comes later is seen at once, and that of the later folder counts.
	write(t, dynamic, "b.yaml", "cdiVersion: 0.6.0\nkind: a.com/gpu\ndevices:\n- name: \"0\"\n  containerEdits:\n    env: [GPU=dynamic]\n")
	if got, err := env(t, dirs, "a.com/gpu=0"); err != nil || !slices.Equal(got, []string{"GPU=dynamic"}) {
		t.Errorf("%v, %v", got, err)
	}
	// A damaged file takes no other device away, and is named where one is missing.
	write(t, static, "bad.json", `{"cdiVersion":`)
	if got, err := env(t, dirs, "a.com/gpu=0"); err != nil || len(got) == 0 {
		t.Errorf("%v, %v", got, err)
	}
	_, err := env(t, dirs, "a.com/gpu=0", "a.com/gpu=7", "b.org/nic=x")
	if !kind.Is(err, kind.NotFound) {
		t.Errorf("unknown device: %v", err)
	}
	for _, part := range []string{"a.com/gpu=7", "b.org/nic=x", static, dynamic, "bad.json"} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%s is not in: %v", part, err)
		}
	}
	if _, err := env(t, nil, "a.com/gpu=0"); !kind.Is(err, kind.NotFound) {
		t.Errorf("without folders: %v", err)
	}
	write(t, static, "node.json", `{"cdiVersion": "0.6.0", "kind": "a.com/gone", "devices": [{"name": "0", "containerEdits": {"deviceNodes": [{"path": "/dev/no-such-device"}]}}]}`)
	if _, err := env(t, dirs, "a.com/gone=0"); !kind.Is(err, kind.Precondition) || !strings.Contains(err.Error(), "/dev/no-such-device") {
		t.Errorf("device node that is not there: %v", err)
	}
}
