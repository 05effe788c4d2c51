package imagestore

import (
	"context"
	"fmt"
	"io"
	"path/filepath"

	"noded.dev/noded/imagestore/layer"
	"noded.dev/noded/internal/kind"
)

// Diff writes a container's writable layer as the tar of an image layer, which
// MountRequest.Diff takes. To be of one moment, the container must be frozen.
func (s *Store) Diff(ctx context.Context, id string, w io.Writer) error {
	s.mu.Lock()
	rec := s.mounts[id]
	s.mu.Unlock()
	if rec == nil || rec.unknown {
		return kind.Errorf(kind.NotFound, "no root filesystem of %s", id)
	}
	if err := layer.Pack(ctx, filepath.Join(s.writable(id, rec), "upper"), w); err != nil {
		return kind.Wrap(diskKind(err), fmt.Errorf("copy writable layer of %s: %w", id, err))
	}
	return nil
}
