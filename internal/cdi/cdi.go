// Package cdi adds devices to OCI specs as their vendors describe them: device
// nodes, mounts, environment and hooks that CDI specification files name. The
// files are the administrator's and trusted; the names in a request are not.
package cdi

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	rspec "github.com/opencontainers/runtime-spec/specs-go"
	"tags.cncf.io/container-device-interface/pkg/cdi"
	"tags.cncf.io/container-device-interface/pkg/parser"

	"noded.dev/noded/internal/kind"
)

// maxDevices bounds the devices of one container.
const maxDevices = 256

// Names gathers the devices that a container asks for, each once: those listed
// and those in annotations below "cdi.k8s.io/", as older device plugins have it.
// A name that is not "vendor/class=device" is of kind Invalid.
func Names(listed []string, annotations map[string]string) ([]string, error) {
	names := slices.Clone(listed)
	for _, key := range slices.Sorted(maps.Keys(annotations)) {
		if strings.HasPrefix(key, cdi.AnnotationPrefix) {
			names = append(names, strings.Split(annotations[key], ",")...)
		}
	}
	seen := map[string]bool{}
	unique := []string{}
	for _, name := range names {
		if _, _, _, err := parser.ParseQualifiedName(name); err != nil {
			return nil, kind.Errorf(kind.Invalid, "CDI device %.128q is not of the form vendor/class=device: %w", name, err)
		}
		if !seen[name] {
			seen[name] = true
			unique = append(unique, name)
		}
	}
	if len(unique) > maxDevices {
		return nil, kind.Errorf(kind.Exhausted, "%d CDI devices, the limit is %d", len(unique), maxDevices)
	}
	return unique, nil
}

// Inject adds the named devices to s. The files in dirs are read now, so that a
// device that was just plugged in is there; of two that define a device the one
// in the later folder counts. A device in none of them is of kind NotFound.
func Inject(s *rspec.Spec, names, dirs []string) error {
	if len(names) == 0 {
		return nil
	}
	if len(dirs) == 0 {
		return kind.Errorf(kind.NotFound, "no CDI device %s: there are no folders of CDI specifications", strings.Join(names, ", "))
	}
	// The cache's only use is to read the folders once.
	cache, err := cdi.NewCache(cdi.WithSpecDirs(dirs...), cdi.WithAutoRefresh(false))
	if err != nil {
		return fmt.Errorf("read CDI specifications: %w", err)
	}
	unknown, err := cache.InjectDevices(s, names...)
	if len(unknown) > 0 {
		return kind.Errorf(kind.NotFound, "no CDI device %s in %s%s", strings.Join(unknown, ", "), strings.Join(dirs, ", "), damaged(cache))
	}
	if err != nil {
		return kind.Wrap(kind.Precondition, fmt.Errorf("CDI devices %s: %w", strings.Join(names, ", "), err))
	}
	return nil
}

// damaged tells of files that could not be read, where the device that is
// missing may be.
func damaged(cache *cdi.Cache) string {
	var errs []error
	all := cache.GetErrors()
	for _, path := range slices.Sorted(maps.Keys(all)) {
		errs = append(errs, fmt.Errorf("%s: %w", path, errors.Join(all[path]...)))
	}
	if len(errs) == 0 {
		return ""
	}
	return "; not read: " + errors.Join(errs...).Error()
}
