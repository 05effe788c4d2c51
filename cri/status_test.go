package cri

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	api "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/imagestore"
	"noded.dev/noded/sandbox"
)

// addHandlers adds usable runtime handlers. It needs no name for their type,
// which is package runtime's.
func addHandlers(st *sandbox.Status, names ...string) {
	st.Handlers = slices.Grow(st.Handlers, len(names))[:len(names)]
	for i, name := range names {
		st.Handlers[i].Name, st.Handlers[i].Usable, st.Handlers[i].RRO = name, true, true
	}
}

func TestVersion(t *testing.T) {
	e := newEdge(t)
	v, err := e.runtime.Version(t.Context(), &api.VersionRequest{})
	if err != nil || v.RuntimeName != "noded" || v.RuntimeVersion != "1.2.3" || v.RuntimeApiVersion != "v1" {
		t.Errorf("got %v, %v", v, err)
	}
	for in, want := range map[string]string{
		"v1.2.3": "1.2.3", "1.2.3-rc.1+build": "1.2.3-rc.1+build", "dev": "0.0.0-build-dev", "": "0.0.0", "01.2.3": "0.0.0-build-01-2-3", "(devel)": "0.0.0-build-devel",
	} {
		if got := semver(in); got != want || !semverText.MatchString(got) {
			t.Errorf("semver(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestStatus(t *testing.T) {
	e := newEdge(t)
	e.sandboxes.status = sandbox.Status{NetworkError: errors.New("no CNI configuration"), DefaultHandler: "runc"}
	addHandlers(&e.sandboxes.status, "runc", "other", "crun")
	crun := &e.sandboxes.status.Handlers[2]
	crun.Usable, crun.Problem = false, "too old"
	st, err := e.runtime.Status(t.Context(), &api.StatusRequest{Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	runtimeReady, network := st.Status.Conditions[0], st.Status.Conditions[1]
	if !runtimeReady.Status || runtimeReady.Type != "RuntimeReady" {
		t.Errorf("got %v", runtimeReady)
	}
	if network.Status || network.Type != "NetworkReady" || network.Reason == "" || network.Message != "no CNI configuration" {
		t.Errorf("got %v", network)
	}
	var names []string
	for _, h := range st.RuntimeHandlers {
		names = append(names, h.Name)
		if !h.Features.RecursiveReadOnlyMounts {
			t.Errorf("%q has no features", h.Name)
		}
	}
	if got := strings.Join(names, ","); got != "runc,,other" {
		t.Errorf("handlers %q", got)
	}
	for key, want := range map[string]string{"version": "1.2.3", "handlers": "too old", "config": "/var/lib/noded"} {
		if !strings.Contains(st.Info[key], want) {
			t.Errorf("info %q is %q", key, st.Info[key])
		}
	}
	if st, err := e.runtime.Status(t.Context(), &api.StatusRequest{}); err != nil || len(st.Info) > 0 {
		t.Errorf("got %v, %v", st.GetInfo(), err)
	}
	c, err := e.runtime.RuntimeConfig(t.Context(), &api.RuntimeConfigRequest{})
	if err != nil || c.Linux.CgroupDriver != api.CgroupDriver_CGROUPFS {
		t.Errorf("got %v, %v", c, err)
	}
}

func TestWatchPulls(t *testing.T) {
	e := newEdge(t)
	want := imagestore.Progress{
		Reference: "docker.io/library/busybox:latest", Host: "registry-1.docker.io",
		Done: 1 << 40, Total: 1 << 41, Layers: 3, Ready: 1, Status: "pulling",
	}
	e.images.pulls = []imagestore.Progress{{Reference: "docker.io/library/alpine:latest"}, want}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	seen := 0
	err := WatchPulls(ctx, e.conn, "busybox", func(p imagestore.Progress) {
		seen++
		if p != want {
			t.Errorf("got %+v, want %+v", p, want)
		}
		if seen == 2 {
			cancel()
			return
		}
		e.images.mu.Lock()
		defer e.images.mu.Unlock()
		want.Done++
		e.images.pulls = []imagestore.Progress{want}
	})
	if err != nil || seen != 2 {
		t.Errorf("saw %d, %v", seen, err)
	}
}

func TestNames(t *testing.T) {
	const full = "docker.io/library/busybox:latest"
	for ref, want := range map[string]bool{
		"": true, full: true, "busybox": true, "library/busybox": true, "docker.io/library/busybox": true,
		"busybox:latest": true, "box": false, "busybox:1": false, "alpine": false,
	} {
		if got := names(ref, full); got != want {
			t.Errorf("names(%q) = %v", ref, got)
		}
	}
}
