package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// A container's log is a file of this machine in the CRI's format, one line
//
//	2026-01-02T15:04:05.000000000Z stdout F text
//
// for each line of output; the tag P (partial) in place of F says that the
// line goes on in the next one.

// logPrinter writes the texts of log lines to stdout and stderr.
type logPrinter struct {
	out, err   io.Writer
	timestamps bool
	partial    map[string]bool // streams whose last line was partial
}

var errLogFormat = errors.New("not a line of the CRI log format")

func (p *logPrinter) print(line []byte) error {
	stamp, rest, ok1 := bytes.Cut(line, []byte(" "))
	stream, rest, ok2 := bytes.Cut(rest, []byte(" "))
	tag, text, ok3 := bytes.Cut(rest, []byte(" "))
	if !ok1 || !ok2 || !ok3 {
		return fmt.Errorf("%w: %.60q", errLogFormat, line)
	}
	w := p.out
	if string(stream) == "stderr" {
		w = p.err
	}
	text = bytes.TrimSuffix(text, []byte("\n"))
	if p.partial == nil {
		p.partial = map[string]bool{}
	}
	var b []byte
	if p.timestamps && !p.partial[string(stream)] {
		b = append(append(b, stamp...), ' ')
	}
	b = append(b, text...)
	// Further tags may follow the first after colons.
	first, _, _ := bytes.Cut(tag, []byte(":"))
	p.partial[string(stream)] = string(first) == "P"
	if !p.partial[string(stream)] {
		b = append(b, '\n')
	}
	_, err := w.Write(b)
	return err
}

// logFollower reads a log file to its end and, told to follow, on across
// rotations: the file is renamed away and a new one appears at the path.
type logFollower struct {
	path    string
	printer *logPrinter
	file    *os.File
	reader  *bufio.Reader
	rest    []byte // begin of a line whose end is not written yet
}

// read prints the log. With a nil ended it stops at the end of the file;
// otherwise it waits for more until ended is closed, and then prints what is
// left.
func (l *logFollower) read(ctx context.Context, tail int, ended <-chan struct{}) error {
	defer func() {
		if l.file != nil {
			l.file.Close()
		}
	}()
	var changes *watcher
	if ended != nil {
		var err error
		// The watch comes before the first look, so that nothing falls between.
		if changes, err = watchFolder(filepath.Dir(l.path)); err != nil {
			return fmt.Errorf("watch log folder: %w", err)
		}
		defer changes.close()
	}
	if err := l.open(tail); err != nil && (ended == nil || !errors.Is(err, fs.ErrNotExist)) {
		return fmt.Errorf("open log: %w", err)
	}
	if ended == nil {
		return l.drain()
	}
	for last := false; ; {
		if err := l.catchUp(); err != nil {
			return err
		}
		if last {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ended:
			last = true
		case err := <-changes.changed:
			if err != nil {
				return fmt.Errorf("watch log folder: %w", err)
			}
		}
	}
}

// catchUp prints what was written, also in files that took the path since.
func (l *logFollower) catchUp() error {
	for {
		if l.file != nil {
			if err := l.drain(); err != nil {
				return err
			}
		}
		moved, err := l.moved()
		if err != nil || !moved {
			return err
		}
		// What was written between the drain and the rename is still in the
		// old file.
		if l.file != nil {
			if err := l.drain(); err != nil {
				return err
			}
		}
		if err := l.open(-1); errors.Is(err, fs.ErrNotExist) {
			return nil
		} else if err != nil {
			return fmt.Errorf("open log: %w", err)
		}
	}
}

// moved says whether the path is another file than the one that is open.
func (l *logFollower) moved() (bool, error) {
	now, err := os.Stat(l.path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look at log: %w", err)
	}
	if l.file == nil {
		return true, nil
	}
	open, err := l.file.Stat()
	if err != nil {
		return false, fmt.Errorf("look at log: %w", err)
	}
	return !os.SameFile(now, open), nil
}

// open opens the path; tail >= 0 skips to the last so many lines.
func (l *logFollower) open(tail int) error {
	file, err := os.Open(l.path)
	if err != nil {
		return err
	}
	if l.file != nil {
		l.file.Close()
	}
	l.file, l.rest = file, nil
	if tail >= 0 {
		if err := seekTail(file, tail); err != nil {
			return err
		}
	}
	l.reader = bufio.NewReaderSize(file, 64<<10)
	return nil
}

func (l *logFollower) drain() error {
	for {
		part, err := l.reader.ReadSlice('\n')
		l.rest = append(l.rest, part...)
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("read log: %w", err)
		}
		if err := l.printer.print(l.rest); err != nil {
			return err
		}
		l.rest = l.rest[:0]
	}
}

// seekTail moves to the begin of the last n lines, reading blocks backwards.
func seekTail(f *os.File, n int) error {
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	block := make([]byte, 64<<10)
	newlines := 0
	for at := end; at > 0; {
		size := min(int64(len(block)), at)
		at -= size
		if _, err := f.ReadAt(block[:size], at); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		for i := size - 1; i >= 0; i-- {
			if block[i] != '\n' || at+i == end-1 && n > 0 {
				continue
			}
			if newlines++; newlines >= max(n, 1) {
				_, err := f.Seek(at+i+1, io.SeekStart)
				return err
			}
		}
	}
	_, err = f.Seek(0, io.SeekStart)
	return err
}
