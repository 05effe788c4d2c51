package cri

import (
	"context"
	"encoding/json"
	"errors"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	api "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/imagestore"
	"noded.dev/noded/internal/kind"
)

func busybox() imagestore.Image {
	image := imagestore.Image{
		ID: "sha256:b", Tags: []string{"docker.io/library/busybox:latest"},
		Digests: []string{"docker.io/library/busybox@sha256:m"}, Size: 100, Manifest: "sha256:m",
	}
	image.Config.Config.User = "1000:1000"
	image.Config.Config.Env = []string{"PATH=/bin"}
	return image
}

func TestImages(t *testing.T) {
	e := newEdge(t)
	ctx := t.Context()
	e.images.images = map[string]imagestore.Image{"busybox": busybox()}
	spec := func(ref string) *api.ImageSpec { return &api.ImageSpec{Image: ref} }

	for _, c := range []struct {
		filter *api.ImageFilter
		want   int
	}{{nil, 1}, {&api.ImageFilter{}, 1}, {&api.ImageFilter{Image: spec("busybox")}, 1}, {&api.ImageFilter{Image: spec("alpine")}, 0}} {
		list, err := e.image.ListImages(ctx, &api.ListImagesRequest{Filter: c.filter})
		if err != nil || len(list.Images) != c.want {
			t.Errorf("list %v: %v, %v", c.filter, list, err)
		}
	}

	resp, err := e.image.ImageStatus(ctx, &api.ImageStatusRequest{Image: spec("busybox"), Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	i := resp.Image
	if i.Id != "sha256:b" || len(i.RepoTags) != 1 || len(i.RepoDigests) != 1 || i.Size != 100 || i.Uid.GetValue() != 1000 || i.Username != "" {
		t.Errorf("got %v", i)
	}
	var info struct{ ImageSpec ocispec.Image }
	if err := json.Unmarshal([]byte(resp.Info["info"]), &info); err != nil || len(info.ImageSpec.Config.Env) != 1 {
		t.Errorf("info %q: %v", resp.Info["info"], err)
	}
	if resp, err := e.image.ImageStatus(ctx, &api.ImageStatusRequest{Image: spec("alpine")}); err != nil || resp.Image != nil {
		t.Errorf("absent: %v, %v", resp, err)
	}
	for _, bad := range []*api.ImageSpec{nil, spec(""), spec("BAD REF")} {
		if _, err := e.image.ImageStatus(ctx, &api.ImageStatusRequest{Image: bad}); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%v: %v", bad, err)
		}
	}

	addHandlers(&e.sandboxes.status, "runc")
	e.images.remove = func(string) error { return nil }
	for handler, want := range map[string]codes.Code{"": codes.OK, "runc": codes.OK, "kata": codes.NotFound} {
		image := &api.ImageSpec{Image: "busybox", RuntimeHandler: handler}
		_, list := e.image.ListImages(ctx, &api.ListImagesRequest{Filter: &api.ImageFilter{Image: image}})
		_, stat := e.image.ImageStatus(ctx, &api.ImageStatusRequest{Image: image})
		_, remove := e.image.RemoveImage(ctx, &api.RemoveImageRequest{Image: image})
		for _, err := range []error{list, stat, remove} {
			if status.Code(err) != want {
				t.Errorf("handler %q: %v, want %v", handler, err, want)
			}
		}
	}

	fs, err := e.image.ImageFsInfo(ctx, &api.ImageFsInfoRequest{})
	if err != nil || len(fs.ImageFilesystems) != 1 || len(fs.ContainerFilesystems) != 1 || fs.ImageFilesystems[0].UsedBytes.Value != 42 {
		t.Errorf("got %v, %v", fs, err)
	}
}

func TestRemoveImage(t *testing.T) {
	e := newEdge(t)
	for _, c := range []struct {
		ref  string
		fail error
		want codes.Code
	}{
		{"busybox", nil, codes.OK},
		{"gone", kind.Errorf(kind.NotFound, "no image"), codes.OK},
		{"used", kind.Errorf(kind.Precondition, "a container uses it"), codes.FailedPrecondition},
		{"", nil, codes.InvalidArgument},
	} {
		e.images.remove = func(string) error { return c.fail }
		_, err := e.image.RemoveImage(t.Context(), &api.RemoveImageRequest{Image: &api.ImageSpec{Image: c.ref}})
		if status.Code(err) != c.want {
			t.Errorf("%q: %v, want %v", c.ref, err, c.want)
		}
	}
}

func TestPullImage(t *testing.T) {
	e := newEdge(t)
	addHandlers(&e.sandboxes.status, "runc")
	var got *imagestore.Auth
	e.images.pull = func(_ context.Context, ref string, opts imagestore.PullOptions) (imagestore.Image, error) {
		got = opts.Auth
		if ref == "damaged" {
			return imagestore.Image{}, kind.Wrap(kind.DataLoss, errors.New("digest differs"))
		}
		return busybox(), nil
	}
	for name, c := range map[string]struct {
		spec *api.ImageSpec
		auth *api.AuthConfig
		want codes.Code
	}{
		"plain":           {&api.ImageSpec{Image: "busybox"}, nil, codes.OK},
		"empty auth":      {&api.ImageSpec{Image: "busybox"}, &api.AuthConfig{ServerAddress: "x"}, codes.OK},
		"auth":            {&api.ImageSpec{Image: "busybox"}, &api.AuthConfig{Username: "u", Password: "p"}, codes.OK},
		"known handler":   {&api.ImageSpec{Image: "busybox", RuntimeHandler: "runc"}, nil, codes.OK},
		"unknown handler": {&api.ImageSpec{Image: "busybox", RuntimeHandler: "kata"}, nil, codes.NotFound},
		"nil":             {nil, nil, codes.InvalidArgument},
		"damaged":         {&api.ImageSpec{Image: "damaged"}, nil, codes.DataLoss},
	} {
		got = nil
		resp, err := e.image.PullImage(t.Context(), &api.PullImageRequest{Image: c.spec, Auth: c.auth})
		if status.Code(err) != c.want || (err == nil && resp.ImageRef != "sha256:b") {
			t.Errorf("%s: %v, %v; want %v", name, resp, err, c.want)
		}
		if (got != nil) != (name == "auth") {
			t.Errorf("%s: credentials %v", name, got)
		}
	}
}

// TestImageUser: no number that Kubernetes cannot mean may become a uid, uid 0
// least of all.
func TestImageUser(t *testing.T) {
	for text, want := range map[string]struct {
		uid  int64
		name string
	}{
		"": {-1, ""}, ":5": {-1, ""}, "0": {0, ""}, "0:0": {0, ""}, "1000": {1000, ""}, "1000:staff": {1000, ""},
		"2147483647": {1<<31 - 1, ""}, "2147483648": {-1, "2147483648"}, "2147483648:0": {-1, "2147483648"},
		"4294967296": {-1, "4294967296"}, "99999999999999999999": {-1, "99999999999999999999"},
		"-1": {-1, "-1"}, "+0": {-1, "+0"}, "0x0": {-1, "0x0"}, " 0": {-1, " 0"}, "0 ": {-1, "0 "},
		"nobody": {-1, "nobody"}, "nobody:nogroup": {-1, "nobody"}, "٠": {-1, "٠"},
	} {
		if uid, name := imageUser(text); uid != want.uid || name != want.name {
			t.Errorf("imageUser(%q) = %d, %q; want %d, %q", text, uid, name, want.uid, want.name)
		}
	}
}
