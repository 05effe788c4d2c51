// Package checkpoint is the form of a pod's checkpoint in a folder: what CRIU
// and noded wrote of its containers, and a manifest that is sealed with the
// node's key. CRIU restores what its images say with the rights of root, so a
// checkpoint that no noded with the same key has written is not looked at.
package checkpoint

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"noded.dev/noded/internal/atomicfile"
	"noded.dev/noded/internal/kind"
)

// Version is of the layout; another one is refused.
const Version = 1

// Names in a checkpoint's folder. Those below a container's are what the tools
// for checkpoint archives look for.
const (
	ManifestFile  = "checkpoint.json"
	ShmFile       = "shm.tar"
	ContainersDir = "containers"

	ImagesDir  = "checkpoint"
	RootFSFile = "rootfs-diff.tar"
	SpecFile   = "spec.dump"
	ConfigFile = "config.dump"
)

// Manifest says what is in a checkpoint.
type Manifest struct {
	Version    int
	CreatedAt  time.Time
	Arch       string          // GOARCH
	Pod        json.RawMessage // the CRI's PodSandboxConfig
	Containers []Container
	Files      []File
}

// Container is one container of a checkpoint.
type Container struct {
	Name    string // of the CRI's metadata
	ID      string // when it was checkpointed; names its folder
	ImageID string
	Config  json.RawMessage // the CRI's ContainerConfig
}

// Dir is the container's folder, relative to the checkpoint's.
func (c Container) Dir() string { return path.Join(ContainersDir, c.ID) }

// File is one file with its content's digest.
type File struct {
	Path   string
	Size   int64
	SHA256 string // hex
}

// sealed is the manifest's file. The manifest is text, so that the seal is of
// the very bytes that are read.
type sealed struct {
	Manifest string
	Seal     string // hex of HMAC-SHA256 with the node's key
}

// maxManifest bounds the manifest's file, bytes.
const maxManifest = 64 << 20

const keyBytes = 32

// Key reads the node's key, making it first if there is none.
func Key(file string) ([]byte, error) {
	key, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		key = make([]byte, keyBytes)
		rand.Read(key) // never fails (crypto/rand)
		err = atomicfile.WriteDurable(file, key, 0o600)
	}
	if err != nil {
		return nil, fmt.Errorf("checkpoint key: %w", err)
	}
	if len(key) != keyBytes {
		return nil, kind.Errorf(kind.Precondition, "checkpoint key: %s has %d bytes, want %d", file, len(key), keyBytes)
	}
	return key, nil
}

func seal(manifest string, key []byte) []byte {
	h := hmac.New(sha256.New, key)
	io.WriteString(h, manifest)
	return h.Sum(nil)
}

// Seal lists the files in dir and writes the manifest, last of all. All is on
// the disk when it returns.
func Seal(ctx context.Context, dir string, m Manifest, key []byte) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("open checkpoint: %w", err)
	}
	defer root.Close()
	err = fs.WalkDir(root.FS(), ".", func(name string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		f, err := digest(ctx, root, name)
		m.Files = append(m.Files, f)
		return err
	})
	if err != nil {
		return fmt.Errorf("digest checkpoint: %w", err)
	}
	text, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode manifest: %w", err)
	}
	if len(text) > maxManifest/2 { // it is text in JSON again
		return kind.Errorf(kind.Exhausted, "the checkpoint's manifest has %d bytes, more than %d", len(text), maxManifest/2)
	}
	data, err := json.Marshal(sealed{Manifest: string(text), Seal: hex.EncodeToString(seal(string(text), key))})
	if err != nil {
		return fmt.Errorf("encode manifest: %w", err)
	}
	return atomicfile.WriteDurable(filepath.Join(dir, ManifestFile), data, 0o600)
}

func digest(ctx context.Context, root *os.Root, name string) (File, error) {
	f, err := openRegular(root, name)
	if err != nil {
		return File{}, err
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, reader{ctx, f})
	if err == nil {
		err = f.Sync()
	}
	return File{Path: name, Size: n, SHA256: hex.EncodeToString(h.Sum(nil))}, err
}

// openRegular opens a file and nothing else, and never waits for a FIFO's peer.
func openRegular(root *os.Root, name string) (*os.File, error) {
	f, err := root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = kind.Errorf(kind.Invalid, "%s is not a file", name)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

type reader struct {
	ctx context.Context
	r   io.Reader
}

func (r reader) Read(b []byte) (int, error) {
	if r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
	return r.r.Read(b)
}

// Checkpoint is one that is read.
type Checkpoint struct {
	Manifest
	root  *os.Root
	files map[string]File
}

// Open reads the manifest of the checkpoint in dir. An error of kind
// Precondition says that it is none of this node's.
func Open(dir string, key []byte) (*Checkpoint, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, kind.Errorf(kind.Invalid, "open checkpoint: %w", err)
	}
	c, err := open(root, key)
	if err != nil {
		root.Close()
		return nil, fmt.Errorf("checkpoint in %s: %w", dir, err)
	}
	return c, nil
}

func open(root *os.Root, key []byte) (*Checkpoint, error) {
	f, err := openRegular(root, ManifestFile)
	if err != nil {
		return nil, kind.Errorf(kind.Precondition, "it has no manifest: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxManifest+1))
	if err != nil {
		return nil, fmt.Errorf("read manifest: %w", err)
	}
	if len(data) > maxManifest {
		return nil, kind.Errorf(kind.Invalid, "the manifest has more than %d bytes", maxManifest)
	}
	var s sealed
	if err := json.Unmarshal(data, &s); err != nil {
		return nil, kind.Errorf(kind.Precondition, "decode manifest: %w", err)
	}
	have, err := hex.DecodeString(s.Seal)
	if err != nil || !hmac.Equal(have, seal(s.Manifest, key)) {
		return nil, kind.Errorf(kind.Precondition, "it was not written with the checkpoint key of this node, or was changed since")
	}
	c := &Checkpoint{root: root, files: map[string]File{}}
	if err := json.NewDecoder(strings.NewReader(s.Manifest)).Decode(&c.Manifest); err != nil {
		return nil, kind.Errorf(kind.Precondition, "decode manifest: %w", err)
	}
	if c.Version != Version {
		return nil, kind.Errorf(kind.Precondition, "its layout has version %d, this noded reads %d", c.Version, Version)
	}
	for _, f := range c.Files {
		c.files[f.Path] = f
	}
	return c, nil
}

// Close lets go of the folder.
func (c *Checkpoint) Close() error { return c.root.Close() }

// Has reports whether the checkpoint has a file.
func (c *Checkpoint) Has(name string) bool { _, ok := c.files[name]; return ok }

// ReadFile returns a small file's content.
func (c *Checkpoint) ReadFile(ctx context.Context, name string) ([]byte, error) {
	var b bytes.Buffer
	if c.files[name].Size > maxManifest {
		return nil, kind.Errorf(kind.Invalid, "%s has %d bytes, more than %d", name, c.files[name].Size, maxManifest)
	}
	err := c.Read(ctx, name, func(r io.Reader) error { _, err := b.ReadFrom(r); return err })
	return b.Bytes(), err
}

// Read gives a file's content to use and then says whether that was what the
// manifest names: nothing made of it may be kept if Read fails.
func (c *Checkpoint) Read(ctx context.Context, name string, use func(io.Reader) error) error {
	want, ok := c.files[name]
	if !ok {
		return kind.Errorf(kind.Precondition, "the checkpoint has no %s", name)
	}
	f, err := openRegular(c.root, name)
	if err != nil {
		return fmt.Errorf("open %s of the checkpoint: %w", name, err)
	}
	defer f.Close()
	changed := kind.Errorf(kind.DataLoss, "%s of the checkpoint is not what its manifest names", name)
	if st, err := f.Stat(); err != nil || st.Size() != want.Size {
		return errors.Join(changed, err)
	}
	h := sha256.New()
	// Not a byte more than it should have, whatever it has become.
	in := io.TeeReader(io.LimitReader(reader{ctx, f}, want.Size), h)
	if err := use(in); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, in); err != nil {
		return fmt.Errorf("read %s of the checkpoint: %w", name, err)
	}
	if hex.EncodeToString(h.Sum(nil)) != want.SHA256 {
		return changed
	}
	return nil
}

// Copy copies the files right below folder to dir, which is made. What is in
// dir afterwards is what the manifest names.
func (c *Checkpoint) Copy(ctx context.Context, folder, dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return fmt.Errorf("make folder: %w", err)
	}
	for name := range c.files {
		if path.Dir(name) != folder {
			continue
		}
		err := c.Read(ctx, name, func(r io.Reader) error {
			f, err := os.OpenFile(filepath.Join(dir, path.Base(name)), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
			if err != nil {
				return err
			}
			_, err = io.Copy(f, r)
			return errors.Join(err, f.Close())
		})
		if err != nil {
			return fmt.Errorf("copy %s: %w", name, err)
		}
	}
	return nil
}
