package cri

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	api "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/imagestore"
	"noded.dev/noded/internal/kind"
)

// TestCodes enumerates the table.
func TestCodes(t *testing.T) {
	e := newEdge(t)
	for k, want := range codeOf {
		e.sandboxes.runPod = func(context.Context, *api.PodSandboxConfig, string) (string, error) {
			return "", fmt.Errorf("step: %w", kind.Errorf(k, "cause"))
		}
		_, err := e.runtime.RunPodSandbox(t.Context(), &api.RunPodSandboxRequest{Config: podConfig()})
		if status.Code(err) != want || status.Convert(err).Message() != "step: cause" {
			t.Errorf("kind %d: %v, want %v", k, err, want)
		}
		if c := <-e.calls; c.Code != want.String() || c.Method != "RunPodSandbox" {
			t.Errorf("kind %d: observed %+v", k, c)
		}
	}
	for k := kind.Internal; k <= kind.Deadline; k++ {
		if _, ok := codeOf[k]; !ok {
			t.Errorf("kind %d has no code", k)
		}
	}
}

// TestCallerGone checks that a failure which only follows from the caller's
// going away does not look like a bug or a broken plugin.
func TestCallerGone(t *testing.T) {
	e := newEdge(t)
	e.sandboxes.runPod = func(ctx context.Context, _ *api.PodSandboxConfig, _ string) (string, error) {
		<-ctx.Done()
		return "", kind.Errorf(kind.Aborted, "runc: signal: killed")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	start := time.Now()
	_, err := e.runtime.RunPodSandbox(ctx, &api.RunPodSandboxRequest{Config: podConfig()})
	if status.Code(err) != codes.DeadlineExceeded || time.Since(start) > 250*time.Millisecond {
		t.Errorf("got %v after %v", err, time.Since(start))
	}
	if c := <-e.calls; c.Code != "DeadlineExceeded" && c.Code != "Canceled" {
		t.Errorf("observed %+v", c)
	}
}

func TestPanic(t *testing.T) {
	e := newEdge(t)
	e.sandboxes.runPod = func(context.Context, *api.PodSandboxConfig, string) (string, error) { panic("oh no") }
	for range 2 {
		_, err := e.runtime.RunPodSandbox(t.Context(), &api.RunPodSandboxRequest{Config: podConfig()})
		if status.Code(err) != codes.Internal || !strings.Contains(err.Error(), "oh no") {
			t.Errorf("got %v", err)
		}
	}
	if !strings.Contains(e.log.String(), "interceptor_test.go") {
		t.Error("the log has no stack")
	}
}

// TestSecrets sends a canary in every field of AuthConfig and lets the store
// repeat it in every form, successfully and not.
func TestSecrets(t *testing.T) {
	const canary = "cAnAry/24+bytes=of&secret"
	basic := base64.StdEncoding.EncodeToString([]byte("user:" + canary))
	forms := []string{canary, basic, url.QueryEscape(canary), url.PathEscape(canary)}
	for name, auth := range map[string]*api.AuthConfig{
		"password":       {Username: "user", Password: canary, ServerAddress: "registry.example"},
		"auth":           {Auth: basic},
		"identity token": {IdentityToken: canary},
		"registry token": {RegistryToken: canary},
	} {
		forms := forms
		if auth.IdentityToken+auth.RegistryToken != "" {
			forms = []string{canary, canary, forms[2], forms[3]} // there is no user
		}
		for _, fail := range []bool{true, false} {
			e := newEdge(t)
			e.images.pull = func(_ context.Context, ref string, opts imagestore.PullOptions) (imagestore.Image, error) {
				if opts.Auth == nil {
					t.Error("no credentials arrived")
				}
				if fail {
					return imagestore.Image{}, kind.Errorf(kind.Unauthenticated,
						"GET https://user:%s@registry.example/v2/?token=%s: Authorization: Basic %s: %s refused",
						forms[0], forms[2], forms[1], strings.Join(forms, " "))
				}
				return imagestore.Image{ID: "sha256:1"}, nil
			}
			_, err := e.image.PullImage(t.Context(), &api.PullImageRequest{
				Image: &api.ImageSpec{Image: "registry.example/a"}, Auth: auth,
			})
			if (err != nil) != fail {
				t.Errorf("%s: got %v", name, err)
			}
			if !strings.Contains(e.log.String(), "registry.example/a") {
				t.Error("the log does not name the image")
			}
			for _, form := range forms {
				if err != nil && strings.Contains(err.Error(), form) {
					t.Errorf("%s: the error has the secret as %q: %v", name, form, err)
				}
				if strings.Contains(e.log.String(), form) {
					t.Errorf("%s: the log has the secret as %q", name, form)
				}
			}
		}
	}
}

func TestCleanText(t *testing.T) {
	for in, want := range map[string]string{
		"plain":                                "plain",
		"https://me:pw@host/v2/x: 401":         "https://[hidden]@host/v2/x: 401",
		"https://s3/x?X-Amz-Signature=abc&a=b": "https://s3/x?X-Amz-Signature=[hidden]&a=b",
		"https://gcs/x?a=1&access_token=abc":   "https://gcs/x?a=1&access_token=[hidden]",
		"https://az/x?se=2026&sig=ab%2Fc":      "https://az/x?se=[hidden]&sig=[hidden]",
		"Authorization: Bearer eyJhbGciOi.x.y": "Authorization: Bearer [hidden]",
		"bad \xff byte":                        "bad \uFFFD byte",
		"me@host/path":                         "me@host/path",
	} {
		if got := cleanText(in, nil); got != want {
			t.Errorf("cleanText(%q) = %q, want %q", in, got, want)
		}
	}
	for _, in := range []string{strings.Repeat("x", 1<<20), strings.Repeat("ü", 1<<20), strings.Repeat("\xffx", 1<<20)} {
		got := cleanText(in, nil)
		if len(got) > maxText || !utf8.ValidString(got) || !strings.Contains(got, "bytes more") {
			t.Errorf("cut to %d bytes, valid %v, ends in %q", len(got), utf8.ValidString(got), got[len(got)-40:])
		}
	}
}

// TestPrefixes checks the messages that the kubelet looks into.
func TestPrefixes(t *testing.T) {
	e := newEdge(t)
	e.images.pull = func(context.Context, string, imagestore.PullOptions) (imagestore.Image, error) {
		return imagestore.Image{}, kind.Errorf(kind.Unavailable, "dial tcp: refused")
	}
	_, err := e.image.PullImage(t.Context(), &api.PullImageRequest{Image: &api.ImageSpec{Image: "a"}})
	if st := status.Convert(err); st.Code() != codes.Unknown || !strings.HasPrefix(st.Message(), "RegistryUnavailable: dial tcp") {
		t.Errorf("pull: %v", err)
	}
	for _, marker := range []string{"RROUnsupported", "ImageVolumeMountFailed"} {
		e.sandboxes.createFunc = func(context.Context, string, *api.ContainerConfig) (string, error) {
			return "", fmt.Errorf("mounts: %w", kind.Wrap(kind.Precondition, errors.New(marker+": no")))
		}
		_, err := e.runtime.CreateContainer(t.Context(), &api.CreateContainerRequest{PodSandboxId: "p1", Config: containerConfig()})
		if st := status.Convert(err); st.Code() != codes.FailedPrecondition || !strings.HasPrefix(st.Message(), marker) {
			t.Errorf("create: %v", err)
		}
	}
}

func TestLoggedOnce(t *testing.T) {
	e := newEdge(t)
	e.sandboxes.runPod = func(context.Context, *api.PodSandboxConfig, string) (string, error) {
		return "", kind.Errorf(kind.Aborted, "bridge plugin failed")
	}
	e.runtime.RunPodSandbox(t.Context(), &api.RunPodSandboxRequest{Config: podConfig()})
	log := e.log.String()
	if n := strings.Count(log, "bridge plugin failed"); n != 1 {
		t.Errorf("logged %d times:\n%s", n, log)
	}
	for _, want := range []string{"method=RunPodSandbox", "pod=default/web", "took=", "code=Aborted", "level=warning"} {
		if !strings.Contains(log, want) {
			t.Errorf("the log lacks %q:\n%s", want, log)
		}
	}
}

// What the node does not do has the code by which kubelets know that.
func TestUnimplemented(t *testing.T) {
	e := newEdge(t)
	_, err := e.runtime.CheckpointContainer(t.Context(), &api.CheckpointContainerRequest{ContainerId: "c1", Location: "/x"})
	if status.Code(err) != codes.Unimplemented || !strings.Contains(err.Error(), "switched off") {
		t.Errorf("got %v", err)
	}
}
