package spec

import (
	"path"
	"slices"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	rspec "github.com/opencontainers/runtime-spec/specs-go"

	"noded.dev/noded/internal/kind"
)

// Volumes lists the folders that an image declares as volumes: cleaned,
// absolute, sorted. noded mounts nothing there; they are ordinary folders of
// the container's writable layer, which the caller may create (resolving them
// beneath the root filesystem). kind.Invalid for a place that cannot be one.
func Volumes(image ocispec.ImageConfig) ([]string, error) {
	if len(image.Volumes) > maxVolumes {
		return nil, tooMany("image volumes", len(image.Volumes), maxVolumes)
	}
	var list []string
	for v := range image.Volumes {
		if err := checkText("image volume", v, maxPath); err != nil {
			return nil, err
		}
		clean := path.Clean("/" + v)
		if clean == "/" || reservedPath(clean) {
			return nil, kind.Errorf(kind.Invalid, "image volume %q cannot be at %s", clip(v), clean)
		}
		list = append(list, clean)
	}
	slices.Sort(list)
	return slices.Compact(list), nil
}

func checkVolumes(in *Input, _ *rspec.Spec) error {
	_, err := Volumes(in.Image)
	return err
}
