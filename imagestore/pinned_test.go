package imagestore

import (
	"testing"

	"noded.dev/noded/internal/kind"
	"noded.dev/noded/internal/steps"
	"noded.dev/noded/test/testimage"
)

func TestPins(t *testing.T) {
	r := &imageRecord{Tags: []string{"registry.k8s.io/pause:3.10"}, Digests: []string{"registry.k8s.io/pause@sha256:ab"}}
	for pattern, want := range map[string]bool{
		"registry.k8s.io/pause:3.10": true, "registry.k8s.io/pause:*": true, "registry.k8s.io/*": true, "*pause*": true, "*": true,
		"registry.k8s.io/pause@sha256:ab": true, "*@sha256:ab": true,
		"": false, "pause": false, "registry.k8s.io/pause": false, "registry.k8s.io/pause:3.1": false,
		"registry.k8s.io/paus?:3.10": false, "registryxk8s.io/pause:3.10": false, "registry.k8s.io/pause:3.10\n": false,
	} {
		if got := newPins([]string{"nothing", pattern}).match(r); got != want {
			t.Errorf("%q: %v, want %v", pattern, got, want)
		}
	}
	if newPins(nil).match(r) {
		t.Error("no pattern pins something")
	}
}

// Pins hold for what is there, for what is pulled, and are replaced at once.
func TestSetPinned(t *testing.T) {
	f := newFake(t)
	f.add("v1", image(t, must[testimage.Layer](t)(testimage.NewLayer(testimage.Gzip, testimage.Entry{Name: "f", Body: "1"}))))
	ref := f.host() + "/a/b:v1"
	s := openWith(t, func(o *Options) { o.Pinned = []string{"*/a/b:v1"} })
	img, err := s.Pull(t.Context(), ref, PullOptions{})
	if err != nil || !img.Pinned {
		t.Fatalf("pull: %v, pinned %v", err, img.Pinned)
	}
	for pattern, want := range map[string]bool{"*/other:*": false, "*:v1": true} {
		s.SetPinned([]string{pattern})
		found, err := s.Lookup(ref)
		if err != nil || found.Pinned != want || s.List()[0].Pinned != want {
			t.Errorf("%s: %v, looked up %v, listed %v, want %v", pattern, err, found.Pinned, s.List()[0].Pinned, want)
		}
	}
}

// An image that finds a bug costs its own pull, not the daemon.
func TestPullPanics(t *testing.T) {
	s := &Store{log: quiet()}
	err := steps.Guard(s.panicked, func() error {
		_, err := s.pull(t.Context(), &pull{}, nil) // a store without a client
		return err
	})
	if !kind.Is(err, kind.Internal) {
		t.Errorf("got %v", err)
	}
}
