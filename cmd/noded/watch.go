package main

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// watcher tells that something changed in a folder: a file was written,
// created, renamed or deleted (inotify(7)).
type watcher struct {
	file    *os.File
	changed chan error // a nil value is a change; further ones while it waits are merged
	ended   chan struct{}
}

func watchFolder(dir string) (*watcher, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("make inotify instance: %w", err)
	}
	const mask = unix.IN_MODIFY | unix.IN_CREATE | unix.IN_MOVED_TO | unix.IN_MOVED_FROM | unix.IN_DELETE | unix.IN_DELETE_SELF
	if _, err := unix.InotifyAddWatch(fd, dir, mask); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("watch %s: %w", dir, err)
	}
	w := &watcher{file: os.NewFile(uintptr(fd), "inotify"), changed: make(chan error, 1), ended: make(chan struct{})}
	go w.run()
	return w, nil
}

func (w *watcher) run() {
	defer close(w.ended)
	events := make([]byte, 16<<10)
	for {
		_, err := w.file.Read(events)
		if err != nil {
			select {
			case w.changed <- err:
			default:
			}
			return
		}
		select {
		case w.changed <- nil:
		default:
		}
	}
}

// close ends the watch and waits for its goroutine.
func (w *watcher) close() {
	w.file.Close()
	<-w.ended
}
