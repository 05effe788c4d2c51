package oracle

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// addFiles lists the entries of the scope's folders by name, down to the
// scope's depth and not into file systems mounted there.
func (s *Snapshot) addFiles(scope Scope) error {
	depth := scope.Depth
	if depth == 0 {
		depth = 4
	}
	var errs []error
	for _, folder := range scope.Files {
		var st unix.Stat_t
		if unix.Lstat(folder, &st) != nil {
			continue // not made yet
		}
		errs = append(errs, filepath.WalkDir(folder, func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // removed while walking
			}
			if err != nil || path == folder {
				return err
			}
			if prefixed(path, scope.Ignore) {
				return skip(d)
			}
			s.fixed("file %s (%s)", path, d.Type())
			var here unix.Stat_t
			if unix.Lstat(path, &here) == nil && here.Dev != st.Dev {
				return skip(d)
			}
			if strings.Count(strings.TrimPrefix(path, folder), "/") >= depth {
				return skip(d)
			}
			return nil
		}))
		var fsys unix.Statfs_t
		if unix.Statfs(folder, &fsys) == nil {
			s.note("%s: %d MiB and %d inodes free", folder, fsys.Bavail*uint64(fsys.Bsize)>>20, fsys.Ffree)
		}
	}
	return errors.Join(errs...)
}

func skip(d fs.DirEntry) error {
	if d.IsDir() {
		return fs.SkipDir
	}
	return nil
}

// addSockets lists unix sockets with a path in scope; without a scope also the
// TCP ports that are listened on.
func (s *Snapshot) addSockets(scope Scope) error {
	data, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		return err
	}
	for _, line := range strings.Split(string(data), "\n") {
		f := strings.Fields(line)
		// Field 3 holds the flags; 00010000 is a listening socket. Others come and go with connections.
		if len(f) == 8 && f[3] == "00010000" && (scope.all() || below(strings.TrimPrefix(f[7], "@"), scope.Paths)) {
			s.passing("unix socket %s", f[7])
		}
	}
	if !scope.all() {
		return nil
	}
	for _, table := range []string{"tcp", "tcp6"} {
		data, _ := os.ReadFile("/proc/net/" + table)
		for _, line := range strings.Split(string(data), "\n") {
			if f := strings.Fields(line); len(f) > 3 && f[3] == "0A" {
				s.passing("%s port %s", table, f[1])
			}
		}
	}
	return nil
}

// addDevices lists loop devices with their backing files, and, without a
// scope, counts pseudo terminals and shared memory.
func (s *Snapshot) addDevices(scope Scope) error {
	backing, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return err
	}
	for _, file := range backing {
		if data, err := os.ReadFile(file); err == nil {
			path := strings.TrimSpace(string(data))
			if scope.all() || below(path, scope.Paths) {
				s.fixed("loop device %s of %s", strings.Split(file, "/")[3], path)
			}
		}
	}
	if !scope.all() {
		return nil
	}
	if data, err := os.ReadFile("/proc/sys/kernel/pty/nr"); err == nil {
		s.passing("pseudo terminals: %s", strings.TrimSpace(string(data)))
	}
	entries, _ := os.ReadDir("/dev/shm")
	for _, e := range entries {
		s.passing("shared memory /dev/shm/%s", e.Name())
	}
	return nil
}
