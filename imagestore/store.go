package imagestore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"noded.dev/noded/imagestore/layer"
	"noded.dev/noded/imagestore/limit"
	"noded.dev/noded/imagestore/registry"
	"noded.dev/noded/imagestore/verify"
	"noded.dev/noded/internal/idmap"
	"noded.dev/noded/internal/kind"
)

// Options configures a Store. Only Root is required.
type Options struct {
	Root            string        // folder of the store; made if missing
	ContainerRoot   string        // folder of writable layers on another file system; "" is below Root
	RegistryDirs    []string      // hosts.toml folders, as /etc/containerd/certs.d
	DockerConfig    string        // Docker's config.json, for credentials; "" none
	NamespaceDir    string        // folder of such files for pods of one namespace: "<namespace>.json"; "" none
	TokenHosts      []string      // further token servers that credentials may go to: "host" or "host:port"
	Pinned          []string      // see Store.SetPinned
	Policy          []verify.Rule // see Store.SetPolicy; none takes every image
	MaxLayersAtOnce int           // layers of one pull side by side; 0 is 3
	MinRate         int64         // bytes per second; slower transfers move on; 0 is 1024
	StallWindow     time.Duration // over which MinRate is measured; 0 is a minute
	Limits          limit.Limits  // zero fields have their defaults
	Log             logrus.FieldLogger
}

// Store keeps images, layers and root filesystems below one folder. Its
// methods are safe for concurrent use.
type Store struct {
	opts   Options
	limits limit.Limits
	log    logrus.FieldLogger
	client *registry.Client
	lock   *os.File
	rootFD *os.File

	snapshot atomic.Pointer[snapshot] // what List and Lookup read

	commits sync.Mutex // held while an image is made visible or removed; I/O is done under it

	// mu guards the maps. No I/O is done while it is held, but for renames.
	mu      sync.Mutex
	images  map[string]*imageRecord // by id, listed ones only
	damaged map[string]*imageRecord // by id: a layer is missing; not listed
	layers  map[string]*layerState  // by hex of the diff id
	jobs    map[string]*job         // layers being made, likewise
	pulls   map[string]*pull
	mounts  map[string]*mountRecord
	busy    map[string]chan struct{} // container ids with an operation under way
	keepFor time.Duration            // how long a finished layer of a failed pull waits for the next try
	names   uint64                   // for names in staging and trash
	keepAll bool                     // a mount's layers are unknown: free none

	pins     atomic.Pointer[pins]
	policy   atomic.Pointer[verify.Policy]
	unmapped error         // why root filesystems cannot have mapped ids; nil: they can
	closing  chan struct{} // closed by Close, with mu held
	stop     context.CancelFunc
	workers  sync.WaitGroup
	trash    *reaper

	// Set when the store is opened.
	areas    []area // all folders of writable layers beside Root
	own      area   // that of new ones; "" is Root
	areaLock *os.File
	gauge    gauge
}

// layerState is a layer that is whole and durable.
type layerState struct {
	meta layer.Meta
	refs int // images, root filesystems and pulls that need it
}

// snapshot is what is listed, never changed once published.
type snapshot struct {
	images   []Image
	byID     map[string]int
	byName   map[string]int // tags and digest references
	pullList []*pull
}

// keepFinished is long enough for the kubelet's first retries (after 10, 20 and
// 40 seconds) and short enough to be no leak.
const keepFinished = time.Minute

const (
	layersDir     = "layers"
	stagingDir    = "staging"
	trashDir      = "trash"
	imagesDir     = "images"
	blobsDir      = "blobs/sha256"
	containersDir = "containers"
	quarantineDir = "quarantine"
)

// Open opens the store and finishes or undoes what a crash left half done. ctx
// bounds the opening only.
func Open(ctx context.Context, o Options) (*Store, error) {
	if o.Log == nil {
		o.Log = logrus.StandardLogger()
	}
	if o.MaxLayersAtOnce <= 0 {
		o.MaxLayersAtOnce = 3
	}
	s := &Store{
		keepFor: keepFinished,
		opts:    o, limits: o.Limits.WithDefaults(), log: o.Log.WithField("part", "images"),
		images: map[string]*imageRecord{}, damaged: map[string]*imageRecord{}, layers: map[string]*layerState{},
		jobs: map[string]*job{}, pulls: map[string]*pull{}, mounts: map[string]*mountRecord{}, busy: map[string]chan struct{}{},
		closing: make(chan struct{}),
	}
	s.pins.Store(newPins(o.Pinned))
	if err := s.SetPolicy(o.Policy); err != nil {
		return nil, err
	}
	s.client = registry.New(registry.Options{
		Dirs: o.RegistryDirs, DockerConfig: o.DockerConfig, NamespaceDir: o.NamespaceDir, TokenHosts: o.TokenHosts,
		Limits: s.limits, MinRate: o.MinRate, StallWindow: o.StallWindow, Log: s.log,
	})
	if err := s.folders(); err != nil {
		return nil, fmt.Errorf("open image store %s: %w", o.Root, err)
	}
	if err := s.recover(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("open image store %s: %w", o.Root, err), s.closeFiles())
	}
	working, stop := context.WithCancel(context.WithoutCancel(ctx))
	s.stop = stop
	s.trash = newReaper(s.trashes(), s.log)
	s.workers.Go(func() { s.trash.run(working) })
	s.unmapped = s.tryMapped()
	s.publish()
	return s, nil
}

// folders makes the store's folders. Nobody but root may enter them: images
// hold set-id programs that no user of this node shall find.
func (s *Store) folders() (err error) {
	for _, dir := range []string{"", layersDir, stagingDir, trashDir, imagesDir, "blobs", blobsDir, containersDir, quarantineDir} {
		if err := os.MkdirAll(s.path(dir), 0o700); err != nil {
			return err
		}
		if err := idmap.Close(s.path(dir)); err != nil {
			return err
		}
	}
	spread(s.path(stagingDir))
	if s.rootFD, err = os.Open(s.opts.Root); err != nil {
		return err
	}
	if s.lock, err = os.OpenFile(s.path("lock"), os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600); err != nil {
		return errors.Join(err, s.rootFD.Close())
	}
	if err := unix.Flock(int(s.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		err = kind.Errorf(kind.Unavailable, "another process uses it: %w", err)
		return errors.Join(err, s.closeFiles())
	}
	if err := s.openAreas(); err != nil {
		return errors.Join(err, s.closeFiles())
	}
	return nil
}

// spread asks ext4 to put each folder made in dir somewhere else on the disk
// ("chattr +T"), as it does at the top of a file system. Else all layers share
// one block group, where making files is up to thirty times slower while
// others were deleted in the last seconds: inodes just freed are passed over
// one by one. Other file systems have no such flag and need none.
func spread(dir string) {
	const topDir = 0x00020000 // FS_TOPDIR_FL of linux/fs.h
	f, err := os.Open(dir)
	if err != nil {
		return
	}
	defer f.Close()
	flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err == nil && flags&topDir == 0 {
		unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags|topDir)
	}
}

func (s *Store) path(parts ...string) string {
	return filepath.Join(append([]string{s.opts.Root}, parts...)...)
}

// Close, which may be repeated, cancels pulls, waits for all of the store's goroutines and lets go of
// the folder. Root filesystems stay mounted.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.isClosing() {
		s.mu.Unlock()
		return nil
	}
	close(s.closing)
	for _, p := range s.pulls {
		p.cancel(errClosing)
	}
	for _, j := range s.jobs {
		j.cancel(errClosing)
	}
	s.mu.Unlock()
	s.stop()
	s.workers.Wait()
	return s.closeFiles()
}

func (s *Store) closeFiles() error {
	var err error
	if s.areaLock != nil {
		err = s.areaLock.Close()
	}
	return errors.Join(err, s.lock.Close(), s.rootFD.Close())
}

var errClosing = errors.New("the image store is closing")

func (s *Store) isClosing() bool {
	select {
	case <-s.closing:
		return true
	default:
		return false
	}
}

// ownContextLocked is for work that callers share: it has ctx's values and ends by
// its own cancel function, which Close calls. It needs mu.
func (s *Store) ownContextLocked(ctx context.Context) (context.Context, context.CancelCauseFunc) {
	own, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	if s.isClosing() {
		cancel(errClosing)
	}
	return own, cancel
}

// publish makes the maps' images what List returns. Call it without mu.
func (s *Store) publish() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.publishLocked()
}

func (s *Store) publishLocked() {
	snap := &snapshot{byID: map[string]int{}, byName: map[string]int{}}
	for _, r := range s.images {
		snap.images = append(snap.images, s.image(r))
	}
	slices.SortFunc(snap.images, func(a, b Image) int { return strings.Compare(a.ID, b.ID) })
	for i, img := range snap.images {
		snap.byID[img.ID] = i
		for _, name := range slices.Concat(img.Tags, img.Digests) {
			snap.byName[name] = i
		}
	}
	for _, p := range s.pulls {
		snap.pullList = append(snap.pullList, p)
	}
	slices.SortFunc(snap.pullList, func(a, b *pull) int { return a.started.Compare(b.started) })
	s.snapshot.Store(snap)
}

// List returns all images, ordered by id. The slice is shared; do not change it.
func (s *Store) List() []Image { return s.snapshot.Load().images }

// Lookup finds an image by id, unambiguous id prefix, tag or digest reference.
func (s *Store) Lookup(ref string) (Image, error) {
	snap := s.snapshot.Load()
	hex := strings.TrimPrefix(ref, "sha256:")
	if i, ok := snap.byID["sha256:"+hex]; ok {
		return snap.images[i], nil
	}
	if len(hex) == 64 && isHex(hex) {
		return Image{}, kind.Errorf(kind.NotFound, "no image %s", ref)
	}
	parsed, err := registry.ParseReference(ref)
	if err == nil {
		if i, ok := snap.byName[parsed.String()]; ok {
			return snap.images[i], nil
		}
	}
	if isHex(hex) && hex != "" && len(hex) < 64 {
		return snap.byPrefix(ref, hex)
	}
	if err != nil {
		return Image{}, err
	}
	return Image{}, kind.Errorf(kind.NotFound, "no image %s", parsed)
}

func (snap *snapshot) byPrefix(ref, hex string) (Image, error) {
	at, _ := slices.BinarySearchFunc(snap.images, "sha256:"+hex, func(img Image, id string) int { return strings.Compare(img.ID, id) })
	match := func(i int) bool { return i < len(snap.images) && strings.HasPrefix(snap.images[i].ID, "sha256:"+hex) }
	switch {
	case !match(at):
		return Image{}, kind.Errorf(kind.NotFound, "no image %s", ref)
	case match(at + 1):
		return Image{}, kind.Errorf(kind.Invalid, "image id prefix %s is ambiguous", ref)
	}
	return snap.images[at], nil
}

func isHex(s string) bool {
	for _, c := range s {
		if !('0' <= c && c <= '9' || 'a' <= c && c <= 'f') {
			return false
		}
	}
	return true
}

// Pulls returns the progress of the pulls under way, oldest first.
func (s *Store) Pulls() []Progress {
	list := []Progress{} // in crictl info, none are [] and not null
	for _, p := range s.snapshot.Load().pullList {
		list = append(list, p.progress())
	}
	return list
}

// Usage returns what images take on disk: layers, manifests and configs, what
// is being pulled and what is being deleted.
func (s *Store) Usage() (Usage, error) {
	u := Usage{Path: s.opts.Root}
	s.mu.Lock()
	defer s.mu.Unlock()
	add := func(bytes, inodes int64) {
		u.Bytes += uint64(max(bytes, 0))
		u.Inodes += uint64(max(inodes, 0))
	}
	for _, l := range s.layers {
		add(l.meta.Bytes+layerOverhead, l.meta.Inodes+2)
	}
	for _, j := range s.jobs {
		add(j.count.Bytes.Load(), j.count.Inodes.Load())
	}
	for _, list := range []map[string]*imageRecord{s.images, s.damaged} {
		for _, r := range list {
			add(r.blobBytes()+4096, 3)
		}
	}
	add(s.trash.bytes.Load(), s.trash.inodes.Load())
	return u, nil
}

// layerOverhead is a layer's own folder and its metadata, a block each.
const layerOverhead = 8192

// newName makes a name for staging and trash that was never used before, also
// not by a process before this one whose leftovers are still there.
func (s *Store) newName(hint string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.newNameLocked(hint)
}

func (s *Store) newNameLocked(hint string) string {
	s.names++
	return fmt.Sprintf("%s-%d-%d", hint, time.Now().UnixNano(), s.names)
}
