package spec

import (
	"encoding/json"
	"path"
	"strings"
	"testing"
	"unicode/utf8"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	rspec "github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/internal/kind"
)

// FuzzImageConfig: whatever an image's configuration says, the spec is sound
// or the error is the image's fault; nothing but process and annotations
// depends on the image.
func FuzzImageConfig(f *testing.F) {
	for _, seed := range []string{
		`{}`, `{"Entrypoint":["/bin/sh"],"Cmd":["-c","x"],"Env":["A=b","HOME=/x"],"WorkingDir":"/w"}`,
		`{"Cmd":["x"],"Env":["NODED_SECRET","*","=x"],"Volumes":{"/../../x":{}},"StopSignal":"RTMIN+99","User":"0x0"}`,
		`{"Cmd":["x"],"WorkingDir":"/proc/self/fd/7","Labels":{"org.systemd.property.X":"y"}}`,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, data string) {
		in := testInput()
		in.Image = ocispec.ImageConfig{}
		if json.Unmarshal([]byte(data), &in.Image) != nil {
			return
		}
		Warnings(in)
		if n := StopSignal(in.Container, in.Image); n < 1 || n > signalRTMax {
			t.Errorf("stop signal %d", n)
		}
		s, err := Container(in)
		checkSound(t, s, err)
		if err != nil {
			return
		}
		reference := mustContainer(t, testInput())
		if got, want := mustJSON(t, s.Linux), mustJSON(t, reference.Linux); got != want {
			t.Errorf("the image changed the spec's linux part:\n%s", got)
		}
		if got, want := mustJSON(t, s.Mounts), mustJSON(t, reference.Mounts); got != want {
			t.Errorf("the image changed the mounts:\n%s", got)
		}
	})
}

// FuzzRequest: a container's configuration straight from the wire never
// panics the builder.
func FuzzRequest(f *testing.F) {
	rich := testInput()
	makeRich(&rich)
	f.Add(mustJSON(f, rich.Container))
	f.Add(`{"metadata":{"name":"x"},"image":{"image":"y"},"mounts":[null],"devices":[null],"envs":[null]}`)
	f.Add(`{"metadata":{"name":"x"},"image":{"image":"y"},"linux":{"security_context":{"capabilities":{"add_capabilities":["ALL"]}}}}`)
	f.Fuzz(func(t *testing.T, data string) {
		in := testInput()
		in.Container = &cri.ContainerConfig{}
		if json.Unmarshal([]byte(data), in.Container) != nil {
			return
		}
		in.MountSources = make([]string, len(in.Container.Mounts))
		for i := range in.MountSources {
			in.MountSources[i] = "/source"
		}
		in.Devices = make([][]rspec.LinuxDevice, len(in.Container.Devices))
		s, err := Container(in)
		checkSound(t, s, err)
	})
}

// checkSound holds for every spec that is handed to a runtime.
func checkSound(t *testing.T, s *rspec.Spec, err error) {
	t.Helper()
	if err != nil {
		if s != nil {
			t.Error("a spec and an error")
		}
		if kind.Is(err, kind.Internal) && !strings.Contains(err.Error(), "was not read") {
			t.Errorf("internal error: %v", err)
		}
		return
	}
	if len(s.Process.Args) == 0 || s.Process.Args[0] == "" || !path.IsAbs(s.Process.Cwd) || path.Clean(s.Process.Cwd) != s.Process.Cwd {
		t.Errorf("args %q, cwd %q", s.Process.Args, s.Process.Cwd)
	}
	for _, e := range s.Process.Env {
		if key, _, ok := strings.Cut(e, "="); !ok || key == "" || strings.IndexByte(e, 0) >= 0 || !utf8.ValidString(e) {
			t.Errorf("variable %q", e)
		}
		if strings.HasPrefix(e, "HOME=") && strings.ContainsAny(e, "\n\r\x00") {
			t.Errorf("V44: %q", e)
		}
	}
	for _, m := range s.Mounts {
		if m.Destination == "/" || !path.IsAbs(m.Destination) || path.Clean(m.Destination) != m.Destination {
			t.Errorf("mount at %q", m.Destination)
		}
	}
}

func mustJSON(t testing.TB, v any) string {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
