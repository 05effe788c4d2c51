package registry

import (
	"context"
	"encoding/base64"
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"noded.dev/noded/imagestore/limit"
	"noded.dev/noded/internal/kind"
)

// Where sigstore's cosign puts signatures (its SIGNATURE_SPEC.md and
// BUNDLE_SPEC.md): in the layers of an image that the digest names by its tag,
// or as bundles in artifacts that refer to the signed manifest.
const (
	simpleSigning   = "application/vnd.dev.cosign.simplesigning.v1+json"
	simpleSignature = "dev.cosignproject.cosign/signature"
	bundleType      = "application/vnd.dev.sigstore.bundle"
)

// Signature is a signature in the simple signing form: the text that names what
// is signed, and the signature over it.
type Signature struct{ Payload, Value []byte }

// Signatures fetches the simple signatures of a manifest or index; none is no
// error.
func (s *Session) Signatures(ctx context.Context, d digest.Digest) ([]Signature, error) {
	what := "signatures of " + d.String()
	body, err := s.list(ctx, what, "/manifests/"+tagOf(d)+".sig", nil)
	if err != nil || body == nil {
		return nil, err
	}
	var found []Signature
	for _, desc := range body.Layers {
		value, err := base64.StdEncoding.DecodeString(desc.Annotations[simpleSignature])
		if desc.MediaType != simpleSigning || err != nil || len(value) == 0 {
			continue
		}
		payload, err := s.small(ctx, what, desc)
		if err != nil {
			return nil, err
		}
		found = append(found, Signature{payload, value})
	}
	return found, nil
}

// Bundles fetches the sigstore bundles that refer to a manifest or index; none
// is no error.
func (s *Session) Bundles(ctx context.Context, d digest.Digest) ([][]byte, error) {
	what := "referrers of " + d.String()
	body, err := s.list(ctx, what, "/referrers/"+d.String(), nil)
	if err == nil && body == nil { // a registry without this call keeps the list under a tag
		body, err = s.list(ctx, what, "/manifests/"+tagOf(d), nil)
	}
	if err != nil || body == nil {
		return nil, err
	}
	var found [][]byte
	for _, desc := range body.Manifests {
		if !strings.HasPrefix(desc.ArtifactType, bundleType) {
			continue
		}
		m, err := s.list(ctx, what, "/manifests/"+desc.Digest.String(), &desc)
		if err != nil {
			return nil, err
		}
		if m == nil || m.Subject == nil || m.Subject.Digest != d {
			continue
		}
		for _, l := range m.Layers {
			if !strings.HasPrefix(l.MediaType, bundleType) {
				continue
			}
			data, err := s.small(ctx, what, l)
			if err != nil {
				return nil, err
			}
			if found = append(found, data); len(found) > s.client.opts.Limits.Signatures {
				return nil, limit.Error(kind.Exhausted, "number of signatures", "signatures", s.client.opts.Limits.Signatures)
			}
		}
	}
	return found, nil
}

// tagOf is the tag under which clients keep what belongs to a digest.
func tagOf(d digest.Digest) string { return d.Algorithm().String() + "-" + d.Encoded() }

// list fetches a manifest or index that is no image; nil if it does not exist.
func (s *session) list(ctx context.Context, what, path string, desc *ocispec.Descriptor) (body *manifestBody, err error) {
	most := s.client.opts.Limits
	err = s.each(ctx, what, func(h *host) bool { return h.pull && h.resolve || desc != nil && h.pull }, func(h *hostState) error {
		body = nil
		resp, err := s.open(ctx, h, request{path: "/" + s.ref.Path + path, accept: manifestTypes})
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		data, err := readAll(resp.Body, most.ManifestBytes, what, "manifest_bytes")
		if err != nil {
			return err
		}
		if desc != nil {
			if err := verify(data, *desc); err != nil {
				return err
			}
		}
		read := &manifestBody{}
		if err := decodeStrict(data, read, most.JSONDepth); err != nil {
			return fmt.Errorf("manifest %w", err)
		}
		body = read
		return checkList(read, most)
	})
	if kind.Is(err, kind.NotFound) {
		return nil, nil
	}
	return body, err
}

func checkList(b *manifestBody, most limit.Limits) error {
	switch {
	case b.SchemaVersion != 2:
		return kind.Errorf(kind.Invalid, "manifest has schema version %d, not 2", b.SchemaVersion)
	case len(b.Layers) > most.Signatures:
		return limit.Error(kind.Exhausted, "number of signatures", "signatures", most.Signatures)
	case len(b.Manifests) > most.Descriptors:
		return limit.Error(kind.Exhausted, "number of descriptors", "descriptors", most.Descriptors)
	}
	for _, d := range slices.Concat(b.Layers, b.Manifests) {
		if err := checkDescriptor(d); err != nil {
			return err
		}
	}
	return nil
}

// small fetches a signature's blob.
func (s *session) small(ctx context.Context, what string, desc ocispec.Descriptor) (data []byte, err error) {
	most := s.client.opts.Limits.SignatureBytes
	if desc.Size > most {
		return nil, limit.Error(kind.Exhausted, "signature", "signature_bytes", most)
	}
	err = s.each(ctx, what, func(h *host) bool { return h.pull }, func(h *hostState) error {
		resp, err := s.open(ctx, h, request{path: "/" + s.ref.Path + "/blobs/" + desc.Digest.String()})
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if data, err = readAll(resp.Body, most, "signature", "signature_bytes"); err != nil {
			return err
		}
		return verify(data, desc)
	})
	return data, err
}
