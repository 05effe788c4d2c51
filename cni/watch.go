package cni

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/version"
	"golang.org/x/sys/unix"

	"noded.dev/noded/internal/kind"
)

const (
	// pollInterval is how often the folder is looked at while it cannot be
	// watched: fs.inotify.max_user_instances is 128, for all of root's programs.
	pollInterval = 5 * time.Second
	// lookInterval is how old an answer of Ready may be before it makes the
	// watcher look again. The kubelet asks every few seconds; nothing polls
	// when nobody asks.
	lookInterval = 10 * time.Second
	// impatience is the same while the answer is no.
	impatience = time.Second
	// statusTimeout bounds the STATUS verb of all plugins.
	statusTimeout = 10 * time.Second
)

// configuration is what was last seen of the folder. It is never changed.
type configuration struct {
	list   *libcni.NetworkConfigList // nil: pods cannot be connected
	file   string
	print  string // fingerprint of the folder
	err    error  // why the newest configuration is not used
	status error  // what the plugins say to STATUS
	looked time.Time
}

// ready explains what stands in the way.
func (p *plugins) ready() error {
	c := p.seen.Load()
	err := c.err
	if err == nil {
		err = c.status
	}
	limit := lookInterval
	if err != nil {
		limit = impatience
	}
	if time.Since(c.looked) > limit {
		select {
		case p.refresh <- struct{}{}:
		default:
		}
	}
	return err
}

// network is what a new pod is connected to.
func (p *plugins) network() (*libcni.NetworkConfigList, error) {
	c := p.seen.Load()
	if c.list == nil {
		return nil, c.err
	}
	return c.list, nil
}

// watch looks at the configuration whenever it changes or Ready asks.
func (p *plugins) watch(ctx context.Context) {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	w := p.startWatching(true)
	defer func() { w.close() }()
	for ctx.Err() == nil {
		p.look(ctx) // first of all, for what changed before the watch began
		changed, poll := w.changed(), tick.C
		if w != nil {
			poll = nil
		}
		select {
		case <-ctx.Done():
		case <-p.refresh:
		case <-poll:
			w = p.startWatching(false)
		case _, ok := <-changed:
			if !ok { // the folder was moved or deleted
				w.close()
				w = p.startWatching(true)
			}
		}
	}
}

// startWatching returns nil if the folder has to be polled.
func (p *plugins) startWatching(complain bool) *watcher {
	w, err := newWatcher(p.opts.ConfDir)
	if err != nil && complain {
		p.opts.Log.WithError(err).Warnf("%s is looked at every %v instead of watched", p.opts.ConfDir, pollInterval)
	}
	return w
}

// look reads the configuration if it changed, asks the plugins for their
// status and publishes both at once.
func (p *plugins) look(ctx context.Context) {
	old := p.seen.Load()
	next := &configuration{print: fingerprint(p.opts.ConfDir)}
	if old != nil && old.print == next.print {
		next.list, next.file, next.err = old.list, old.file, old.err
	} else {
		p.load(next, old)
	}
	if next.list != nil && hasVerbs11(next.list) {
		next.status = p.status(ctx, next.list)
	}
	next.looked = time.Now()
	p.seen.Store(next)
}

// load reads the folder anew. A file that cannot be used leaves the network
// that was in use before in place, for pods that are added meanwhile.
func (p *plugins) load(next, old *configuration) {
	next.list, next.file, next.err = loadConf(p.opts.ConfDir)
	switch {
	case next.err != nil && old != nil && old.list != nil:
		p.opts.Log.WithError(next.err).Warnf("network stays as configured by %s", old.file)
		next.list = old.list
	case next.err != nil:
		p.opts.Log.WithError(next.err).Warn("no network")
	case next.list == nil:
		next.err = kind.Errorf(kind.Precondition, "no network configuration in %s", p.opts.ConfDir)
	default:
		p.opts.Log.Infof("network %s from %s", next.list.Name, next.file)
	}
}

func (p *plugins) status(ctx context.Context, list *libcni.NetworkConfigList) error {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	if err := p.cni.GetStatusNetworkList(ctx, list); err != nil {
		return kind.Errorf(kind.Precondition, "network %s: %w", list.Name, err)
	}
	return nil
}

// hasVerbs11 reports whether STATUS and GC exist in the list's version.
func hasVerbs11(list *libcni.NetworkConfigList) bool {
	ok, err := version.GreaterThanOrEqualTo(list.CNIVersion, "1.1.0")
	return err == nil && ok
}

// watcher tells that a folder's files changed. A nil one tells nothing.
type watcher struct {
	file   *os.File
	events chan struct{} // a token: something changed; closed: the folder is gone
}

// newWatcher makes the folder if it is missing, so that it can be watched.
func newWatcher(dir string) (*watcher, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make folder of network configuration: %w", err)
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("make inotify instance: %w", err)
	}
	// Not IN_CREATE: the file is still empty then; the writer's close follows.
	const mask = unix.IN_CLOSE_WRITE | unix.IN_MOVED_TO | unix.IN_MOVED_FROM | unix.IN_DELETE |
		unix.IN_DELETE_SELF | unix.IN_MOVE_SELF | unix.IN_ONLYDIR
	if _, err := unix.InotifyAddWatch(fd, dir, mask); err != nil {
		return nil, errors.Join(fmt.Errorf("watch %s: %w", dir, err), unix.Close(fd))
	}
	w := &watcher{file: os.NewFile(uintptr(fd), "inotify"), events: make(chan struct{}, 1)}
	go w.read()
	return w, nil
}

// read turns events into tokens until the folder ends or close is called.
func (w *watcher) read() {
	defer close(w.events)
	buf := make([]byte, 4096)
	for {
		n, err := w.file.Read(buf)
		if err != nil || folderEnded(buf[:n]) {
			return
		}
		select {
		case w.events <- struct{}{}:
		default:
		}
	}
}

func (w *watcher) changed() <-chan struct{} {
	if w == nil {
		return nil
	}
	return w.events
}

// close ends the watch and waits for its goroutine.
func (w *watcher) close() {
	if w == nil {
		return
	}
	w.file.Close() // of an inotify descriptor, which has nothing to lose
	for range w.events {
	}
}

// folderEnded looks for the events after which no more will come (inotify(7)):
// each is a header of int32 and three uint32, the last the length of a name.
func folderEnded(buf []byte) bool {
	const ends = unix.IN_IGNORED | unix.IN_MOVE_SELF | unix.IN_DELETE_SELF | unix.IN_UNMOUNT
	for len(buf) >= unix.SizeofInotifyEvent {
		if binary.NativeEndian.Uint32(buf[4:])&ends != 0 {
			return true
		}
		size := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(buf[12:]))
		buf = buf[min(len(buf), size):]
	}
	return false
}
