package imagestore

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"noded.dev/noded/internal/kind"
	"noded.dev/noded/test/testimage"
)

func TestReferences(t *testing.T) {
	s := openWith(t, nil)
	d := "sha256:" + strings.Repeat("a", 64)
	for _, bad := range []string{
		"", " ", "a/UPPER", "http://reg/a", "a:b:c", "a@sha256:", "a@sha256:abc", "a@SHA256:" + strings.Repeat("a", 64), "a@md5:" + strings.Repeat("a", 32),
		"../../x", "a\x00b", "a\nb", strings.Repeat("a", 4096), "a@sha256:../../../../etc/x", "[::1/a", "-a", "a/", "a:" + strings.Repeat("t", 129),
		"a@" + d + "x", "a@sha512:" + strings.Repeat("a", 64), "a@sha256:" + strings.Repeat("A", 64),
	} {
		if _, err := s.Pull(context.Background(), bad, PullOptions{}); !kind.Is(err, kind.Invalid) {
			t.Errorf("Pull(%q): %v", bad, err)
		}
		if _, err := s.Lookup(bad); !kind.Is(err, kind.Invalid) {
			t.Errorf("Lookup(%q): %v", bad, err)
		}
	}
	for _, good := range []string{"busybox", "busybox:1", "a/b@" + d, "a/b:t@" + d, "[::1]:5000/a", "localhost:5000/a/b:c", d, strings.Repeat("a", 64), "abc"} {
		if _, err := s.Lookup(good); !kind.Is(err, kind.NotFound) {
			t.Errorf("Lookup(%q): %v", good, err)
		}
	}
}

// TestManifests serves manifests that are wrong in one way each.
func TestManifests(t *testing.T) {
	good := smallImage(t)
	var manifest map[string]any
	if err := json.Unmarshal(good.Manifest, &manifest); err != nil {
		t.Fatal(err)
	}
	text := string(good.Manifest)
	change := func(from, to string) string {
		t.Helper()
		if !strings.Contains(text, from) {
			t.Fatalf("%q is not in %s", from, text)
		}
		return strings.Replace(text, from, to, 1)
	}
	layer := good.Layers[0].Descriptor()
	many := func(n int) string {
		d, _ := json.Marshal(layer)
		return change(`"layers":[`, `"layers":[`+strings.Repeat(string(d)+",", n))
	}
	oci := ocispec.MediaTypeImageManifest
	index := ocispec.MediaTypeImageIndex
	cases := []struct {
		name, mediaType, body string
		kind                  kind.Kind
	}{
		{"good", oci, text, -1},
		{"plain file server", "text/plain", text, -1},
		{"no media type in the body", oci, change(`"mediaType":"`+oci+`",`, ""), -1},
		{"no media type at all", "text/plain", change(`"mediaType":"`+oci+`",`, ""), kind.Invalid},
		{"header says index", index, text, kind.Invalid},
		{"body says index", oci, change(oci, index), kind.Invalid},
		{"both manifest and index", oci, change(`"layers"`, `"manifests":[],"layers"`), kind.Invalid},
		{"schema version 1", oci, change(`"schemaVersion":2`, `"schemaVersion":1`), kind.Invalid},
		{"key twice", oci, change(`"layers"`, `"layers":[],"layers"`), kind.Invalid},
		{"key in another case", oci, change(`"layers"`, `"Layers"`), kind.Invalid},
		{"text after the end", oci, text + "{}", kind.Invalid},
		{"byte order mark", oci, "\ufeff" + text, kind.Invalid},
		{"array", oci, "[]", kind.Invalid},
		{"null", oci, "null", kind.Invalid},
		{"empty", oci, "", kind.Invalid},
		{"nested", oci, change(`"layers"`, `"x":`+strings.Repeat("[", 100)+strings.Repeat("]", 100)+`,"layers"`), kind.Invalid},
		{"config null", oci, `{"schemaVersion":2,"config":null,"layers":[]}`, kind.Invalid},
		{"layer null", oci, change(`"layers":[`, `"layers":[null,`), kind.Invalid},
		{"size negative", oci, change(fmt.Sprintf(`"size":%d`, layer.Size), `"size":-1`), kind.Invalid},
		{"size a fraction", oci, change(fmt.Sprintf(`"size":%d`, layer.Size), `"size":1.5`), kind.Invalid},
		{"size a text", oci, change(fmt.Sprintf(`"size":%d`, layer.Size), `"size":"5"`), kind.Invalid},
		{"size too large for a number", oci, change(fmt.Sprintf(`"size":%d`, layer.Size), `"size":9223372036854775808`), kind.Invalid},
		{"size off by one", oci, change(fmt.Sprintf(`"size":%d`, layer.Size), fmt.Sprintf(`"size":%d`, layer.Size+1)), kind.DataLoss},
		{"digest traversal", oci, change(layer.Digest.String(), "sha256:../../../../etc/passwd"), kind.Invalid},
		{"digest short", oci, change(layer.Digest.String(), layer.Digest.String()[:70]), kind.Invalid},
		{"digest upper case", oci, change(layer.Digest.String(), strings.ToUpper(layer.Digest.String())), kind.Invalid},
		{"digest md5", oci, change(layer.Digest.String(), "md5:d41d8cd98f00b204e9800998ecf8427e"), kind.Invalid},
		{"config digest wrong", oci, change(digest.FromBytes(good.Config).String(), "sha256:.."), kind.Invalid},
		{"subject digest wrong", oci, change(`"layers"`, `"subject":{"mediaType":"x","digest":"sha256:x","size":1},"layers"`), kind.Invalid},
		{"encrypted layer", oci, change("tar+gzip", "tar+gzip+encrypted"), kind.Unimplemented},
		{"unknown layer", oci, change("tar+gzip", "erofs"), kind.Invalid},
		{"more layers than diff ids", oci, many(1), kind.Invalid},
		{"501 layers", oci, many(500), kind.Invalid},
		{"too large", oci, change(`"layers"`, `"annotations":{"x":"`+strings.Repeat("x", 5<<20)+`"},"layers"`), kind.Exhausted},
		{"unknown type", "application/vnd.docker.distribution.manifest.v1+json", `{"schemaVersion":1,"fsLayers":[]}`, kind.Invalid},
		{"empty index", index, `{"schemaVersion":2,"mediaType":"` + index + `","manifests":[]}`, kind.NotFound},
	}
	for _, c := range cases {
		f := newFake(t)
		f.add("good", good)
		f.manifest("v1", c.mediaType, []byte(c.body))
		s := openWith(t, nil)
		img, err := s.Pull(context.Background(), f.host()+"/a:v1", PullOptions{})
		if c.kind == -1 && (err != nil || img.ID != good.ID()) || c.kind != -1 && !kind.Is(err, c.kind) {
			t.Errorf("%s: kind %v: %v", c.name, kind.Of(err), err)
		}
		for _, r := range f.asked("") {
			if strings.Contains(r.URL.Path, "..") || strings.Contains(r.URL.Path, "md5") {
				t.Errorf("%s: asked for %s", c.name, r.URL)
			}
		}
		if c.kind != -1 {
			clean(t, s)
		}
	}
}

func TestConfigs(t *testing.T) {
	l := must[testimage.Layer](t)(testimage.NewLayer(testimage.Gzip, testimage.Entry{Name: "f", Body: "x"}))
	config := func(diff, rest string) string {
		return fmt.Sprintf(`{"architecture":%q,"os":"linux","rootfs":{"type":"layers","diff_ids":[%s]}%s}`, runtime.GOARCH, diff, rest)
	}
	id := `"` + l.DiffID.String() + `"`
	other := `"sha256:` + strings.Repeat("b", 64) + `"`
	for name, c := range map[string]struct {
		body string
		kind kind.Kind
	}{
		"good":              {config(id, ""), -1},
		"wrong diff id":     {config(other, ""), kind.DataLoss},
		"diff id traversal": {config(`"sha256:../../x"`, ""), kind.Invalid},
		"diff id sha512":    {config(`"sha512:`+strings.Repeat("b", 128)+`"`, ""), kind.Invalid},
		"too few":           {config("", ""), kind.Invalid},
		"too many":          {config(id+","+other, ""), kind.Invalid},
		"no rootfs":         {`{"architecture":"amd64","os":"linux"}`, kind.Invalid},
		"null":              {"null", kind.Invalid},
		"wrong type":        {config(id, `,"config":{"Env":"x"}`), kind.Invalid},
		"other system":      {strings.Replace(config(id, ""), `"linux"`, `"windows"`, 1), kind.NotFound},
		"twice":             {config(id, `,"config":{"Env":[],"Env":["A=b"]}`), kind.Invalid},
	} {
		f := newFake(t)
		f.add("v1", must[testimage.Image](t)(testimage.WithConfig([]byte(c.body), l)))
		s := openWith(t, nil)
		if _, err := s.Pull(context.Background(), f.host()+"/a:v1", PullOptions{}); c.kind == -1 && err != nil || c.kind != -1 && !kind.Is(err, c.kind) {
			t.Errorf("%s: kind %v: %v", name, kind.Of(err), err)
		}
		if c.kind != -1 {
			clean(t, s)
		}
	}
}

func indexOf(t *testing.T, list ...ocispec.Descriptor) []byte {
	t.Helper()
	i := ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: list}
	i.SchemaVersion = 2
	return must[[]byte](t)(json.Marshal(i))
}

func TestIndexes(t *testing.T) {
	f := newFake(t)
	img, otherImg := smallImage(t), image(t)
	f.add("img", img)
	f.add("other", otherImg)
	mine, foreign, attest := img.Descriptor(), otherImg.Descriptor(), otherImg.Descriptor()
	foreign.Platform = &ocispec.Platform{OS: "linux", Architecture: "s390x"}
	attest.Platform = &ocispec.Platform{OS: "unknown", Architecture: "unknown"}
	high := otherImg.Descriptor()
	high.Platform = &ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH, Variant: "v99"}
	multi := indexOf(t, foreign, attest, high, mine, foreign)
	add := func(tag string, data []byte) ocispec.Descriptor {
		f.manifest(tag, ocispec.MediaTypeImageIndex, data)
		d := mine
		d.MediaType, d.Digest, d.Size = ocispec.MediaTypeImageIndex, digest.FromBytes(data), int64(len(data))
		return d
	}
	nested := add("multi", multi)
	add("foreign", indexOf(t, foreign, attest))
	add("nested1", indexOf(t, nested))
	deep := nested
	for i := range 5 {
		deep = add(fmt.Sprint("deep", i), indexOf(t, deep))
	}
	wide := make([]ocispec.Descriptor, 3000)
	for i := range wide {
		wide[i] = foreign
	}
	add("wide", indexOf(t, wide...))
	lying := nested
	lying.MediaType = ocispec.MediaTypeImageManifest
	add("lying", indexOf(t, lying))
	s := openWith(t, nil)
	for tag, want := range map[string]kind.Kind{"multi": -1, "nested1": -1, "foreign": kind.NotFound, "deep4": kind.Invalid, "wide": kind.Invalid, "lying": kind.Invalid} {
		begin := time.Now()
		got, err := s.Pull(context.Background(), f.host()+"/a:"+tag, PullOptions{})
		if want == -1 && (err != nil || got.ID != img.ID()) || want != -1 && !kind.Is(err, want) {
			t.Errorf("%s: %v", tag, err)
		}
		if time.Since(begin) > 2*time.Second {
			t.Errorf("%s took %v", tag, time.Since(begin))
		}
	}
	got := must[Image](t)(s.Lookup(f.host() + "/a@" + digest.FromBytes(multi).String()))
	if len(got.Tags) != 2 || len(got.Digests) != 2 {
		t.Errorf("image is %+v", got)
	}
	// By digest, with a tag that says something else: the digest counts and no tag is made.
	got = must[Image](t)(s.Pull(context.Background(), f.host()+"/a:multi@"+otherImg.Digest().String(), PullOptions{}))
	if got.ID != otherImg.ID() || len(got.Tags) != 0 {
		t.Errorf("by digest: %+v", got)
	}
	if path := must[string](t)(s.Mount(context.Background(), MountRequest{ID: "empty", ImageID: got.ID})); path == "" {
		t.Error("image without layers is not mounted")
	}
	if err := s.Unmount(context.Background(), "empty"); err != nil {
		t.Error(err)
	}
}

// TestForeignURLs: hosts that a layer's descriptor names are never asked.
func TestForeignURLs(t *testing.T) {
	f, evil := newFake(t), newFake(t)
	img := smallImage(t)
	d, _ := json.Marshal(img.Layers[0].Descriptor())
	with := strings.Replace(string(d), "{", fmt.Sprintf(`{"urls":[%q,"http://169.254.169.254/"],`, evil.URL+"/x"), 1)
	f.add("x", img)
	f.manifest("v1", img.MediaType, []byte(strings.Replace(string(img.Manifest), string(d), with, 1)))
	s := openWith(t, nil)
	if _, err := s.Pull(context.Background(), f.host()+"/a:v1", PullOptions{}); err != nil {
		t.Error(err)
	}
	if len(evil.asked("")) != 0 {
		t.Error("the named host was asked")
	}
}

func TestHostsFiles(t *testing.T) {
	img := smallImage(t)
	noResolve, broken, good := newFake(t), newFake(t), newFake(t)
	for _, f := range []*fake{noResolve, good} {
		f.add("v1", img)
	}
	broken.before = func(w http.ResponseWriter, r *http.Request) bool { w.WriteHeader(500); return true }
	needsHeader := newFake(t)
	needsHeader.add("v1", img)
	needsHeader.before = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("X-Key") == "abc" && strings.HasPrefix(r.URL.Path, "/mirror/a/") {
			return false
		}
		w.WriteHeader(403)
		return true
	}
	content := fmt.Sprintf(`server = %q
[host.%q]
  capabilities = ["pull"]
[host.%q]
  capabilities = ["pull", "resolve"]
[host."%s/mirror"]
  capabilities = ["resolve"]
  override_path = true
  [host."%s/mirror".header]
    x-key = ["abc"]
`, good.URL, noResolve.URL, broken.URL, needsHeader.URL, needsHeader.URL)
	// A registry without a folder of its own takes _default, of the first folder that has it.
	dirs := hostsDir(t, "_default", content)
	s := openWith(t, func(o *Options) { o.RegistryDirs = []string{filepath.Join(t.TempDir(), "missing"), dirs} })
	if _, err := s.Pull(context.Background(), "reg.example:123/a:v1", PullOptions{}); err != nil {
		t.Fatal(err)
	}
	if n := len(noResolve.asked("/manifests/")); n != 0 {
		t.Errorf("host without resolve was asked for a tag %d times", n)
	}
	if len(broken.asked("/manifests/")) == 0 || len(needsHeader.asked("/manifests/")) != 1 || len(good.asked("")) != 0 {
		t.Error("hosts were not asked in the file's order")
	}
	if len(noResolve.asked("/blobs/")) != 2 || len(needsHeader.asked("/blobs/")) != 0 {
		t.Error("blobs were not asked of the host that has only pull")
	}
	for _, bad := range []string{"server = ", "[host.\"ftp://x\"]", "[host.\"https://u:p@x\"]", "[host.\"https://x\"]\n capabilities = [\"fly\"]", "server=\"https://x\"\nca=\"missing.pem\""} {
		dirs := hostsDir(t, "bad.example", bad)
		s := openWith(t, func(o *Options) { o.RegistryDirs = []string{dirs} })
		if _, err := s.Pull(context.Background(), "bad.example/a", PullOptions{}); !kind.Is(err, kind.Precondition) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
