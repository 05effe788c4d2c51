package spec

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	rspec "github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/internal/capability"
	"noded.dev/noded/internal/kind"
)

// testInput is an ordinary container of an ordinary pod.
func testInput() Input {
	return Input{
		ID:    "c1d2e3",
		PodID: "aabbccddeeff00112233",
		Pod: &cri.PodSandboxConfig{
			Metadata: &cri.PodSandboxMetadata{Name: "web", Namespace: "default", Uid: "u-1"},
			Hostname: "web-0",
			Linux:    &cri.LinuxPodSandboxConfig{SecurityContext: &cri.LinuxSandboxSecurityContext{}},
		},
		Container: &cri.ContainerConfig{
			Metadata: &cri.ContainerMetadata{Name: "server"},
			Image:    &cri.ImageSpec{Image: "registry.example/web:1"},
			Linux: &cri.LinuxContainerConfig{
				Resources: &cri.LinuxContainerResources{},
				SecurityContext: &cri.LinuxContainerSecurityContext{
					Seccomp: &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Unconfined},
				},
			},
		},
		Image: ocispec.ImageConfig{
			Entrypoint: []string{"/bin/server"}, Cmd: []string{"--port", "80"},
			Env: []string{"PATH=/bin", "MODE=image"}, WorkingDir: "/srv",
		},
		ImageName: "registry.example/web:1",
		User:      User{UID: 0, GID: 0, AdditionalGIDs: []uint32{0}, Home: "/root", Name: "root"},
		Paths: Paths{
			RootFS: "/rootfs", Hosts: "/pod/hosts", Hostname: "/pod/hostname", ResolvConf: "/pod/resolv.conf", Shm: "/pod/shm",
			NetNS: "/ns/net", IPCNS: "/ns/ipc", UTSNS: "/ns/uts",
		},
		Cgroup: "/kubepods/pod1/c1d2e3",
		Facts: Facts{
			Seccomp: true, Capabilities: capability.Names, Swap: true, HugePages: []string{"2MB", "1GB"},
			OOMScoreFloor: -1000, RuntimeSpecMax: "1.3.0", Hostname: "node-7", RRO: true,
		},
	}
}

func mustContainer(t *testing.T, in Input) *rspec.Spec {
	t.Helper()
	s, err := Container(in)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// wantKind fails unless building the input fails with the kind.
func wantKind(t *testing.T, name string, in Input, k kind.Kind) {
	t.Helper()
	_, err := Container(in)
	if err == nil || kind.Of(err) != k {
		t.Errorf("%s: error %v of kind %v, want kind %v", name, err, kind.Of(err), k)
	}
}

// checkGolden compares with testdata/<name>.json; UPDATE_GOLDEN=1 writes it.
func checkGolden(t *testing.T, name string, s *rspec.Spec) {
	t.Helper()
	got, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	got = append(got, '\n')
	file := filepath.Join("testdata", name+".json")
	if os.Getenv("UPDATE_GOLDEN") != "" {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(want) {
		t.Errorf("%s differs; run with UPDATE_GOLDEN=1 and read the difference", file)
	}
}
