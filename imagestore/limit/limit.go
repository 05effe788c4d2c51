// Package limit is the one table of what images and registries may cost.
// Everything that comes from outside is measured against it, and an error
// names the limit and its value.
package limit

import (
	"noded.dev/noded/internal/kind"
)

// Limits bound one pull. The zero value of a field means its default.
type Limits struct {
	ManifestBytes  int64 // one manifest or index
	ConfigBytes    int64 // one image config
	TokenBytes     int64 // one reply of a token server
	SignatureBytes int64 // one signature with what it signs
	Signatures     int   // signatures of one image that are looked at
	IndexDepth     int   // indexes inside indexes
	Descriptors    int   // descriptors read in all of an image's indexes and its manifest
	Layers         int   // layers of an image; overlayfs stacks 500 (OVL_MAX_STACK)
	JSONDepth      int   // nesting of a manifest or config

	LayerBytes   int64 // unpacked bytes of one layer
	LayerEntries int64 // tar entries of one layer
	ImpliedDirs  int   // folders of a layer that have no entry of their own
	Ratio        int64 // unpacked to compressed bytes, once RatioFrom bytes are out
	RatioFrom    int64
	ZstdWindow   int64 // bytes of history a zstd layer may ask for
	XattrBytes   int64 // names and values of one entry's extended attributes
	PathBytes    int   // one path, also after following a layer's symlinks
	NameBytes    int   // one component of a path
	ReserveBytes int64 // left free on the file system, at most 5 % of it

	Redirects int // followed for one request
	Retries   int // of one transfer, over all hosts
}

// Default returns the documented limits.
func Default() Limits {
	return Limits{
		ManifestBytes:  1 << 20,
		ConfigBytes:    8 << 20,
		TokenBytes:     1 << 20,
		SignatureBytes: 128 << 10,
		Signatures:     32,
		IndexDepth:     3,
		Descriptors:    2048,
		Layers:         500,
		JSONDepth:      64,
		LayerBytes:     64 << 30,
		LayerEntries:   4_000_000,
		ImpliedDirs:    65_536,
		Ratio:          1000,
		RatioFrom:      64 << 20,
		ZstdWindow:     128 << 20,
		XattrBytes:     1 << 20,
		PathBytes:      4096,
		NameBytes:      255,
		ReserveBytes:   512 << 20,
		Redirects:      5,
		Retries:        5,
	}
}

// WithDefaults fills the fields that are zero.
func (l Limits) WithDefaults() Limits {
	d := Default()
	fill(&l.ManifestBytes, d.ManifestBytes)
	fill(&l.ConfigBytes, d.ConfigBytes)
	fill(&l.TokenBytes, d.TokenBytes)
	fill(&l.SignatureBytes, d.SignatureBytes)
	fill(&l.Signatures, d.Signatures)
	fill(&l.IndexDepth, d.IndexDepth)
	fill(&l.Descriptors, d.Descriptors)
	fill(&l.Layers, d.Layers)
	fill(&l.JSONDepth, d.JSONDepth)
	fill(&l.LayerBytes, d.LayerBytes)
	fill(&l.LayerEntries, d.LayerEntries)
	fill(&l.ImpliedDirs, d.ImpliedDirs)
	fill(&l.Ratio, d.Ratio)
	fill(&l.RatioFrom, d.RatioFrom)
	fill(&l.ZstdWindow, d.ZstdWindow)
	fill(&l.XattrBytes, d.XattrBytes)
	fill(&l.PathBytes, d.PathBytes)
	fill(&l.NameBytes, d.NameBytes)
	fill(&l.ReserveBytes, d.ReserveBytes)
	fill(&l.Redirects, d.Redirects)
	fill(&l.Retries, d.Retries)
	return l
}

func fill[T int | int64](field *T, value T) {
	if *field == 0 {
		*field = value
	}
}

// Error says which limit something went over. k is Invalid for what no image
// may have, Exhausted for what this node has no room for.
func Error[T int | int64](k kind.Kind, what, name string, value T) error {
	return kind.Errorf(k, "%s is over the limit %s = %d", what, name, value)
}
