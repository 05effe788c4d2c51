package imagestore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"noded.dev/noded/internal/atomicfile"
	"noded.dev/noded/internal/kind"
)

// areasFile lists the folders that writable layers are or were kept in, so that
// those of a folder that is configured no longer are found and freed.
const areasFile = "container-roots.json"

// area is a folder for writable layers on another file system than the images':
// containers/<id> with upper and work, and a trash of its own, since a rename
// cannot leave a file system.
type area string

func (a area) layer(id string) string { return filepath.Join(string(a), containersDir, id) }
func (a area) trash() string          { return filepath.Join(string(a), trashDir) }

// openAreas reads the list, adds the configured folder and makes it.
func (s *Store) openAreas() error {
	var list []area
	err := readRecord(s.path(areasFile), &list)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		if err := s.setAside(s.path(areasFile), err); err != nil {
			return err
		}
		list = nil
	}
	s.areas = list
	if s.opts.ContainerRoot == "" {
		return nil
	}
	own := area(filepath.Clean(s.opts.ContainerRoot))
	for _, dir := range []string{string(own), filepath.Join(string(own), containersDir), own.trash()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("folder of writable layers: %w", err)
		}
		if err := os.Chmod(dir, 0o700); err != nil {
			return fmt.Errorf("folder of writable layers: %w", err)
		}
	}
	if s.areaLock, err = os.OpenFile(filepath.Join(string(own), "lock"), os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600); err != nil {
		return fmt.Errorf("folder of writable layers: %w", err)
	}
	if err := unix.Flock(int(s.areaLock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return kind.Errorf(kind.Unavailable, "folder of writable layers %s: another process uses it: %w", own, err)
	}
	s.own = own
	if slices.Contains(s.areas, own) {
		return nil
	}
	s.areas = append(s.areas, own)
	return s.writeAreas()
}

func (s *Store) writeAreas() error {
	data, err := json.Marshal(s.areas)
	if err != nil {
		return err
	}
	return atomicfile.WriteDurable(s.path(areasFile), data, 0o600)
}

// recoverAreas throws away writable layers that no record has, and forgets
// folders that are neither configured nor used.
func (s *Store) recoverAreas() error {
	var keep []area
	for _, a := range s.areas {
		entries, err := os.ReadDir(filepath.Join(string(a), containersDir))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("read writable layers: %w", err)
		}
		used := a == s.own
		for _, e := range entries {
			r := s.mounts[e.Name()]
			if r != nil && (r.unknown || r.Writable == a.layer(e.Name())) {
				used = true
				continue
			}
			if err := s.throwAway(a, e.Name()); err != nil {
				return fmt.Errorf("delete writable layer without a container: %w", err)
			}
		}
		if left, _ := os.ReadDir(a.trash()); used || len(left) > 0 {
			keep = append(keep, a)
		}
	}
	if len(keep) == len(s.areas) {
		return nil
	}
	s.areas = keep
	return s.writeAreas()
}

// throwAway moves a container's writable layer out of sight; nil if there is none.
func (s *Store) throwAway(a area, id string) error {
	err := os.Rename(a.layer(id), filepath.Join(a.trash(), s.newName("container")))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// trashes are all folders that the reaper empties.
func (s *Store) trashes() []string {
	list := []string{s.path(trashDir)}
	for _, a := range s.areas {
		list = append(list, a.trash())
	}
	return list
}

// writable is where a container's upper and work folders are.
func (s *Store) writable(id string, r *mountRecord) string {
	if r.Writable != "" {
		return r.Writable
	}
	return s.path(containersDir, id)
}

// gauge keeps a measurement that costs something for a while: ten times as long
// as it took, so that who asks often does not keep the disk busy.
type gauge struct {
	mu    sync.Mutex
	until time.Time
	usage Usage
}

// ContainerUsage returns what containers' writable layers take, if they are on
// a file system of their own, with those being deleted. Else it is Usage, by the
// same path: two different ones would tell the kubelet that there are two.
func (s *Store) ContainerUsage(ctx context.Context) (Usage, error) {
	if s.own == "" {
		return s.Usage()
	}
	g := &s.gauge
	g.mu.Lock()
	defer g.mu.Unlock()
	begin := time.Now()
	if begin.Before(g.until) {
		return g.usage, nil
	}
	usage, err := measureTree(ctx, string(s.own))
	if err != nil {
		return Usage{}, fmt.Errorf("measure writable layers: %w", err)
	}
	g.usage, g.until = usage, time.Now().Add(10*time.Since(begin))
	return usage, nil
}
