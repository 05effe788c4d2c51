package imagestore

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"noded.dev/noded/imagestore/layer"
	"noded.dev/noded/internal/atomicfile"
	"noded.dev/noded/internal/kind"
)

const recordVersion = 1

// imageRecord is an image as stored in images/<hex of id>.json. It is written
// last, when everything it names is durable.
type imageRecord struct {
	Version  int                 `json:"version"`
	ID       string              `json:"id"`
	Manifest string              `json:"manifest"`           // digest
	Blobs    []string            `json:"blobs"`              // hex of sha256: manifest, config; an artifact has no config
	Artifact string              `json:"artifact,omitempty"` // see Image
	Tags     []string            `json:"tags"`
	Digests  []string            `json:"digests"`
	Signed   map[string][]string `json:"signed,omitempty"` // keys that had signed it, by the repository it was pulled from
	Stack    []string            `json:"stack"`            // folders in layers/, topmost first, as overlayfs gets them
	Root     layer.Folder        `json:"root"`             // attributes of "/"
	Size     int64               `json:"size"`
	Taken    int64               `json:"taken"` // bytes of the blobs
	PulledAt time.Time           `json:"pulled_at"`
	TaggedAt time.Time           `json:"tagged_at"` // of two that hold the same tag the later one counts
	config   *ocispec.Image      // from its blob
	held     []string            // layers that this record is counted as a user of
}

func (s *Store) image(r *imageRecord) Image {
	return Image{
		ID: r.ID, Tags: r.Tags, Digests: r.Digests, Size: r.Size, Config: *r.config,
		Manifest: r.Manifest, Artifact: r.Artifact, PulledAt: r.PulledAt, Pinned: s.pins.Load().match(r),
	}
}

func (r *imageRecord) blobBytes() int64 { return r.Taken }

// clone copies a record so that the one in the map is never changed.
func (r *imageRecord) clone() *imageRecord {
	c := *r
	c.Tags, c.Digests, c.Signed = slices.Clone(r.Tags), slices.Clone(r.Digests), maps.Clone(r.Signed)
	return &c
}

func hexOf(id string) string { return strings.TrimPrefix(id, "sha256:") }

func (s *Store) recordPath(id string) string { return s.path(imagesDir, hexOf(id)+".json") }

func (s *Store) writeRecord(r *imageRecord) error {
	data, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode image record: %w", err)
	}
	return atomicfile.WriteDurable(s.recordPath(r.ID), data, 0o600)
}

// writeBlob stores a manifest or config by its sha256 and returns its hex. It
// is durable with the layers, by the same sync.
func (s *Store) writeBlob(data []byte) (string, error) {
	sum := sha256.Sum256(data)
	name := hex.EncodeToString(sum[:])
	if err := atomicfile.Write(s.path(blobsDir, name), data, 0o600); err != nil {
		return "", fmt.Errorf("store blob: %w", err)
	}
	return name, nil
}

// readBlob reads a blob and verifies it.
func (s *Store) readBlob(name string, most int64) ([]byte, error) {
	if len(name) != 64 || !isHex(name) {
		return nil, kind.Errorf(kind.DataLoss, "blob name %q is not a sha256", name)
	}
	data, err := readFile(s.path(blobsDir, name), most)
	if err != nil {
		return nil, err
	}
	if sum := sha256.Sum256(data); hex.EncodeToString(sum[:]) != name {
		return nil, kind.Errorf(kind.DataLoss, "blob %s does not match its digest", name)
	}
	return data, nil
}

// readFile reads at most most bytes of a file of the store.
func readFile(path string, most int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, most+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > most {
		return nil, kind.Errorf(kind.DataLoss, "%s has more than %d bytes", filepath.Base(path), most)
	}
	return data, nil
}

const maxRecord = 16 << 20 // bytes; a layer's metadata may list many folders

// readRecord reads a versioned JSON record strictly enough to notice damage.
func readRecord(path string, into any) error {
	data, err := readFile(path, maxRecord)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, into); err != nil {
		return kind.Errorf(kind.DataLoss, "%s is damaged: %w", filepath.Base(path), err)
	}
	return nil
}

// loadImage reads a record and what it names. missing is true if all is well
// but for layers that are not there.
func (s *Store) loadImage(path string) (r *imageRecord, missing bool, err error) {
	r = &imageRecord{}
	if err := readRecord(path, r); err != nil {
		return nil, false, err
	}
	blobs := 2
	if r.Artifact != "" {
		blobs = 1
	}
	if r.Version != recordVersion || filepath.Base(path) != hexOf(r.ID)+".json" || len(r.Blobs) != blobs || len(r.Stack) == 0 {
		return nil, false, kind.Errorf(kind.DataLoss, "%s is not an image record of version %d", filepath.Base(path), recordVersion)
	}
	named := r.Blobs[blobs-1] // what the id is the digest of
	if hexOf(r.ID) != named {
		return nil, false, kind.Errorf(kind.DataLoss, "%s names another config", filepath.Base(path))
	}
	data, err := s.readBlob(named, max(s.limits.ConfigBytes, s.limits.ManifestBytes))
	if err != nil {
		return nil, false, err
	}
	r.config = &ocispec.Image{}
	if r.Artifact == "" {
		if err := json.Unmarshal(data, r.config); err != nil {
			return nil, false, kind.Errorf(kind.DataLoss, "config %s: %w", r.ID, err)
		}
	}
	for _, l := range r.Stack {
		if s.layers[l] == nil {
			missing = true
		}
	}
	return r, missing, nil
}

// layerRecord is layers/<hex>/meta.json; its presence in a folder of that
// name is the mark of a whole layer.
type layerRecord struct {
	Version int `json:"version"`
	layer.Meta
}

func (s *Store) layerFS(hex string) string { return s.path(layersDir, hex, "fs") }

func writeLayerMeta(dir string, m layer.Meta) error {
	data, err := json.Marshal(layerRecord{recordVersion, m})
	if err != nil {
		return fmt.Errorf("encode layer metadata: %w", err)
	}
	return atomicfile.Write(filepath.Join(dir, "meta.json"), data, 0o600)
}

func (s *Store) readLayerMeta(hex string) (layer.Meta, error) {
	var r layerRecord
	if err := readRecord(s.path(layersDir, hex, "meta.json"), &r); err != nil {
		return layer.Meta{}, err
	}
	if r.Version != recordVersion {
		return layer.Meta{}, kind.Errorf(kind.DataLoss, "layer metadata is not of version %d", recordVersion)
	}
	return r.Meta, nil
}
