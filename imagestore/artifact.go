package imagestore

import (
	"crypto/sha256"
	"encoding/hex"
	"path"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"noded.dev/noded/imagestore/limit"
	"noded.dev/noded/internal/kind"
)

// artifactLayers makes a layer of each blob of an OCI artifact, topmost first:
// a tar is unpacked, where its media type says so; anything else is one file,
// by the title that its descriptor gives it. All titles are checked before
// anything is fetched.
func artifactLayers(blobs []ocispec.Descriptor, l limit.Limits) ([]*pulledLayer, error) {
	var list []*pulledLayer
	names := map[string]bool{}
	seen := map[string]bool{}
	for _, d := range blobs {
		layer := &pulledLayer{desc: d, as: form{loose: true}}
		switch {
		case isTar(d.MediaType):
		case d.MediaType == ocispec.MediaTypeEmptyJSON && d.Annotations[ocispec.AnnotationTitle] == "":
			continue // a place holder: a manifest may not be without layers
		default:
			name, err := fileName(d, l)
			if err != nil {
				return nil, err
			}
			if names[name] {
				return nil, kind.Errorf(kind.Invalid, "two blobs of the artifact have the title %.256q", name)
			}
			names[name], layer.as.file = true, name
		}
		sum := sha256.Sum256([]byte("artifact " + d.Digest.String() + " " + layer.as.file))
		layer.hex = hex.EncodeToString(sum[:])
		if !seen[layer.hex] {
			seen[layer.hex] = true
			list = append(list, layer)
		}
	}
	for name := range names {
		for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
			if names[dir] {
				return nil, kind.Errorf(kind.Invalid, "title %.256q of a blob is a folder of %.256q", dir, name)
			}
		}
	}
	slices.Reverse(list)
	return list, nil
}

// fileName is the path of a blob's file in the artifact: its title, or its
// digest if it has none.
func fileName(d ocispec.Descriptor, l limit.Limits) (string, error) {
	title := d.Annotations[ocispec.AnnotationTitle]
	if title == "" {
		return d.Digest.Algorithm().String() + "-" + d.Digest.Encoded(), nil
	}
	switch {
	case len(title) > l.PathBytes:
		return "", limit.Error(kind.Invalid, "title of a blob", "path_bytes", l.PathBytes)
	case !utf8.ValidString(title) || strings.ContainsFunc(title, unicode.IsControl):
		return "", kind.Errorf(kind.Invalid, "title %.256q of a blob has control characters", title)
	case path.IsAbs(title) || path.Clean(title) != title || title == "." || title == ".." || strings.HasPrefix(title, "../"):
		return "", kind.Errorf(kind.Invalid, "title %.256q of a blob is not a clean path below the artifact", title)
	}
	for part := range strings.SplitSeq(title, "/") {
		if len(part) > l.NameBytes {
			return "", limit.Error(kind.Invalid, "part of a blob's title", "name_bytes", l.NameBytes)
		}
	}
	return title, nil
}

// isTar reports whether a media type is a tar's, packed or not:
// "application/vnd.oci.image.layer.v1.tar+gzip", "application/x-tar".
func isTar(mediaType string) bool {
	for _, packed := range []string{"+gzip", "+zstd", ".gzip", ".zstd"} {
		mediaType = strings.TrimSuffix(mediaType, packed)
	}
	return strings.HasSuffix(mediaType, ".tar") || mediaType == "application/tar" || mediaType == "application/x-tar"
}
