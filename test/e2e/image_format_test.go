package e2e

import (
	"archive/tar"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/test/node"
	"noded.dev/noded/test/testimage"
)

// shell are the entries of an image that has a shell and little else.
func shell(t *testing.T) []testimage.Entry {
	t.Helper()
	binary, err := os.ReadFile("/bin/busybox")
	must(t, err)
	entries := []testimage.Entry{{Name: "bin/"}, {Name: "bin/busybox", Body: string(binary), Mode: 0o755}}
	for _, name := range []string{"sh", "cat", "ls", "sleep", "wc", "true"} {
		entries = append(entries, testimage.Entry{Name: "bin/" + name, Type: tar.TypeSymlink, Link: "busybox"})
	}
	return entries
}

func layer(t *testing.T, entries ...testimage.Entry) testimage.Layer {
	t.Helper()
	l, err := testimage.NewLayer(testimage.Gzip, entries...)
	must(t, err)
	return l
}

// pushLayers pushes an image of the layers and pulls it.
func pushLayers(t *testing.T, n *node.Node, name string, layers ...testimage.Layer) (ref, id string) {
	t.Helper()
	img, err := testimage.New(&ocispec.ImageConfig{Env: []string{"PATH=/bin"}}, layers...)
	must(t, err)
	must(t, testimage.Push(registry.Host, name, "1", img))
	ref = "registry.test/" + name + ":1"
	id, err = n.Pull(ref)
	must(t, err)
	t.Cleanup(func() { removeImage(t, n, id) })
	if id != img.ID() {
		t.Errorf("%s has the id %s, its config %s", ref, id, img.ID())
	}
	return ref, id
}

// TestImageSeekable runs images whose layers are in the formats for lazy
// pulling: they are ordinary archives with an index at their end.
func TestImageSeekable(t *testing.T) {
	n := images(t)
	p := n.RunPod(t)
	for name, build := range map[string]func() (testimage.Layer, error){
		"estargz": func() (testimage.Layer, error) {
			return testimage.EStargz(append(shell(t), testimage.Entry{Name: "file", Body: "content\n"})...)
		},
		"chunked": func() (testimage.Layer, error) {
			return testimage.Chunked(0, append(shell(t), testimage.Entry{Name: "file", Body: "content\n"})...)
		},
		"chunked-large-index": func() (testimage.Layer, error) {
			return testimage.Chunked(9<<20, append(shell(t), testimage.Entry{Name: "file", Body: "content\n"})...)
		},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := build()
			must(t, err)
			ref, _ := pushLayers(t, n, "seekable-"+name, l)
			c := p.Run(t, "sleep 1000", func(c *cri.ContainerConfig) { c.Metadata.Name = name; image(c, ref) })
			if got := c.Shell(t, "cat /file"); got != "content\n" {
				t.Errorf("file: %q", got)
			}
			must(t, c.Remove())
		})
	}
}

// TestImageSeekableDamaged: the index is part of the blob's digest as all of
// it, and the diff id covers what is unpacked.
func TestImageSeekableDamaged(t *testing.T) {
	skipOnPeer(t, "its codes differ")
	n := images(t)
	for name, damage := range map[string]func(*testimage.Layer){
		"diff id of another tar": func(l *testimage.Layer) { l.DiffID = layer(t, testimage.Entry{Name: "x"}).DiffID },
		"a frame behind the end": func(l *testimage.Layer) {
			more, err := testimage.Chunked(0, testimage.Entry{Name: "late", Body: "x"})
			must(t, err)
			l.Blob = append(l.Blob, more.Blob...)
		},
	} {
		l, err := testimage.Chunked(0, testimage.Entry{Name: "file", Body: "content\n"})
		must(t, err)
		damage(&l)
		img, err := testimage.New(nil, l)
		must(t, err)
		must(t, testimage.Push(registry.Host, "seekable-damaged", "1", img))
		_, err = n.Pull("registry.test/seekable-damaged:1")
		if err == nil {
			t.Errorf("%s: no error", name)
			continue
		}
		wantCode(t, err, codes.DataLoss)
	}
}

// TestImageLayers runs images of 1, 127 and 500 layers, the most that overlayfs
// stacks.
func TestImageLayers(t *testing.T) {
	n := images(t)
	p := n.RunPod(t)
	for _, count := range []int{1, 127, 500} {
		t.Run(fmt.Sprint(count), func(t *testing.T) {
			layers := []testimage.Layer{layer(t, append(shell(t), testimage.Entry{Name: "d/"})...)}
			for i := 1; i < count; i++ {
				layers = append(layers, layer(t, testimage.Entry{Name: "d/"}, testimage.Entry{Name: fmt.Sprintf("d/%d", i), Body: "x"},
					testimage.Entry{Name: "d/last", Body: fmt.Sprint(i)}))
			}
			ref, id := pushLayers(t, n, fmt.Sprintf("layers-%d", count), layers...)
			if s := imageStatus(t, n, ref); s.GetId() != id || s.GetSize() == 0 {
				t.Errorf("status %v", s)
			}
			c := p.Run(t, "sleep 1000", func(c *cri.ContainerConfig) { c.Metadata.Name = fmt.Sprintf("of-%d", count); image(c, ref) })
			want := fmt.Sprintf("%d\n", max(count, 1)-1+min(count-1, 1)) // a file of each further layer, and "last"
			if got := strings.TrimSpace(c.Shell(t, "ls /d | wc -l")) + "\n"; got != want {
				t.Errorf("files %q, want %q", got, want)
			}
			shortMountinfo(t)
			if count > 1 {
				if got := c.Shell(t, "cat /d/last"); got != fmt.Sprint(count-1) {
					t.Errorf("the topmost layer's file: %q", got)
				}
			}
			must(t, c.Remove())
		})
	}
}

// shortMountinfo checks that no mount takes a line that readers of mountinfo
// cannot hold: the OCI runtime and the kubelet then see no mounts at all.
func shortMountinfo(t *testing.T) {
	t.Helper()
	data, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	for line := range strings.Lines(string(data)) {
		if len(line) > 16<<10 {
			t.Errorf("a mount takes %d bytes in mountinfo: %.300s", len(line), line)
		}
	}
}

// TestImageLayersTooMany names the limit.
func TestImageLayersTooMany(t *testing.T) {
	skipOnPeer(t, "it has no limit before the mount")
	n := images(t)
	layers := slices.Repeat([]testimage.Layer{layer(t, testimage.Entry{Name: "file"})}, 501)
	img, err := testimage.New(nil, layers...)
	must(t, err)
	img.Layers = layers[:1]
	must(t, testimage.Push(registry.Host, "layers-501", "1", img))
	_, err = n.Pull("registry.test/layers-501:1")
	wantCode(t, err, codes.InvalidArgument)
	if err == nil || !strings.Contains(err.Error(), "layers = 500") {
		t.Errorf("error %v", err)
	}
}

// TestImageEmpty pulls and lists an image without layers. What its root
// filesystem lacks shows when the command is to start.
func TestImageEmpty(t *testing.T) {
	n := images(t)
	ref, id := pushLayers(t, n, "layers-0")
	if s := imageStatus(t, n, ref); s.GetId() != id || s.GetSize() == 0 || len(s.RepoTags) != 1 {
		t.Errorf("status %v", s)
	}
	p := n.RunPod(t)
	c := p.Create(t, "sleep 1", func(c *cri.ContainerConfig) { image(c, ref) })
	ctx, cancel := node.Context()
	defer cancel()
	_, err := n.Runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: c.ID})
	if err == nil || !strings.Contains(err.Error(), "/bin/sh") {
		t.Errorf("start: %v", err)
	}
	status := c.Status(t)
	if code := status.ExitCode; code != 127 && code != 128 || status.State != cri.ContainerState_CONTAINER_EXITED {
		t.Errorf("state %v, exit code %d", status.State, code)
	}
	must(t, c.Remove())
}

// TestImageLimits: what is larger than any honest manifest, index or config is
// refused with the limit's name and value.
func TestImageLimits(t *testing.T) {
	skipOnPeer(t, "its limits differ")
	n := images(t)
	l := layer(t, testimage.Entry{Name: "file", Body: "x"})
	img, err := testimage.New(nil, l)
	must(t, err)
	note := func(bytes int) string { return fmt.Sprintf(`,"annotations":{"note":%q}}`, strings.Repeat("n", bytes)) }
	long := img
	long.Manifest = []byte(strings.TrimSuffix(string(img.Manifest), "}") + note(1<<20))
	short := img
	short.Manifest = []byte(strings.TrimSuffix(string(img.Manifest), "}") + note(1<<20-len(img.Manifest)-len(note(0))+1))
	config, err := testimage.WithConfig([]byte(strings.TrimSuffix(string(img.Config), "}")+fmt.Sprintf(`,"author":%q}`, strings.Repeat("n", 8<<20))), l)
	must(t, err)
	for tag, i := range map[string]testimage.Image{"manifest": long, "config": config, "exact": short} {
		must(t, testimage.Push(registry.Host, "limits", tag, i))
	}
	index := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[{"mediaType":%q,"digest":%q,"size":%d,"platform":{"os":"linux","architecture":"amd64"}}]`,
		ocispec.MediaTypeImageIndex, img.MediaType, short.Digest(), len(short.Manifest)) + note(1<<20)
	must(t, testimage.PushManifest(registry.Host, "limits", "index", ocispec.MediaTypeImageIndex, []byte(index)))
	for tag, want := range map[string]string{"manifest": "manifest_bytes = 1048576", "index": "manifest_bytes = 1048576", "config": "config_bytes = 8388608"} {
		_, err := n.Pull("registry.test/limits:" + tag)
		wantCode(t, err, codes.ResourceExhausted)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", tag, err)
		}
	}
	if len(short.Manifest) != 1<<20 {
		t.Fatalf("the largest manifest has %d bytes", len(short.Manifest))
	}
	id, err := n.Pull("registry.test/limits:exact")
	must(t, err)
	removeImage(t, n, id)
}
