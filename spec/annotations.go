package spec

import (
	"strings"

	rspec "github.com/opencontainers/runtime-spec/specs-go"
)

// Annotations by which hooks and debugging tools recognise a container; the
// keys are what this field's tools look for.
const (
	annotationPodID         = "io.kubernetes.cri.sandbox-id"
	annotationPodName       = "io.kubernetes.cri.sandbox-name"
	annotationPodNamespace  = "io.kubernetes.cri.sandbox-namespace"
	annotationPodUID        = "io.kubernetes.cri.sandbox-uid"
	annotationContainerName = "io.kubernetes.cri.container-name"
	annotationImageName     = "io.kubernetes.cri.image-name"
)

// unsafeAnnotations change what a runtime or systemd does with the node: unit
// properties (commands run as root), other runtimes' switches, checkpoints.
var unsafeAnnotations = []string{"org.systemd.property.", "run.oci.", "krun.", "org.criu.", "module.wasm", "io.kubernetes.cri."}

// AllowAnnotations picks the annotations that a handler's configuration lets
// through to the runtime. An entry of allow is a whole key, or a prefix that
// ends in "*". Unsafe ones need an entry that names their family.
func AllowAnnotations(annotations map[string]string, allow []string) map[string]string {
	out := map[string]string{}
	for key, value := range annotations {
		for _, pattern := range allow {
			if annotationMatches(key, pattern) {
				out[key] = value
				break
			}
		}
	}
	return out
}

func annotationMatches(key, pattern string) bool {
	prefix, wild := strings.CutSuffix(pattern, "*")
	if !wild {
		return key == pattern
	}
	if !strings.HasPrefix(key, prefix) {
		return false
	}
	for _, family := range unsafeAnnotations {
		if strings.HasPrefix(key, family) && !strings.HasPrefix(prefix, family) {
			return false
		}
	}
	return true
}

// applyAnnotations writes the allowed ones and then noded's own, which win.
func applyAnnotations(in *Input, s *rspec.Spec) error {
	s.Annotations = map[string]string{}
	for _, key := range sortedKeys(in.Annotations) {
		s.Annotations[key] = in.Annotations[key]
	}
	for key, value := range map[string]string{
		annotationPodID:         in.PodID,
		annotationPodName:       in.Pod.GetMetadata().GetName(),
		annotationPodNamespace:  in.Pod.GetMetadata().GetNamespace(),
		annotationPodUID:        in.Pod.GetMetadata().GetUid(),
		annotationContainerName: in.Container.GetMetadata().GetName(),
		annotationImageName:     in.ImageName,
	} {
		if value != "" {
			s.Annotations[key] = value
		}
	}
	return nil
}
