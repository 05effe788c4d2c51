package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/test/node"
)

// imageVolume mounts an image, or a part of it, at /volume.
func imageVolume(name, sub string, options ...string) func(*cri.ContainerConfig) {
	return func(c *cri.ContainerConfig) {
		c.Mounts = append(c.Mounts, &cri.Mount{ContainerPath: "/volume", Image: &cri.ImageSpec{Image: name}, ImageSubPath: sub, Readonly: true, MountOptions: options})
	}
}

// pushVolume makes an image of data, with links that try to lead out of it.
func pushVolume(t *testing.T, n *node.Node, ref string) (id string) {
	t.Helper()
	_, err := registry.Push(ref, v1.ImageConfig{Cmd: []string{"/x"}}, []node.File{
		{Name: "./", Mode: 0o750, UID: 7}, {Name: "data/", Mode: 0o755}, {Name: "data/file", Body: "content\n"},
		{Name: "data/tool", Body: "#!/bin/sh\necho ran\n", Mode: 0o4755}, {Name: "inside", Link: "/data"},
		{Name: "out", Link: "../../../../../../../../../../etc"}, {Name: "proc", Link: "/proc/self/root"},
	})
	must(t, err)
	id, err = n.Pull("registry.test/" + ref)
	must(t, err)
	return id
}

// TestImageVolume mounts an image as the kubelet does, by what the pull returned.
func TestImageVolume(t *testing.T) {
	skipOnPeer(t, "it is older than this")
	n := images(t)
	id := pushVolume(t, n, "volume:1")
	p := n.RunPod(t)
	c := p.Run(t, "sleep 1000", imageVolume(id, ""), func(c *cri.ContainerConfig) {
		c.Mounts = append(c.Mounts,
			&cri.Mount{ContainerPath: "/folder", Image: &cri.ImageSpec{Image: "registry.test/volume:1"}, ImageSubPath: "inside"},
			&cri.Mount{ContainerPath: "/file", Image: &cri.ImageSpec{Image: id}, ImageSubPath: "inside/file"})
	})
	for script, want := range map[string]string{
		"cat /volume/data/file /folder/file /file":                                                       "content\ncontent\ncontent\n",
		"stat -c '%a %u' /volume":                                                                        "750 7\n",
		"touch /volume/x 2>/dev/null || echo no":                                                         "no\n",
		"echo x 2>/dev/null >/file || echo no":                                                           "no\n",
		"/volume/data/tool 2>/dev/null || echo no":                                                       "no\n",
		"mount -o remount,rw /volume 2>/dev/null || echo no":                                             "no\n",
		"awk '$2~/^.(volume|folder|file)$/{print $4}' /proc/mounts | grep -c '^ro,nosuid,nodev,noexec,'": "3\n",
	} {
		if got := c.Shell(t, script); got != want {
			t.Errorf("%s: %q, want %q", script, got, want)
		}
	}
	if m := c.Status(t).Mounts; len(m) != 3 || m[0].Image.GetImage() != id || m[1].ImageSubPath != "inside" {
		t.Errorf("status tells %v", m)
	}

	// The image may go; what is mounted of it stays until the container goes.
	removeImage(t, n, id)
	if got := c.Shell(t, "cat /volume/data/file"); got != "content\n" {
		t.Errorf("file of the removed image: %q", got)
	}
	must(t, c.Remove())
	node.Eventually(t, "the image's only layer is deleted", 5*time.Second, func() bool {
		found, err := filepath.Glob(filepath.Join(n.Root, "images/*/*/fs/data/tool"))
		must(t, err)
		return len(found) == 0
	})
}

// TestImageVolumeRefused asks for what no image has, and for ways out of it.
func TestImageVolumeRefused(t *testing.T) {
	skipOnPeer(t, "it is older than this")
	n := images(t)
	id := pushVolume(t, n, "volume:2")
	p := n.RunPod(t)
	for name, c := range map[string]struct {
		mount *cri.Mount
		want  codes.Code
		text  string // the marker that the kubelet wants at the beginning
	}{
		"no such image":   {&cri.Mount{Image: &cri.ImageSpec{Image: "registry.test/none:1"}}, codes.NotFound, "ImageVolumeMountFailed"},
		"no such path":    {&cri.Mount{Image: &cri.ImageSpec{Image: id}, ImageSubPath: "data/none"}, codes.InvalidArgument, "ImageVolumeMountFailed"},
		"below a file":    {&cri.Mount{Image: &cri.ImageSpec{Image: id}, ImageSubPath: "data/file/x"}, codes.InvalidArgument, "ImageVolumeMountFailed"},
		"link out":        {&cri.Mount{Image: &cri.ImageSpec{Image: id}, ImageSubPath: "out/passwd"}, codes.InvalidArgument, "ImageVolumeMountFailed"},
		"link to /proc":   {&cri.Mount{Image: &cri.ImageSpec{Image: id}, ImageSubPath: "proc/etc"}, codes.InvalidArgument, "ImageVolumeMountFailed"},
		"dots":            {&cri.Mount{Image: &cri.ImageSpec{Image: id}, ImageSubPath: "data/../../.."}, codes.InvalidArgument, ""},
		"absolute":        {&cri.Mount{Image: &cri.ImageSpec{Image: id}, ImageSubPath: "/data"}, codes.InvalidArgument, ""},
		"and a host path": {&cri.Mount{Image: &cri.ImageSpec{Image: id}, HostPath: "/tmp"}, codes.InvalidArgument, ""},
		"sub path alone":  {&cri.Mount{HostPath: "/tmp", ImageSubPath: "data"}, codes.InvalidArgument, ""},
		"to take mounts":  {&cri.Mount{Image: &cri.ImageSpec{Image: id}, Propagation: cri.MountPropagation_PROPAGATION_BIDIRECTIONAL}, codes.InvalidArgument, ""},
		"malformed name":  {&cri.Mount{Image: &cri.ImageSpec{Image: "NOT A NAME"}}, codes.InvalidArgument, "ImageVolumeMountFailed"},
	} {
		t.Run(name, func(t *testing.T) {
			config := node.ContainerConfig("c", "true")
			c.mount.ContainerPath = "/volume"
			config.Mounts = []*cri.Mount{c.mount}
			_, err := p.TryCreate(config)
			wantCode(t, err, c.want)
			if text := status.Convert(err).Message(); !strings.HasPrefix(text, c.text) {
				t.Errorf("message %q", text)
			}
		})
	}
	if len(containers(t, n, nil)) != 0 {
		t.Error("containers are left")
	}
	removeImage(t, n, id)
}

// TestImageVolumeRestart kills the daemon under a container with image volumes
// whose image is removed: the volume lives on, and its layers are freed with it.
func TestImageVolumeRestart(t *testing.T) {
	skipOnPeer(t, "it is older than this")
	n := own(t, binary)
	id := pushVolume(t, n, "volume:3")
	p := n.RunPod(t)
	c := p.Run(t, "sleep 1000", imageVolume(id, "data"))
	removeImage(t, n, id)
	n.Kill()
	must(t, n.Launch())
	if got := c.Shell(t, "cat /volume/file"); got != "content\n" {
		t.Errorf("after the restart: %q", got)
	}
	if _, err := os.Stat(filepath.Join(n.Root, "images/containers", c.ID, "volumes/0/root/data/file")); err != nil {
		t.Error(err)
	}
	must(t, c.Remove())
	node.Eventually(t, "the image's only layer is deleted", 5*time.Second, func() bool {
		found, err := filepath.Glob(filepath.Join(n.Root, "images/*/*/fs/data/tool"))
		must(t, err)
		return len(found) == 0
	})
}

// TestArtifactVolume pulls an OCI artifact, lists it and mounts it; it is no
// image that a container could run.
func TestArtifactVolume(t *testing.T) {
	skipOnPeer(t, "it has images only")
	n := images(t)
	digest, err := registry.PushArtifact("model:1", "application/vnd.test.model", []node.File{{Name: "weights.bin", Body: "weights\n"}, {Name: "conf/model.json", Body: "{}\n"}})
	must(t, err)
	id, err := n.Pull("registry.test/model:1")
	must(t, err)
	if s := imageStatus(t, n, "registry.test/model:1"); id != digest || s.GetId() != id || s.Size == 0 || strings.Join(s.RepoDigests, " ") != "registry.test/model@"+digest {
		t.Errorf("pulled as %s: %v", id, s)
	}
	p := n.RunPod(t)
	c := p.Run(t, "sleep 1000", imageVolume(id, ""), func(c *cri.ContainerConfig) {
		c.Mounts = append(c.Mounts, &cri.Mount{ContainerPath: "/one", Image: &cri.ImageSpec{Image: id}, ImageSubPath: "conf/model.json"})
	})
	if got := c.Shell(t, "cd /volume; cat weights.bin conf/model.json /one; stat -c '%a %u' weights.bin; touch x 2>/dev/null || echo no"); got != "weights\n{}\n{}\n644 0\nno\n" {
		t.Errorf("mounted: %q", got)
	}
	config := node.ContainerConfig("c", "true")
	image(config, "registry.test/model:1")
	_, err = p.TryCreate(config)
	wantCode(t, err, codes.InvalidArgument)
	if !strings.Contains(status.Convert(err).Message(), "artifact") {
		t.Error(err)
	}
	removeImage(t, n, "registry.test/model:1")
	if got := c.Shell(t, "cat /volume/weights.bin"); got != "weights\n" {
		t.Errorf("after its removal: %q", got)
	}
}

// TestImageVolumeMapped mounts an image into a pod with a user namespace: its
// files belong to the ids inside.
func TestImageVolumeMapped(t *testing.T) {
	skipOnPeer(t, "Debian's is too old")
	n := images(t)
	id := pushVolume(t, n, "volume:4")
	p := n.RunPod(t, mapped)
	c := p.Run(t, "sleep 1000", imageVolume(id, ""), func(c *cri.ContainerConfig) {
		c.Mounts = append(c.Mounts, &cri.Mount{ContainerPath: "/part", Image: &cri.ImageSpec{Image: id}, ImageSubPath: "inside"})
	})
	if got := c.Shell(t, "stat -c %u:%g:%a /volume /volume/data/file /part; cat /part/file; touch /volume/x 2>/dev/null || echo no"); got != "7:0:750\n0:0:644\n0:0:755\ncontent\nno\n" {
		t.Errorf("mounted: %q", got)
	}
	if got := owner(t, filepath.Join(n.Root, "images/containers", c.ID, "volumes/0/root/data/file")); got != onNode(0, 0) {
		t.Errorf("on the node the file belongs to %s", got)
	}
	must(t, c.Remove())
	removeImage(t, n, id)
}
