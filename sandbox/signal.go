package sandbox

import (
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/spec"
)

// signalAlias are the CRI's second names for a number that has one already.
var signalAlias = map[cri.Signal]bool{
	cri.Signal_SIGNAL_RUNTIME_DEFAULT: true, cri.Signal_SIGNAL_SIGCLD: true,
	cri.Signal_SIGNAL_SIGIOT: true, cri.Signal_SIGNAL_SIGPOLL: true,
}

// criSignal names a signal number as the CRI does.
func criSignal(number int) cri.Signal {
	for value := range cri.Signal_name {
		s := cri.Signal(value)
		if !signalAlias[s] && spec.StopSignal(&cri.ContainerConfig{StopSignal: s}, ocispec.ImageConfig{}) == number {
			return s
		}
	}
	return cri.Signal_SIGNAL_RUNTIME_DEFAULT
}
