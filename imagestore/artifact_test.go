package imagestore

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"noded.dev/noded/internal/kind"
	"noded.dev/noded/test/testimage"
)

// blob is one blob of an artifact of a test.
type blob struct {
	title, body, mediaType string
}

func (f *fake) addArtifact(tag string, blobs ...blob) (id string) {
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, ArtifactType: "application/vnd.test.model",
		Config: ocispec.DescriptorEmptyJSON, Layers: []ocispec.Descriptor{},
	}
	for _, b := range blobs {
		if b.mediaType == "" {
			b.mediaType = "application/octet-stream"
		}
		d := ocispec.Descriptor{MediaType: b.mediaType, Digest: digest.FromString(b.body), Size: int64(len(b.body))}
		if b.title != "" {
			d.Annotations = map[string]string{ocispec.AnnotationTitle: b.title}
		}
		m.Layers = append(m.Layers, d)
		f.blobs[d.Digest] = []byte(b.body)
	}
	data, _ := json.Marshal(m)
	f.manifest(tag, m.MediaType, data)
	return digest.FromBytes(data).String()
}

// TestArtifact pulls an OCI artifact, opens the store again and mounts it.
func TestArtifact(t *testing.T) {
	needRoot(t)
	f := newFake(t)
	packed := must[testimage.Layer](t)(testimage.NewLayer(testimage.Gzip, testimage.Entry{Name: "docs/"}, testimage.Entry{Name: "docs/readme", Body: "read"}))
	id := f.addArtifact("v1", blob{"model.bin", "weights", ""}, blob{"deep/down/config.json", "{}", ""}, blob{"same", "weights", ""}, blob{"", "nameless", ""},
		blob{"docs", string(packed.Blob), packed.MediaType}, blob{"", "{}", ocispec.MediaTypeEmptyJSON})
	f.add("base", smallImage(t))
	root := filepath.Join(t.TempDir(), "images")
	ctx := context.Background()
	s := openStore(t, root)
	got := must[Image](t)(s.Pull(ctx, f.host()+"/a:v1", PullOptions{}))
	if got.ID != id || got.Artifact != "application/vnd.test.model" || got.Size <= 0 || len(got.Tags) != 1 {
		t.Errorf("artifact is %+v", got)
	}
	base := must[Image](t)(s.Pull(ctx, f.host()+"/a:base", PullOptions{}))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, root)
	if again := must[Image](t)(s.Lookup(id)); again.Artifact != got.Artifact || again.Size != got.Size {
		t.Errorf("after opening again: %+v", again)
	}
	must[string](t)(s.Mount(ctx, MountRequest{ID: "c1", ImageID: base.ID}))
	dir := must[string](t)(s.MountVolume(ctx, VolumeRequest{ID: "c1", ImageID: id}))
	for name, want := range map[string]string{
		"model.bin": "weights", "deep/down/config.json": "{}", "same": "weights", "docs/readme": "read",
		"sha256-" + digest.FromString("nameless").Encoded(): "nameless",
	} {
		if data, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(data) != want {
			t.Errorf("%s holds %q: %v", name, data, err)
		}
	}
	if entries := must[[]os.DirEntry](t)(os.ReadDir(dir)); len(entries) != 5 {
		t.Errorf("entries %v", entries)
	}
	if err := os.WriteFile(filepath.Join(dir, "new"), nil, 0o600); err == nil {
		t.Error("it can be written to")
	}
	for _, ref := range []string{id, base.ID} {
		if err := s.Remove(ctx, ref); err != nil {
			t.Error(err)
		}
	}
	if err := s.Unmount(ctx, "c1"); err != nil {
		t.Error(err)
	}
	clean(t, s)
}

// TestArtifactRefused pulls artifacts that are malformed or lie; nothing of them stays.
func TestArtifactRefused(t *testing.T) {
	many := make([]blob, 501)
	for i := range many {
		many[i] = blob{fmt.Sprint(i), fmt.Sprint(i), ""}
	}
	for name, c := range map[string]struct {
		blobs []blob
		kind  kind.Kind
	}{
		"title twice":      {[]blob{{"a", "1", ""}, {"a", "2", ""}}, kind.Invalid},
		"title is folder":  {[]blob{{"a", "1", ""}, {"a/b/c", "2", ""}}, kind.Invalid},
		"title goes up":    {[]blob{{"../a", "1", ""}}, kind.Invalid},
		"dots inside":      {[]blob{{"a/../../b", "1", ""}}, kind.Invalid},
		"absolute":         {[]blob{{"/etc/passwd", "1", ""}}, kind.Invalid},
		"only a dot":       {[]blob{{".", "1", ""}}, kind.Invalid},
		"newline":          {[]blob{{"a\nb", "1", ""}}, kind.Invalid},
		"long part":        {[]blob{{strings.Repeat("x", 256), "1", ""}}, kind.Invalid},
		"long title":       {[]blob{{strings.Repeat("x/", 3000) + "x", "1", ""}}, kind.Invalid},
		"too many":         {many, kind.Invalid},
		"not a tar":        {[]blob{{"x", "nonsense", ocispec.MediaTypeImageLayer}}, kind.DataLoss},
		"encrypted":        {[]blob{{"x", "1", "application/x+encrypted"}}, kind.Unimplemented},
		"too large a blob": {[]blob{{"x", strings.Repeat("x", 2<<20), ""}}, kind.Invalid},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			f.addArtifact("v1", c.blobs...)
			s := openWith(t, func(o *Options) { o.Limits.LayerBytes = 1 << 20 })
			_, err := s.Pull(context.Background(), f.host()+"/a:v1", PullOptions{})
			if !kind.Is(err, c.kind) {
				t.Errorf("kind %v: %v", kind.Of(err), err)
			}
			clean(t, s)
		})
	}
	t.Run("other bytes", func(t *testing.T) {
		f := newFake(t)
		f.addArtifact("v1", blob{"x", "what was promised", ""})
		f.blobs[digest.FromString("what was promised")] = []byte("what has been sent")[:17]
		s := openWith(t, nil)
		if _, err := s.Pull(context.Background(), f.host()+"/a:v1", PullOptions{}); !kind.Is(err, kind.DataLoss) && !kind.Is(err, kind.Unavailable) {
			t.Errorf("kind %v: %v", kind.Of(err), err)
		}
		clean(t, s)
	})
}
