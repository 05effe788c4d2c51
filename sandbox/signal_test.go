package sandbox

import (
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/spec"
)

// Every signal of the CRI finds its own name back from its number.
func TestSignalNames(t *testing.T) {
	for value := range cri.Signal_name {
		s := cri.Signal(value)
		n := spec.StopSignal(&cri.ContainerConfig{StopSignal: s}, ocispec.ImageConfig{})
		if back := criSignal(n); back != s && !signalAlias[s] {
			t.Errorf("%v is %d, which is called %v", s, n, back)
		}
	}
}
