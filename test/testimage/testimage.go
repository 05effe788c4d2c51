// Package testimage builds small images and pushes them to a registry, for
// tests. It knows nothing of noded, so that what it makes is what the formats
// say and not what noded expects.
package testimage

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Entry is one tar entry. The zero values of Mode and Type mean a file 0644;
// a Name that ends in "/" is a folder, 0755.
type Entry struct {
	Name     string
	Body     string
	Type     byte // tar.TypeReg …
	Link     string
	Mode     int64
	UID, GID int
	Major    int64
	Minor    int64
	Time     time.Time
	PAX      map[string]string // raw records, as "SCHILY.xattr.user.x"
}

// Compression is how a layer blob is packed.
type Compression string

// The three that registries hold.
const (
	Gzip  Compression = "+gzip"
	Zstd  Compression = "+zstd"
	Plain Compression = ""
)

// Layer is a layer blob with its description.
type Layer struct {
	Blob      []byte
	MediaType string
	DiffID    digest.Digest
}

// Descriptor describes the blob.
func (l Layer) Descriptor() ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: l.MediaType, Digest: digest.FromBytes(l.Blob), Size: int64(len(l.Blob))}
}

// Tar packs entries as they are, in order.
func Tar(entries ...Entry) ([]byte, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		h := &tar.Header{
			Name: e.Name, Typeflag: e.Type, Linkname: e.Link, Mode: e.Mode, Uid: e.UID, Gid: e.GID,
			Devmajor: e.Major, Devminor: e.Minor, ModTime: e.Time, PAXRecords: e.PAX, Size: int64(len(e.Body)),
		}
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
			if strings.HasSuffix(e.Name, "/") {
				h.Typeflag = tar.TypeDir
			}
		}
		if h.Mode == 0 {
			h.Mode = 0o644
			if h.Typeflag == tar.TypeDir {
				h.Mode = 0o755
			}
		}
		if h.ModTime.IsZero() {
			h.ModTime = time.Unix(1_600_000_000, 0)
		}
		if len(e.PAX) > 0 {
			h.Format = tar.FormatPAX
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, fmt.Errorf("tar entry %q: %w", e.Name, err)
		}
		if _, err := io.WriteString(w, e.Body); err != nil {
			return nil, fmt.Errorf("tar entry %q: %w", e.Name, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

// NewLayer packs entries into a layer.
func NewLayer(c Compression, entries ...Entry) (Layer, error) {
	data, err := Tar(entries...)
	if err != nil {
		return Layer{}, err
	}
	return FromTar(c, data)
}

// FromTar compresses a finished tar into a layer.
func FromTar(c Compression, data []byte) (Layer, error) {
	var buf bytes.Buffer
	var w io.WriteCloser
	var err error
	switch c {
	case Gzip:
		w = gzip.NewWriter(&buf)
	case Zstd:
		w, err = zstd.NewWriter(&buf)
	default:
		buf.Write(data)
	}
	if err != nil {
		return Layer{}, err
	}
	if w != nil {
		if _, err := w.Write(data); err != nil {
			return Layer{}, err
		}
		if err := w.Close(); err != nil {
			return Layer{}, err
		}
	}
	return Layer{Blob: buf.Bytes(), MediaType: ocispec.MediaTypeImageLayer + string(c), DiffID: digest.FromBytes(data)}, nil
}

// Image is an image ready to be pushed or served.
type Image struct {
	Manifest  []byte
	MediaType string
	Config    []byte
	Layers    []Layer
}

// Digest is the manifest's.
func (i Image) Digest() digest.Digest { return digest.FromBytes(i.Manifest) }

// ID is the config's digest.
func (i Image) ID() string { return digest.FromBytes(i.Config).String() }

// Descriptor describes the manifest, for an index.
func (i Image) Descriptor() ocispec.Descriptor {
	return ocispec.Descriptor{
		MediaType: i.MediaType, Digest: i.Digest(), Size: int64(len(i.Manifest)),
		Platform: &ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH},
	}
}

// New makes an OCI image for this machine's platform. config may be nil.
func New(config *ocispec.ImageConfig, layers ...Layer) (Image, error) {
	c := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}, RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{}}}
	if config != nil {
		c.Config = *config
	}
	for _, l := range layers {
		c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, l.DiffID)
	}
	data, err := json.Marshal(c)
	if err != nil {
		return Image{}, err
	}
	return WithConfig(data, layers...)
}

// WithConfig makes an image around a finished config.
func WithConfig(config []byte, layers ...Layer) (Image, error) {
	m := ocispec.Manifest{
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromBytes(config), Size: int64(len(config))},
		Layers:    []ocispec.Descriptor{},
	}
	m.SchemaVersion = 2
	for _, l := range layers {
		m.Layers = append(m.Layers, l.Descriptor())
	}
	data, err := json.Marshal(m)
	if err != nil {
		return Image{}, err
	}
	return Image{Manifest: data, MediaType: m.MediaType, Config: config, Layers: layers}, nil
}

// Busybox is an image of a static busybox with links for the given applets.
// binary is the program's path on this machine, as "/bin/busybox".
func Busybox(binary string, config *ocispec.ImageConfig, applets ...string) (Image, error) {
	data, err := os.ReadFile(binary)
	if err != nil {
		return Image{}, fmt.Errorf("read busybox: %w", err)
	}
	entries := []Entry{{Name: "bin/"}, {Name: "etc/"}, {Name: "tmp/", Mode: 0o1777}, {Name: "root/", Mode: 0o700},
		{Name: "etc/passwd", Body: "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"},
		{Name: "etc/group", Body: "root:x:0:\nnogroup:x:65534:\n"},
		{Name: "bin/busybox", Body: string(data), Mode: 0o755}}
	for _, a := range applets {
		entries = append(entries, Entry{Name: "bin/" + a, Type: tar.TypeSymlink, Link: "busybox"})
	}
	layer, err := NewLayer(Gzip, entries...)
	if err != nil {
		return Image{}, err
	}
	return New(config, layer)
}

// Push uploads an image to a registry over plain HTTP. at is "host:port",
// name the repository, tag the tag.
func Push(at, name, tag string, img Image) error {
	base := "http://" + at + "/v2/" + name
	if err := pushLayers(base, img.Layers); err != nil {
		return err
	}
	if err := pushBlob(base, img.Config); err != nil {
		return err
	}
	return PushManifest(at, name, tag, img.MediaType, img.Manifest)
}

// pushLayers uploads several layers at once: an image may have hundreds.
func pushLayers(base string, layers []Layer) error {
	errs := make([]error, len(layers))
	slots := make(chan struct{}, 8)
	var wait sync.WaitGroup
	for i, l := range layers {
		slots <- struct{}{}
		wait.Go(func() {
			errs[i] = pushBlob(base, l.Blob)
			<-slots
		})
	}
	wait.Wait()
	return errors.Join(errs...)
}

// PushManifest uploads a manifest or index by tag (or digest).
func PushManifest(at, name, tag, mediaType string, data []byte) error {
	return put("http://"+at+"/v2/"+name+"/manifests/"+tag, mediaType, data)
}

func pushBlob(base string, data []byte) error {
	sum := sha256.Sum256(data)
	d := "sha256:" + hex.EncodeToString(sum[:])
	resp, err := http.Post(base+"/blobs/uploads/", "application/octet-stream", nil)
	if err != nil {
		return fmt.Errorf("begin upload: %w", err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusAccepted {
		return fmt.Errorf("begin upload: status %s", resp.Status)
	}
	to, err := resp.Request.URL.Parse(resp.Header.Get("Location"))
	if err != nil {
		return fmt.Errorf("begin upload: %w", err)
	}
	query := to.Query()
	query.Set("digest", d)
	to.RawQuery = query.Encode()
	return put((&url.URL{Scheme: to.Scheme, Host: to.Host, Path: to.Path, RawQuery: to.RawQuery}).String(), "application/octet-stream", data)
}

func put(to, mediaType string, data []byte) error {
	req, err := http.NewRequest(http.MethodPut, to, bytes.NewReader(data))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", mediaType)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("upload: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusCreated {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
		return fmt.Errorf("upload: status %s: %s", resp.Status, text)
	}
	return nil
}
