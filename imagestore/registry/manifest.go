package registry

import (
	"context"
	"encoding/json"
	"fmt"
	"mime"
	"net/http"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"noded.dev/noded/imagestore/limit"
	"noded.dev/noded/internal/kind"
)

// Media types of Docker's image format, version 2 schema 2, which every
// registry still serves.
const (
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerIndex    = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerConfig   = "application/vnd.docker.container.image.v1+json"
	dockerLayer    = "application/vnd.docker.image.rootfs.diff.tar"
	dockerForeign  = "application/vnd.docker.image.rootfs.foreign.diff.tar"
)

var manifestTypes = []string{
	ocispec.MediaTypeImageIndex, ocispec.MediaTypeImageManifest, dockerIndex, dockerManifest,
}

// Resolved is an image's description, verified against its digests.
type Resolved struct {
	Top      digest.Digest // of what the reference names: an index or a manifest
	Digest   digest.Digest // of the manifest
	Manifest []byte
	SignedBy string // key that signed it, where the caller checked that
	Config   []byte
	ID       digest.Digest // of the config; of an artifact the manifest's sha256
	Image    ocispec.Image
	Layers   []ocispec.Descriptor // lowest first; as many as Image.RootFS.DiffIDs

	// Artifact is the type of an OCI artifact, "" for an image. An artifact's
	// config is not read: Config and Image are empty, and Layers are any blobs.
	Artifact string
}

// manifestBody is what manifests and indexes have in common with each other,
// so that one that claims to be both is noticed.
type manifestBody struct {
	SchemaVersion int                  `json:"schemaVersion"`
	MediaType     string               `json:"mediaType"`
	ArtifactType  string               `json:"artifactType"`
	Config        *ocispec.Descriptor  `json:"config"`
	Layers        []ocispec.Descriptor `json:"layers"`
	Manifests     []ocispec.Descriptor `json:"manifests"`
	Subject       *ocispec.Descriptor  `json:"subject"`
	Annotations   map[string]string    `json:"annotations"`
	FSLayers      json.RawMessage      `json:"fsLayers"`
	Blobs         json.RawMessage      `json:"blobs"`
}

// document is a manifest or index as received.
type document struct {
	body   manifestBody
	data   []byte
	digest digest.Digest
	index  bool
}

// Resolve reads the manifest that a reference means on this machine's
// platform, and its config.
func (s *Session) Resolve(ctx context.Context, p Platform) (*Resolved, error) {
	doc, err := s.document(ctx, ocispec.Descriptor{Digest: s.ref.Digest}, s.ref.Tag)
	if err != nil {
		return nil, err
	}
	top := doc.digest
	budget := s.client.opts.Limits.Descriptors
	for depth := 0; doc.index; depth++ {
		if depth == s.client.opts.Limits.IndexDepth {
			return nil, limit.Error(kind.Invalid, "nesting of image indexes", "index_depth", depth)
		}
		if budget -= len(doc.body.Manifests); budget < 0 {
			return nil, limit.Error(kind.Invalid, "number of descriptors", "descriptors", s.client.opts.Limits.Descriptors)
		}
		desc, err := choose(doc.body.Manifests, p)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s.ref, err)
		}
		if doc, err = s.document(ctx, desc, ""); err != nil {
			return nil, err
		}
	}
	if budget-len(doc.body.Layers) < 0 {
		return nil, limit.Error(kind.Invalid, "number of descriptors", "descriptors", s.client.opts.Limits.Descriptors)
	}
	r := &Resolved{Top: top, Digest: doc.digest, Manifest: doc.data, ID: doc.body.Config.Digest, Layers: doc.body.Layers}
	if r.Artifact = doc.body.artifactType(); r.Artifact != "" {
		// Many artifacts have the same config, an empty one.
		r.ID = digest.FromBytes(doc.data)
		return r, nil
	}
	if r.Config, err = s.config(ctx, *doc.body.Config); err != nil {
		return nil, err
	}
	if err := s.readConfig(r, p); err != nil {
		return nil, fmt.Errorf("image config %s: %w", r.ID, err)
	}
	return r, nil
}

// document fetches a manifest or index by descriptor, or by tag if there is one.
func (s *session) document(ctx context.Context, desc ocispec.Descriptor, tag string) (doc *document, err error) {
	name, fit := tag, func(h *host) bool { return h.resolve }
	if desc.Digest != "" {
		name, fit = desc.Digest.String(), func(h *host) bool { return h.pull }
	}
	if desc.Size > s.client.opts.Limits.ManifestBytes {
		return nil, limit.Error(kind.Exhausted, "manifest", "manifest_bytes", s.client.opts.Limits.ManifestBytes)
	}
	what := "manifest of " + s.ref.String()
	err = s.each(ctx, what, fit, func(h *hostState) error {
		resp, err := s.open(ctx, h, request{path: "/" + s.ref.Path + "/manifests/" + name, accept: manifestTypes})
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		data, err := readAll(resp.Body, s.client.opts.Limits.ManifestBytes, "manifest", "manifest_bytes")
		if err != nil {
			return err
		}
		doc, err = s.parseDocument(resp, data, desc)
		return err
	})
	return doc, err
}

// parseDocument verifies and reads a manifest. The same bytes must not mean an
// index to one reader and a manifest to another, so the body, the reply's
// Content-Type and the descriptor may not contradict each other.
func (s *session) parseDocument(resp *http.Response, data []byte, desc ocispec.Descriptor) (*document, error) {
	doc := &document{data: data, digest: digest.FromBytes(data)}
	if desc.Digest != "" {
		if err := verify(data, desc); err != nil {
			return nil, err
		}
		doc.digest = desc.Digest
	}
	if err := decodeStrict(data, &doc.body, s.client.opts.Limits.JSONDepth); err != nil {
		return nil, fmt.Errorf("manifest %w", err)
	}
	b := &doc.body
	header, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if err != nil || !isManifestType(header) {
		header = "" // text/plain and the like: a plain file server
	}
	said := b.MediaType
	for _, other := range []string{header, desc.MediaType} {
		switch {
		case said == "":
			said = other
		case other != "" && other != said:
			return nil, kind.Errorf(kind.Invalid, "manifest is of media type %q and of %q", clip(said), clip(other))
		}
	}
	if said == "" {
		return nil, kind.Errorf(kind.Invalid, "manifest has no media type")
	}
	if !isManifestType(said) {
		return nil, kind.Errorf(kind.Invalid, "media type %q is not an image manifest or index", clip(said))
	}
	doc.index = said == dockerIndex || said == ocispec.MediaTypeImageIndex
	return doc, s.checkBody(doc)
}

func isManifestType(t string) bool {
	for _, m := range manifestTypes {
		if m == t {
			return true
		}
	}
	return false
}

// checkBody checks a manifest's or index's own content.
func (s *session) checkBody(doc *document) error {
	b := &doc.body
	switch {
	case b.SchemaVersion != 2:
		return kind.Errorf(kind.Invalid, "manifest has schema version %d, not 2", b.SchemaVersion)
	case b.FSLayers != nil || b.Blobs != nil:
		return kind.Errorf(kind.Invalid, "manifest has fields of another manifest format")
	case doc.index && (b.Config != nil || b.Layers != nil):
		return kind.Errorf(kind.Invalid, "index has the fields of a manifest")
	case !doc.index && b.Manifests != nil:
		return kind.Errorf(kind.Invalid, "manifest has the fields of an index")
	case !doc.index && b.Config == nil:
		return kind.Errorf(kind.Invalid, "manifest has no config")
	case len(b.Layers) > s.client.opts.Limits.Layers:
		return limit.Error(kind.Invalid, "number of layers", "layers", s.client.opts.Limits.Layers)
	case len(b.Manifests) > s.client.opts.Limits.Descriptors:
		return limit.Error(kind.Invalid, "number of descriptors", "descriptors", s.client.opts.Limits.Descriptors)
	}
	all := append(append([]ocispec.Descriptor{}, b.Manifests...), b.Layers...)
	if b.Config != nil {
		all = append(all, *b.Config)
	}
	if b.Subject != nil {
		all = append(all, *b.Subject)
	}
	for _, d := range all {
		if err := checkDescriptor(d); err != nil {
			return err
		}
	}
	if t := b.artifactType(); t != "" {
		return checkArtifact(t, b.Layers)
	}
	for _, d := range b.Layers {
		if err := checkLayerType(d.MediaType); err != nil {
			return err
		}
	}
	return nil
}

func checkDescriptor(d ocispec.Descriptor) error {
	if err := checkDigest(d.Digest); err != nil {
		return err
	}
	if d.Size < 0 {
		return kind.Errorf(kind.Invalid, "descriptor of %s has size %d", d.Digest, d.Size)
	}
	return nil
}

// checkLayerType takes the tar layers of both formats. What a layer really is
// compressed with is seen from its first bytes.
func checkLayerType(t string) error {
	base, _, _ := strings.Cut(t, "+")
	switch {
	case strings.HasSuffix(t, "+encrypted"):
		return kind.Errorf(kind.Unimplemented, "layer is encrypted (%s)", clip(t))
	case t == dockerLayer+".gzip", t == dockerForeign+".gzip", t == dockerLayer, t == dockerLayer+".zstd":
		return nil
	case base == ocispec.MediaTypeImageLayer, base == "application/vnd.oci.image.layer.nondistributable.v1.tar":
		switch strings.TrimPrefix(t, base) {
		case "", "+gzip", "+zstd":
			return nil
		}
	}
	return kind.Errorf(kind.Invalid, "layer of media type %q is not a tar, gzip or zstd layer", clip(t))
}

// config fetches an image's config blob.
func (s *session) config(ctx context.Context, desc ocispec.Descriptor) (data []byte, err error) {
	if desc.MediaType != dockerConfig && desc.MediaType != ocispec.MediaTypeImageConfig {
		return nil, kind.Errorf(kind.Invalid, "config of media type %q is not of a container image", clip(desc.MediaType))
	}
	most := s.client.opts.Limits.ConfigBytes
	if desc.Size > most {
		return nil, limit.Error(kind.Exhausted, "image config", "config_bytes", most)
	}
	what := "config of " + s.ref.String()
	err = s.each(ctx, what, func(h *host) bool { return h.pull }, func(h *hostState) error {
		resp, err := s.open(ctx, h, request{path: "/" + s.ref.Path + "/blobs/" + desc.Digest.String()})
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if data, err = readAll(resp.Body, most, "image config", "config_bytes"); err != nil {
			return err
		}
		return verify(data, desc)
	})
	return data, err
}

// verify compares received bytes with their descriptor. A descriptor that
// came with no size (from a reference) is checked by digest alone.
func verify(data []byte, desc ocispec.Descriptor) error {
	if desc.MediaType != "" && int64(len(data)) != desc.Size {
		return kind.Errorf(kind.DataLoss, "%s has %d bytes, its descriptor says %d", desc.Digest, len(data), desc.Size)
	}
	if got := desc.Digest.Algorithm().FromBytes(data); got != desc.Digest {
		return kind.Errorf(kind.DataLoss, "received %s instead of %s", got, desc.Digest)
	}
	return nil
}

// readConfig parses the config and checks what the pull depends on.
func (s *session) readConfig(r *Resolved, p Platform) error {
	var raw struct {
		RootFS *struct{} `json:"rootfs"`
	}
	if err := decodeStrict(r.Config, &r.Image, s.client.opts.Limits.JSONDepth); err != nil {
		return err
	}
	if err := json.Unmarshal(r.Config, &raw); err != nil || raw.RootFS == nil {
		return kind.Errorf(kind.Invalid, "has no rootfs")
	}
	ids := r.Image.RootFS.DiffIDs
	if r.Image.RootFS.Type != "layers" && len(ids) > 0 {
		return kind.Errorf(kind.Invalid, "has a rootfs of type %q", clip(r.Image.RootFS.Type))
	}
	if len(ids) != len(r.Layers) {
		return kind.Errorf(kind.Invalid, "has %d diff ids for %d layers", len(ids), len(r.Layers))
	}
	for _, id := range ids {
		if err := checkDigest(id); err != nil {
			return err
		}
		if id.Algorithm() != digest.SHA256 {
			return kind.Errorf(kind.Invalid, "diff id %s is not sha256", id)
		}
	}
	if r.ID.Algorithm() != digest.SHA256 {
		return kind.Errorf(kind.Invalid, "digest is not sha256")
	}
	if own := r.Image.Platform; own.OS != "" && !p.runs(&ocispec.Platform{OS: own.OS, Architecture: own.Architecture}) {
		return kind.Errorf(kind.NotFound, "is for %s/%s, this node is %s", clip(own.OS), clip(own.Architecture), p)
	}
	return nil
}
