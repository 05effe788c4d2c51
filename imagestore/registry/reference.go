package registry

import (
	"strings"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"

	"noded.dev/noded/internal/kind"
)

// maxReference is well above what the reference grammar allows (255 bytes of
// name, 128 of tag, a digest); longer input is refused before it is parsed.
const maxReference = 1024

// Reference is a parsed, complete image reference.
type Reference struct {
	Domain string // "docker.io", "localhost:5000", "[::1]:5000"
	Path   string // "library/busybox"
	Tag    string // "" only if there is a digest
	Digest digest.Digest
}

// Name is the repository, as "docker.io/library/busybox".
func (r Reference) Name() string { return r.Domain + "/" + r.Path }

// String is the reference in full: a digest takes the tag's place, because
// it alone decides what is meant.
func (r Reference) String() string {
	if r.Digest != "" {
		return r.Name() + "@" + r.Digest.String()
	}
	return r.Name() + ":" + r.Tag
}

// ParseReference reads a reference as docker does: a short name is of
// docker.io/library, no tag is :latest, and beside a digest a tag is ignored.
func ParseReference(s string) (Reference, error) {
	if len(s) > maxReference {
		return Reference{}, kind.Errorf(kind.Invalid, "image reference of %d bytes is over the limit of %d", len(s), maxReference)
	}
	named, err := reference.ParseDockerRef(s)
	if err != nil {
		return Reference{}, kind.Errorf(kind.Invalid, "image reference %q: %w", s, err)
	}
	r := Reference{Domain: reference.Domain(named), Path: reference.Path(named)}
	if d, ok := named.(reference.Digested); ok {
		r.Digest = d.Digest()
		if err := checkDigest(r.Digest); err != nil {
			return Reference{}, err
		}
		return r, nil
	}
	if t, ok := named.(reference.Tagged); ok {
		r.Tag = t.Tag()
	}
	return r, nil
}

// checkDigest takes sha256 and sha512 digests in their one canonical form.
// Digests become file names and URL parts, so nothing else may pass.
func checkDigest(d digest.Digest) error {
	if err := d.Validate(); err != nil {
		return kind.Errorf(kind.Invalid, "digest %q: %w", clip(string(d)), err)
	}
	if a := d.Algorithm(); a != digest.SHA256 && a != digest.SHA512 {
		return kind.Errorf(kind.Invalid, "digest %q: algorithm is not sha256 or sha512", clip(string(d)))
	}
	return nil
}

// clip shortens text from outside for an error.
func clip(s string) string {
	const most = 200
	s = strings.ToValidUTF8(s, "?")
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}
