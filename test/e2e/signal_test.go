package e2e

import (
	"strings"
	"testing"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/test/node"
)

// TestStopSignal stops containers by the signal of the request, else of the
// image, else SIGTERM; status tells which one it is.
func TestStopSignal(t *testing.T) {
	skipOnPeer(t, "it is older than this")
	n := start(t)
	files, err := node.Busybox()
	must(t, err)
	for tag, signal := range map[string]string{"int": "SIGINT", "rt": "SIGRTMIN+3", "number": "40", "bare": "quit", "bad": "SIGNONE"} {
		_, err := registry.Push("signal:"+tag, v1.ImageConfig{StopSignal: signal}, files)
		must(t, err)
		ref := "registry.test/signal:" + tag
		_, err = n.Pull(ref)
		must(t, err)
		t.Cleanup(func() {
			ctx, cancel := node.Context()
			defer cancel()
			_, err := n.Images.RemoveImage(ctx, &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: ref}})
			must(t, err)
		})
	}
	p := n.RunPod(t)
	// The shell says which of these signals came first.
	const script = "for s in INT QUIT TERM USR1 37 40 64; do trap \"echo $s; exit 3\" $s; done; echo ready; while :; do sleep 0.05; done"
	for name, c := range map[string]struct {
		image string
		asked cri.Signal
		want  string
		told  cri.Signal
	}{
		"neither":             {"", cri.Signal_SIGNAL_RUNTIME_DEFAULT, "TERM", cri.Signal_SIGNAL_SIGTERM},
		"image":               {"int", cri.Signal_SIGNAL_RUNTIME_DEFAULT, "INT", cri.Signal_SIGNAL_SIGINT},
		"request over image":  {"int", cri.Signal_SIGNAL_SIGUSR1, "USR1", cri.Signal_SIGNAL_SIGUSR1},
		"real-time of image":  {"rt", cri.Signal_SIGNAL_RUNTIME_DEFAULT, "37", cri.Signal_SIGNAL_SIGRTMINPLUS3},
		"number of image":     {"number", cri.Signal_SIGNAL_RUNTIME_DEFAULT, "40", cri.Signal_SIGNAL_SIGRTMINPLUS6},
		"image without SIG":   {"bare", cri.Signal_SIGNAL_RUNTIME_DEFAULT, "QUIT", cri.Signal_SIGNAL_SIGQUIT},
		"image's is none":     {"bad", cri.Signal_SIGNAL_RUNTIME_DEFAULT, "TERM", cri.Signal_SIGNAL_SIGTERM},
		"real-time asked for": {"", cri.Signal_SIGNAL_SIGRTMAX, "64", cri.Signal_SIGNAL_SIGRTMAX},
		"second name":         {"", cri.Signal_SIGNAL_SIGRTMINPLUS6, "40", cri.Signal_SIGNAL_SIGRTMINPLUS6},
	} {
		t.Run(name, func(t *testing.T) {
			ctr := p.Run(t, script, func(config *cri.ContainerConfig) {
				config.StopSignal = c.asked
				if c.image != "" {
					image(config, "registry.test/signal:"+c.image)
				}
			})
			if got := ctr.Status(t).StopSignal; got != c.told {
				t.Errorf("status tells %v, want %v", got, c.told)
			}
			node.Eventually(t, "container is ready", 10*time.Second, func() bool { return ctr.Log(t).Text() != "" })
			must(t, ctr.Stop(20*time.Second))
			if s := ctr.Status(t); s.ExitCode != 3 || strings.TrimPrefix(ctr.Log(t).Text(), "ready\n") != c.want+"\n" {
				t.Errorf("code %d, log %q, want %s", s.ExitCode, ctr.Log(t).Text(), c.want)
			}
		})
	}
}
