package imagestore

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"noded.dev/noded/test/testimage"
)

// fake is a registry that serves images from memory and misbehaves as told.
type fake struct {
	*httptest.Server
	mu        sync.Mutex
	manifests map[string]served // by tag and digest
	blobs     map[digest.Digest][]byte
	requests  []*http.Request // in order, without bodies
	sent      int64           // bytes of blobs

	// before sees each request first; it returns true if it has answered.
	before func(w http.ResponseWriter, r *http.Request) bool
}

type served struct {
	mediaType string
	data      []byte
}

func newFake(t testing.TB) *fake {
	f := unstartedFake()
	f.Server = httptest.NewServer(f)
	t.Cleanup(f.Server.Close)
	return f
}

func unstartedFake() *fake {
	return &fake{manifests: map[string]served{}, blobs: map[digest.Digest][]byte{}}
}

func (f *fake) host() string {
	return strings.TrimPrefix(strings.TrimPrefix(f.URL, "http://"), "https://")
}

func (f *fake) add(tag string, img testimage.Image) {
	f.manifest(tag, img.MediaType, img.Manifest)
	f.blobs[digest.FromBytes(img.Config)] = img.Config
	for _, l := range img.Layers {
		f.blobs[digest.FromBytes(l.Blob)] = l.Blob
	}
}

func (f *fake) manifest(tag, mediaType string, data []byte) {
	f.manifests[tag] = served{mediaType, data}
	f.manifests[digest.FromBytes(data).String()] = served{mediaType, data}
}

// asked lists the requests whose path contains part.
func (f *fake) asked(part string) (list []*http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range f.requests {
		if strings.Contains(r.URL.Path, part) {
			list = append(list, r)
		}
	}
	return list
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	f.requests = append(f.requests, r)
	before := f.before
	f.mu.Unlock()
	if before != nil && before(w, r) {
		return
	}
	f.serve(w, r)
}

func (f *fake) serve(w http.ResponseWriter, r *http.Request) {
	if _, ref, ok := strings.Cut(r.URL.Path, "/manifests/"); ok {
		m, ok := f.manifests[ref]
		if !ok {
			http.Error(w, `{"errors":[{"code":"MANIFEST_UNKNOWN","message":"no"}]}`, http.StatusNotFound)
			return
		}
		w.Header().Set("Content-Type", m.mediaType)
		w.Write(m.data)
		return
	}
	_, d, _ := strings.Cut(r.URL.Path, "/blobs/")
	data, ok := f.blobs[digest.Digest(d)]
	if !ok {
		http.Error(w, `{"errors":[{"code":"BLOB_UNKNOWN"}]}`, http.StatusNotFound)
		return
	}
	http.ServeContent(counting{w, f}, r, "", time.Time{}, bytes.NewReader(data))
}

type counting struct {
	http.ResponseWriter
	f *fake
}

func (c counting) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p)
	c.f.mu.Lock()
	c.f.sent += int64(n)
	c.f.mu.Unlock()
	return n, err
}

// hangUp cuts the connection.
func hangUp() { panic(http.ErrAbortHandler) }

// bigLayer is a layer that does not compress, of about size bytes.
func bigLayer(t testing.TB, size int) testimage.Layer {
	t.Helper()
	body := make([]byte, size)
	seed := uint32(1)
	for i := range body {
		seed = seed*1664525 + 1013904223
		body[i] = byte(seed >> 24)
	}
	return must[testimage.Layer](t)(testimage.NewLayer(testimage.Gzip, testimage.Entry{Name: "big", Body: string(body)}))
}

func image(t testing.TB, layers ...testimage.Layer) testimage.Image {
	t.Helper()
	return must[testimage.Image](t)(testimage.New(nil, layers...))
}

// hostsDir writes a hosts.toml for a registry and returns the folder for
// Options.RegistryDirs.
func hostsDir(t testing.TB, domain, content string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, domain), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, domain, "hosts.toml"), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

func openWith(t testing.TB, change func(*Options)) *Store {
	t.Helper()
	needRoot(t)
	o := Options{Root: filepath.Join(t.TempDir(), "images"), Log: quiet(), StallWindow: 500 * time.Millisecond}
	if change != nil {
		change(&o)
	}
	s := must[*Store](t)(Open(context.Background(), o))
	t.Cleanup(func() { s.Close() })
	return s
}

// clean checks that a failed pull left nothing, once the trash is empty.
func clean(t testing.TB, s *Store) {
	t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	for {
		left := leftovers(t, s.opts.Root)
		if left == "" && s.trash.bytes.Load() == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("left: %s (trash %d bytes)", left, s.trash.bytes.Load())
			return
		}
		time.Sleep(5 * time.Millisecond) // the reaper tells nobody when it is done
	}
}

func leftovers(t testing.TB, root string) string {
	var left []string
	for _, dir := range []string{layersDir, stagingDir, trashDir, imagesDir, blobsDir, quarantineDir} {
		for _, e := range must[[]os.DirEntry](t)(os.ReadDir(filepath.Join(root, dir))) {
			left = append(left, dir+"/"+e.Name())
		}
	}
	return strings.Join(left, " ")
}

func hostsOf(mirrors ...*fake) string {
	var b strings.Builder
	for _, m := range mirrors {
		fmt.Fprintf(&b, "[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n", m.URL)
	}
	return b.String()
}
