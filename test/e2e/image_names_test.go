package e2e

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/test/node"
)

// TestImageShortNames: what people leave out of a name means Docker Hub's
// library and the tag latest.
func TestImageShortNames(t *testing.T) {
	n := images(t)
	push(t, registry, "library/short:latest", "short")
	forms := []string{"short", "short:latest", "library/short", "docker.io/short", "docker.io/library/short:latest"}
	ids := map[string]bool{}
	for _, form := range forms {
		id, err := n.Pull(form)
		must(t, err)
		ids[id] = true
	}
	for _, form := range append(forms, "index.docker.io/library/short") {
		s := imageStatus(t, n, form)
		if s == nil || !ids[s.Id] || len(ids) != 1 || strings.Join(s.RepoTags, " ") != "docker.io/library/short:latest" {
			t.Errorf("%s: %v", form, s)
		}
	}
	removeImage(t, n, "short")
	if s := imageStatus(t, n, "docker.io/library/short"); s != nil {
		t.Errorf("removed by its short name: %v", s)
	}
}

// TestImageTagAndDigest: of a tag and a digest together the digest counts, and
// the tag, which may mean another image by now, is not recorded.
func TestImageTagAndDigest(t *testing.T) {
	n := images(t)
	first := push(t, registry, "both:1", "first")
	second := push(t, registry, "both:1", "second")
	old := "registry.test/both:1@" + first
	id, err := n.Pull(old)
	must(t, err)
	for _, form := range []string{old, "registry.test/both@" + first, id, strings.TrimPrefix(id, "sha256:")[:12]} {
		s := imageStatus(t, n, form)
		if s.GetId() != id || len(s.RepoTags) != 0 || strings.Join(s.RepoDigests, " ") != "registry.test/both@"+first {
			t.Errorf("%s: %v", form, s)
		}
	}
	if s := imageStatus(t, n, "registry.test/both:1"); s != nil {
		t.Errorf("the tag was not pulled: %v", s)
	}
	newer, err := n.Pull("registry.test/both:1")
	must(t, err)
	if newer == id {
		t.Fatal("tag and digest gave the same image")
	}
	for form, want := range map[string]string{
		old: id, "registry.test/both:1": newer, "registry.test/both:nosuch@" + second: newer, "registry.test/both@" + second: newer,
	} {
		if s := imageStatus(t, n, form); s.GetId() != want {
			t.Errorf("%s is %s, want %s", form, s.GetId(), want)
		}
	}
	_, err = n.Pull("registry.test/both:1@sha256:" + strings.Repeat("0", 64))
	wantCode(t, err, codes.NotFound)
	removeImage(t, n, old)
	if s := imageStatus(t, n, id); s != nil {
		t.Errorf("removed by tag and digest: %v", s)
	}
	if s := imageStatus(t, n, "registry.test/both:1"); s.GetId() != newer {
		t.Errorf("the other image: %v", s)
	}
	removeImage(t, n, "registry.test/both@"+second)
	if s := imageStatus(t, n, newer); s != nil {
		t.Errorf("removed by its digest: %v", s)
	}
}

// TestImageOfManyTags: an image is removed with all its tags, by any of them.
func TestImageOfManyTags(t *testing.T) {
	n := images(t)
	push(t, registry, "tags:1", "same")
	push(t, registry, "tags:2", "same")
	push(t, registry, "tags-too:1", "same")
	var id string
	for _, ref := range []string{"tags:1", "tags:2", "tags-too:1"} {
		got, err := n.Pull("registry.test/" + ref)
		must(t, err)
		if id != "" && got != id {
			t.Errorf("%s is %s, not %s", ref, got, id)
		}
		id = got
	}
	s := imageStatus(t, n, id)
	if len(s.GetRepoTags()) != 3 || len(s.GetRepoDigests()) != 2 {
		t.Errorf("names %v, %v", s.GetRepoTags(), s.GetRepoDigests())
	}
	removeImage(t, n, "registry.test/tags:2")
	for _, ref := range append(s.GetRepoTags(), s.GetRepoDigests()...) {
		if imageStatus(t, n, ref) != nil {
			t.Errorf("%s is still there", ref)
		}
		removeImage(t, n, ref)
	}
}

// TestImageUserSpecified: a container shows what the user called its image, and
// the id for comparing.
func TestImageUserSpecified(t *testing.T) {
	n := start(t)
	p := n.RunPod(t)
	s := imageStatus(t, n, "registry.test/busybox:1")
	c := p.Create(t, "true", func(c *cri.ContainerConfig) {
		c.Image = &cri.ImageSpec{Image: s.Id, UserSpecifiedImage: "registry.test/busybox:1", RuntimeHandler: "runc", Annotations: map[string]string{"k": "v"}}
	})
	got := c.Status(t)
	if got.Image.GetImage() != "registry.test/busybox:1" || got.ImageRef != s.Id || got.ImageId != s.Id || got.Image.Annotations["k"] != "v" {
		t.Errorf("status: image %v, ref %s, id %s", got.Image, got.ImageRef, got.ImageId)
	}
	ctx, cancel := node.Context()
	defer cancel()
	list, err := n.Runtime.ListContainers(ctx, &cri.ListContainersRequest{Filter: &cri.ContainerFilter{Id: c.ID}})
	must(t, err)
	if len(list.Containers) != 1 || list.Containers[0].Image.GetImage() != "registry.test/busybox:1" || list.Containers[0].ImageId != s.Id {
		t.Fatalf("list: %v", list.Containers)
	}
	// The kubelet's collector takes an image for unused unless these agree.
	if list.Containers[0].Image.RuntimeHandler != s.Spec.RuntimeHandler {
		t.Errorf("container of the handler %q, image of %q", list.Containers[0].Image.RuntimeHandler, s.Spec.RuntimeHandler)
	}
	must(t, c.Remove())
}

// TestImageRuntimeHandler: an unknown handler is refused by every request.
func TestImageRuntimeHandler(t *testing.T) {
	skipOnPeer(t, "it looks at the handler in pulls only")
	n := images(t)
	p := n.RunPod(t)
	ctx, cancel := node.Context()
	defer cancel()
	spec := &cri.ImageSpec{Image: "registry.test/busybox:1", RuntimeHandler: "nosuch"}
	for name, call := range map[string]func() error{
		"pull":   func() error { _, err := n.Images.PullImage(ctx, &cri.PullImageRequest{Image: spec}); return err },
		"status": func() error { _, err := n.Images.ImageStatus(ctx, &cri.ImageStatusRequest{Image: spec}); return err },
		"remove": func() error { _, err := n.Images.RemoveImage(ctx, &cri.RemoveImageRequest{Image: spec}); return err },
		"list": func() error {
			_, err := n.Images.ListImages(ctx, &cri.ListImagesRequest{Filter: &cri.ImageFilter{Image: spec}})
			return err
		},
		"create": func() error {
			config := node.ContainerConfig("handler", "true")
			config.Image = spec
			_, err := p.TryCreate(config)
			return err
		},
	} {
		err := call()
		if err == nil || !strings.Contains(err.Error(), "nosuch") {
			t.Errorf("%s: %v", name, err)
		}
		wantCode(t, err, codes.NotFound)
	}
	if imageStatus(t, n, "registry.test/busybox:1") == nil {
		t.Error("the image was removed")
	}
}

// configured starts a node with a file of configuration above the usual one.
func configured(t *testing.T, dropIn string) *node.Node {
	t.Helper()
	return node.New(t, node.Options{Binary: binary, Registry: registry, DropIn: dropIn})
}

// hangUp makes the daemon read its configuration and waits until it has.
func hangUp(t *testing.T, n *node.Node, dropIn, logged string) {
	t.Helper()
	before := strings.Count(logOf(t, n), logged)
	must(t, n.WriteDropIn(dropIn))
	must(t, syscall.Kill(n.Pid(), syscall.SIGHUP))
	node.Eventually(t, "the configuration is read", 10*time.Second, func() bool { return strings.Count(logOf(t, n), logged) > before })
}

func logOf(t *testing.T, n *node.Node) string {
	t.Helper()
	data, err := os.ReadFile(n.LogFile())
	must(t, err)
	return string(data)
}

// TestImagePinned: pins are the configuration's, also after a reload and a
// restart, and keep nobody from removing an image by its name.
func TestImagePinned(t *testing.T) {
	skipOnPeer(t, "it is configured otherwise")
	push(t, registry, "pinned:1", "pinned")
	n := configured(t, "[images]\npinned = [\"registry.test/pin*\"]\n")
	_, err := n.Pull("registry.test/pinned:1")
	must(t, err)
	_, err = n.Pull("registry.test/busybox:1")
	must(t, err)
	pinned := func() string {
		ctx, cancel := node.Context()
		defer cancel()
		list, err := n.Images.ListImages(ctx, &cri.ListImagesRequest{})
		must(t, err)
		var names []string
		for _, image := range list.Images {
			if image.Pinned {
				names = append(names, image.RepoTags...)
			}
		}
		slices.Sort(names)
		return strings.Join(names, " ")
	}
	if got := pinned(); got != "registry.test/pinned:1" {
		t.Errorf("pinned at first: %s", got)
	}
	hangUp(t, n, "[images]\npinned = [\"*/busybox:1\"]\n", "changed key is in force")
	if got := pinned(); got != "registry.test/busybox:1" {
		t.Errorf("pinned after a reload: %s", got)
	}
	hangUp(t, n, "[images]\npinned = [\"no-such\"]\n", "configuration is not reloaded")
	if got := pinned(); got != "registry.test/busybox:1" {
		t.Errorf("pinned after a reload of a file with a mistake: %s", got)
	}
	must(t, n.WriteDropIn("[images]\npinned = [\"*\"]\n"))
	n.Kill()
	must(t, n.Launch())
	if got := pinned(); got != "registry.test/busybox:1 registry.test/pinned:1" {
		t.Errorf("pinned after a restart: %s", got)
	}
	removeImage(t, n, "registry.test/pinned:1")
	if got := pinned(); got != "registry.test/busybox:1" {
		t.Errorf("a pinned image was removed by its name, left: %s", got)
	}
}

// TestPullNamespaceCredentials pulls for pods of namespaces with credentials of
// their own from a registry that wants some.
func TestPullNamespaceCredentials(t *testing.T) {
	skipOnPeer(t, "it has none")
	closed, err := node.StartRegistry(&node.Login{User: "me", Pass: "secret", Hash: "$2b$04$gNSYucx1WPjkUFQCwv9yBeFuHxaTl2DBQQUm0ZLjrPIVmkKRmHLxy"})
	must(t, err)
	t.Cleanup(func() { closed.Close() })
	push(t, closed, "private:1", "hidden")
	push(t, registry, "public:1", "open")
	n := configured(t, "[images]\ncredentials_dir = \"NODE/credentials\"\n")
	must(t, n.Mirror("closed.test", closed))
	for name, text := range map[string]string{
		"team.json":       dockerAuth("closed.test", "me:secret"),
		"other.json":      dockerAuth("closed.test", "me:wrong-canary"),
		"broken.json":     "{canary",
		"sub/config.json": dockerAuth("closed.test", "me:secret"),
		"../outside.json": dockerAuth("closed.test", "me:secret"),
	} {
		path := filepath.Join(n.Dir, "credentials", name)
		must(t, os.MkdirAll(filepath.Dir(path), 0o700))
		must(t, os.WriteFile(path, []byte(text), 0o600))
	}
	pull := func(ref, namespace string, auth *cri.AuthConfig) error {
		ctx, cancel := node.Context()
		defer cancel()
		_, err := n.Images.PullImage(ctx, &cri.PullImageRequest{
			Image: &cri.ImageSpec{Image: ref}, Auth: auth,
			SandboxConfig: &cri.PodSandboxConfig{Metadata: &cri.PodSandboxMetadata{Name: "p", Namespace: namespace, Uid: "u"}},
		})
		return err
	}
	must(t, pull("closed.test/private:1", "team", nil))
	must(t, pull("closed.test/private:1", "sub", nil))
	must(t, pull("closed.test/private:1", "other", &cri.AuthConfig{Username: "me", Password: "secret"}))
	must(t, pull("registry.test/public:1", "broken", nil))
	for namespace, want := range map[string]string{"other": "", "none": "", "../outside": "", "broken": "broken.json: it is not valid JSON", "": ""} {
		err := pull("closed.test/private:1", namespace, nil)
		wantCode(t, err, codes.Unauthenticated)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "canary") {
			t.Errorf("namespace %q: %v", namespace, err)
		}
	}
	if log := logOf(t, n); strings.Contains(log, "canary") || strings.Contains(log, "bWU6") {
		t.Error("the daemon's log tells secrets")
	}
}

func dockerAuth(host, login string) string {
	return fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, host, base64.StdEncoding.EncodeToString([]byte(login)))
}
