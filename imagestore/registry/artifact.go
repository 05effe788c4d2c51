package registry

import (
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"noded.dev/noded/internal/kind"
)

// maxMediaType is a media type's length by RFC 6838: two names of 127.
const maxMediaType = 255

// artifactType tells what a manifest describes that is not a container image:
// its artifact type or else its config's type (image-spec, manifest.md,
// "Guidelines for Artifact Usage"). "" is an image.
func (b *manifestBody) artifactType() string {
	switch {
	case b.Config == nil, b.Config.MediaType == ocispec.MediaTypeImageConfig, b.Config.MediaType == dockerConfig:
		return ""
	case b.ArtifactType != "":
		return b.ArtifactType
	}
	return b.Config.MediaType
}

// checkArtifact takes blobs of any type, but for those that are of no use here.
func checkArtifact(artifactType string, blobs []ocispec.Descriptor) error {
	if len(artifactType) > maxMediaType {
		return kind.Errorf(kind.Invalid, "artifact type %q has %d bytes, more than %d", clip(artifactType), len(artifactType), maxMediaType)
	}
	for _, d := range blobs {
		if strings.HasSuffix(d.MediaType, "+encrypted") {
			return kind.Errorf(kind.Unimplemented, "blob is encrypted (%s)", clip(d.MediaType))
		}
	}
	return nil
}
