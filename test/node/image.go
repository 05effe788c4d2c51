package node

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// File is one entry of an image's layer. Mode 0 means 0644, or 0755 for a folder.
type File struct {
	Name, Body string
	Link, Hard string // target of a symbolic or hard link
	Mode       int64
	UID, GID   int
}

// Busybox is a root file system with Debian's static busybox, its applets, and
// the users root, web (1000, groups 1000 and 2000) and nobody.
func Busybox(more ...File) ([]File, error) {
	body, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return nil, err
	}
	applets, err := exec.Command("/bin/busybox", "--list").Output()
	if err != nil {
		return nil, err
	}
	files := []File{{Name: "bin/", Mode: 0o755}, {Name: "bin/busybox", Body: string(body), Mode: 0o755}}
	for _, name := range strings.Fields(string(applets)) {
		if name != "busybox" {
			files = append(files, File{Name: "bin/" + name, Hard: "bin/busybox", Mode: 0o755})
		}
	}
	files = append(files, File{Name: "tmp/", Mode: 0o1777}, File{Name: "root/", Mode: 0o700}, File{Name: "home/web/", Mode: 0o755, UID: 1000, GID: 1000},
		File{Name: "etc/passwd", Body: "root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1000::/home/web:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n"},
		File{Name: "etc/group", Body: "root:x:0:\nweb:x:1000:\nextra:x:2000:web\nnogroup:x:65534:\n"})
	return append(files, more...), nil
}

// Push makes an image of one layer and pushes it under a name and tag. It
// returns the manifest's digest.
func (r *Registry) Push(ref string, config v1.ImageConfig, files []File) (string, error) {
	plain, err := archive(files)
	if err != nil {
		return "", err
	}
	var zipped bytes.Buffer
	z, _ := gzip.NewWriterLevel(&zipped, gzip.BestSpeed)
	z.Write(plain)
	z.Close()
	if len(config.Env) == 0 {
		config.Env = []string{"PATH=/usr/local/bin:/usr/bin:/bin"}
	}
	image, err := json.Marshal(v1.Image{Platform: v1.Platform{OS: "linux", Architecture: "amd64"}, Config: config, RootFS: v1.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromBytes(plain)}}})
	if err != nil {
		return "", err
	}
	name, tag, _ := strings.Cut(ref, ":")
	manifest := v1.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest,
		Config: v1.Descriptor{MediaType: v1.MediaTypeImageConfig, Digest: digest.FromBytes(image), Size: int64(len(image))},
		Layers: []v1.Descriptor{{MediaType: v1.MediaTypeImageLayerGzip, Digest: digest.FromBytes(zipped.Bytes()), Size: int64(zipped.Len())}}}
	for _, blob := range [][]byte{image, zipped.Bytes()} {
		if err := r.putBlob(name, blob); err != nil {
			return "", err
		}
	}
	body, err := json.Marshal(manifest)
	if err != nil {
		return "", err
	}
	_, err = r.send(http.MethodPut, fmt.Sprintf("http://%s/v2/%s/manifests/%s", r.Host, name, tag), v1.MediaTypeImageManifest, body)
	return digest.FromBytes(body).String(), err
}

// PushArtifact makes an OCI artifact of which each file is a blob, and pushes
// it. It returns the manifest's digest.
func (r *Registry) PushArtifact(ref, kind string, files []File) (string, error) {
	name, tag, _ := strings.Cut(ref, ":")
	manifest := v1.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest, ArtifactType: kind, Config: v1.DescriptorEmptyJSON}
	blobs := [][]byte{v1.DescriptorEmptyJSON.Data}
	for _, f := range files {
		manifest.Layers = append(manifest.Layers, v1.Descriptor{MediaType: "application/octet-stream", Digest: digest.FromString(f.Body), Size: int64(len(f.Body)),
			Annotations: map[string]string{v1.AnnotationTitle: f.Name}})
		blobs = append(blobs, []byte(f.Body))
	}
	for _, blob := range blobs {
		if err := r.putBlob(name, blob); err != nil {
			return "", err
		}
	}
	body, err := json.Marshal(manifest)
	if err != nil {
		return "", err
	}
	_, err = r.send(http.MethodPut, fmt.Sprintf("http://%s/v2/%s/manifests/%s", r.Host, name, tag), v1.MediaTypeImageManifest, body)
	return digest.FromBytes(body).String(), err
}

func archive(files []File) ([]byte, error) {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, f := range files {
		h := &tar.Header{Name: f.Name, Mode: f.Mode, Uid: f.UID, Gid: f.GID, Size: int64(len(f.Body)), Typeflag: tar.TypeReg, Linkname: f.Link + f.Hard}
		switch {
		case strings.HasSuffix(f.Name, "/"):
			h.Typeflag = tar.TypeDir
		case f.Link != "":
			h.Typeflag = tar.TypeSymlink
		case f.Hard != "":
			h.Typeflag = tar.TypeLink
		}
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := io.WriteString(w, f.Body); err != nil {
			return nil, err
		}
	}
	return out.Bytes(), w.Close()
}

// putBlob uploads in one request, as the distribution specification allows.
func (r *Registry) putBlob(name string, blob []byte) error {
	resp, err := r.send(http.MethodPost, fmt.Sprintf("http://%s/v2/%s/blobs/uploads/", r.Host, name), "", nil)
	if err != nil {
		return err
	}
	location, err := resp.Location()
	if err != nil {
		return err
	}
	query := location.Query()
	query.Set("digest", digest.FromBytes(blob).String())
	location.RawQuery = query.Encode()
	_, err = r.send(http.MethodPut, location.String(), "application/octet-stream", blob)
	return err
}

func (r *Registry) send(method, address, kind string, body []byte) (*http.Response, error) {
	u, err := url.Parse(address)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequest(method, u.String(), bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", kind)
	if r.User != "" {
		req.SetBasicAuth(r.User, r.Pass)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 300 {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
		return nil, fmt.Errorf("%s %s: %s: %s", method, u.Path, resp.Status, text)
	}
	return resp, nil
}
