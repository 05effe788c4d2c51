package registry

import (
	"runtime"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"noded.dev/noded/internal/kind"
)

// Platform is what an image must be made for.
type Platform struct {
	Architecture string
	Variants     []string // best first; "" is an entry that names none
}

// ThisNode is the platform this binary runs on.
func ThisNode() Platform {
	p := Platform{Architecture: runtime.GOARCH, Variants: []string{""}}
	switch runtime.GOARCH {
	case "arm64":
		p.Variants = []string{"v8", ""}
	case "arm":
		p.Variants = []string{"v7", "v6", "v5", ""}
	case "amd64":
		p.Variants = []string{"", "v1"}
	}
	return p
}

// String is the platform as "linux/arm64".
func (p Platform) String() string { return "linux/" + p.Architecture }

// rank is how well an entry fits: 0 best, -1 not at all.
func (p Platform) rank(e *ocispec.Platform) int {
	if !p.runs(e) {
		return -1
	}
	for i, v := range p.Variants {
		if v == e.Variant {
			return i
		}
	}
	return -1
}

// runs compares system and architecture, with the other names that
// architectures go by.
func (p Platform) runs(e *ocispec.Platform) bool {
	arch := strings.ToLower(e.Architecture)
	switch arch {
	case "x86_64", "x86-64":
		arch = "amd64"
	case "aarch64":
		arch = "arm64"
	case "armhf", "armel":
		arch = "arm"
	case "":
		return strings.EqualFold(e.OS, "linux")
	}
	return strings.EqualFold(e.OS, "linux") && arch == p.Architecture
}

// choose picks an index's entry for a platform: the best variant, and of
// equals the first.
func choose(list []ocispec.Descriptor, p Platform) (ocispec.Descriptor, error) {
	best, bestRank := ocispec.Descriptor{}, -1
	for _, d := range list {
		if d.Platform == nil || !isManifestType(d.MediaType) {
			continue
		}
		if r := p.rank(d.Platform); r >= 0 && (bestRank < 0 || r < bestRank) {
			best, bestRank = d, r
		}
	}
	// An index around a single image, as tools write to disk, may leave the
	// platform to the image's own config.
	if bestRank < 0 && len(list) == 1 && list[0].Platform == nil && isManifestType(list[0].MediaType) {
		return list[0], nil
	}
	if bestRank < 0 {
		return best, kind.Errorf(kind.NotFound, "image has no variant for %s", p)
	}
	return best, nil
}
