package e2e

import (
	"strings"
	"testing"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/test/node"
	"noded.dev/noded/test/oracle"
)

// images begins a test on images: connections to the registry stay open for a while.
func images(t *testing.T) *node.Node {
	t.Helper()
	scope := shared.Scope()
	scope.Restarts = true // its descriptors are not counted
	oracle.Check(t, scope)
	return shared
}

func push(t *testing.T, r *node.Registry, ref, content string) (digest string) {
	t.Helper()
	digest, err := r.Push(ref, v1.ImageConfig{User: "4321:99", Cmd: []string{"/x"}}, []node.File{{Name: "file", Body: content}})
	must(t, err)
	return digest
}

func imageStatus(t *testing.T, n *node.Node, ref string) *cri.Image {
	t.Helper()
	ctx, cancel := node.Context()
	defer cancel()
	r, err := n.Images.ImageStatus(ctx, &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: ref}})
	must(t, err)
	return r.Image
}

func removeImage(t *testing.T, n *node.Node, ref string) {
	t.Helper()
	ctx, cancel := node.Context()
	defer cancel()
	_, err := n.Images.RemoveImage(ctx, &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: ref}})
	must(t, err)
}

// TestImage pulls, finds, lists and removes an image by all its names.
func TestImage(t *testing.T) {
	n := images(t)
	digest := push(t, registry, "life:1", "one")
	if got := imageStatus(t, n, "registry.test/life:1"); got != nil {
		t.Fatalf("before the pull: %v", got)
	}
	ref, err := n.Pull("registry.test/life:1")
	must(t, err)
	for _, name := range []string{"registry.test/life:1", "registry.test/life@" + digest, ref} {
		s := imageStatus(t, n, name)
		if s.GetId() != ref || s.GetSize() == 0 || s.GetUid().GetValue() != 4321 || strings.Join(s.RepoTags, " ") != "registry.test/life:1" || strings.Join(s.RepoDigests, " ") != "registry.test/life@"+digest {
			t.Errorf("%s: %v", name, s)
		}
	}
	again, err := n.Pull("registry.test/life:1")
	must(t, err)
	if again != ref {
		t.Errorf("pulled again: %q, then %q", ref, again)
	}
	ctx, cancel := node.Context()
	defer cancel()
	list, err := n.Images.ListImages(ctx, &cri.ListImagesRequest{Filter: &cri.ImageFilter{Image: &cri.ImageSpec{Image: "registry.test/life:1"}}})
	must(t, err)
	if noded() && len(list.Images) != 1 || list.Images[0].Id != ref {
		t.Errorf("list %v", list.Images)
	}
	removeImage(t, n, "registry.test/life:1")
	removeImage(t, n, "registry.test/life:1")
	if got := imageStatus(t, n, ref); got != nil {
		t.Errorf("removed image: %v", got)
	}
}

// TestImageRetagged pulls a name that has come to mean another image.
func TestImageRetagged(t *testing.T) {
	n := images(t)
	push(t, registry, "moving:1", "one")
	first, err := n.Pull("registry.test/moving:1")
	must(t, err)
	push(t, registry, "moving:1", "two")
	second, err := n.Pull("registry.test/moving:1")
	must(t, err)
	if s := imageStatus(t, n, "registry.test/moving:1"); first == second || s.GetId() != second {
		t.Errorf("first %s, second %s, the name means %s", first, second, s.GetId())
	}
	if s := imageStatus(t, n, first); s == nil || len(s.RepoTags) != 0 {
		t.Errorf("the first image: %v", s)
	}
	removeImage(t, n, first)
	removeImage(t, n, second)
}

// TestImageInUse removes an image under a container, which goes on.
func TestImageInUse(t *testing.T) {
	skipOnPeer(t, "its layers are freed later")
	n := images(t)
	files, err := node.Busybox(node.File{Name: "etc/only-here", Body: "yes\n"})
	must(t, err)
	_, err = registry.Push("used:1", v1.ImageConfig{}, files)
	must(t, err)
	_, err = n.Pull("registry.test/used:1")
	must(t, err)
	p := n.RunPod(t)
	c := p.Run(t, "sleep 1000", func(c *cri.ContainerConfig) { image(c, "registry.test/used:1") })
	removeImage(t, n, "registry.test/used:1")
	if got := c.Shell(t, "cat /etc/only-here"); got != "yes\n" {
		t.Errorf("file of the removed image: %q", got)
	}
}

// TestPullErrors checks how refusals are told.
func TestPullErrors(t *testing.T) {
	skipOnPeer(t, "its codes differ")
	n := images(t)
	for ref, want := range map[string][]codes.Code{
		"registry.test/nothing:1":            {codes.NotFound},
		"registry.test/busybox:no":           {codes.NotFound},
		"UPPER CASE":                         {codes.InvalidArgument},
		"":                                   {codes.InvalidArgument},
		"registry.test/busybox@sha256:short": {codes.InvalidArgument},
	} {
		_, err := n.Pull(ref)
		if err == nil {
			t.Errorf("%q: no error", ref)
		}
		wantCode(t, err, want...)
	}
}

// TestPullTogether pulls one image many times at once.
func TestPullTogether(t *testing.T) {
	n := images(t)
	push(t, registry, "together:1", strings.Repeat("much ", 1<<20))
	ref := same(t, 16, func() (string, error) { return n.Pull("registry.test/together:1") })
	removeImage(t, n, ref)
}

// TestPullAuth pulls from a registry that asks for a password.
func TestPullAuth(t *testing.T) {
	n := images(t)
	closed, err := node.StartRegistry(&node.Login{User: "me", Pass: "secret", Hash: "$2b$04$gNSYucx1WPjkUFQCwv9yBeFuHxaTl2DBQQUm0ZLjrPIVmkKRmHLxy"})
	must(t, err)
	t.Cleanup(func() { closed.Close() })
	push(t, closed, "private:1", "hidden")
	must(t, n.Mirror("closed.test", closed))
	pull := func(auth *cri.AuthConfig) error {
		ctx, cancel := node.Context()
		defer cancel()
		_, err := n.Images.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: "closed.test/private:1"}, Auth: auth})
		return err
	}
	for _, auth := range []*cri.AuthConfig{nil, {Username: "me", Password: "wrong-canary"}} {
		err := pull(auth)
		if err == nil || strings.Contains(err.Error(), "wrong-canary") {
			t.Errorf("with %v: %v", auth.GetUsername(), err)
		}
		if noded() {
			wantCode(t, err, codes.Unauthenticated, codes.PermissionDenied)
		}
	}
	must(t, pull(&cri.AuthConfig{Username: "me", Password: "secret"}))
	must(t, pull(&cri.AuthConfig{Auth: "bWU6c2VjcmV0"}))
	removeImage(t, n, "closed.test/private:1")
}

// TestImageFsInfo measures the image store.
func TestImageFsInfo(t *testing.T) {
	skipOnPeer(t, "it measures every ten seconds")
	n := images(t)
	ctx, cancel := node.Context()
	defer cancel()
	info := func() *cri.FilesystemUsage {
		r, err := n.Images.ImageFsInfo(ctx, &cri.ImageFsInfoRequest{})
		must(t, err)
		if len(r.ImageFilesystems) != 1 || r.ImageFilesystems[0].GetFsId().GetMountpoint() == "" || r.ImageFilesystems[0].GetInodesUsed().GetValue() == 0 {
			t.Fatalf("info %v", r)
		}
		return r.ImageFilesystems[0]
	}
	before := info().UsedBytes.GetValue()
	push(t, registry, "big:1", strings.Repeat("large ", 1<<20))
	ref, err := n.Pull("registry.test/big:1")
	must(t, err)
	if grown := info().UsedBytes.GetValue() - before; grown < 6<<20 || grown > 16<<20 {
		t.Errorf("an image of 6 MiB made the store grow by %d bytes", grown)
	}
	removeImage(t, n, ref)
	node.Eventually(t, "space is free again", 5*time.Second, func() bool { return info().UsedBytes.GetValue() <= before+1<<20 })
}
