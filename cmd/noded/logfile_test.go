package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

const stamp = "2026-01-02T15:04:05.000000000Z"

func TestLogPrinter(t *testing.T) {
	var out, errOut bytes.Buffer
	p := &logPrinter{out: &out, err: &errOut, timestamps: true}
	for _, line := range []string{
		" stdout F one\n", " stderr F bad news\n", " stdout P half a ", " stdout P line, ", " stdout F whole\n", " stdout F \n", " stdout F:tag spaces  kept \n",
	} {
		if err := p.print([]byte(stamp + line)); err != nil {
			t.Fatal(err)
		}
	}
	want := stamp + " one\n" + stamp + " half a line, whole\n" + stamp + " \n" + stamp + " spaces  kept \n"
	if out.String() != want {
		t.Errorf("stdout %q, want %q", out.String(), want)
	}
	if errOut.String() != stamp+" bad news\n" {
		t.Errorf("stderr %q", errOut.String())
	}
	if err := p.print([]byte("no log line\n")); err == nil {
		t.Error("a line in another format was taken")
	}
}

func TestLogTail(t *testing.T) {
	path := t.TempDir() + "/0.log"
	var all []string
	var file bytes.Buffer
	for i := range 5000 { // more than one block of seekTail
		line := fmt.Sprintf("line %d %s", i, strings.Repeat("x", i%50))
		all = append(all, line)
		fmt.Fprintf(&file, "%s stdout F %s\n", stamp, line)
	}
	if err := os.WriteFile(path, file.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{-1, 0, 1, 2, 700, 4999, 5000, 9000} {
		var out bytes.Buffer
		l := &logFollower{path: path, printer: &logPrinter{out: &out}}
		if err := l.read(t.Context(), n, nil); err != nil {
			t.Fatal(err)
		}
		want := all
		if n >= 0 {
			want = all[len(all)-min(n, len(all)):]
		}
		if got := out.String(); got != strings.Join(want, "\n")+strings.Repeat("\n", min(1, len(want))) {
			t.Errorf("tail %d: %d lines, want %d", n, strings.Count(got, "\n"), len(want))
		}
	}
}

// syncBuffer is a bytes.Buffer for two goroutines that tells when it has what
// is waited for.
type syncBuffer struct {
	mu      sync.Mutex
	b       bytes.Buffer
	written chan struct{}
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case s.written <- struct{}{}:
	default:
	}
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func (s *syncBuffer) waitFor(t *testing.T, text string) {
	t.Helper()
	limit := time.After(10 * time.Second)
	for !strings.HasSuffix(s.String(), text) {
		select {
		case <-s.written:
		case <-limit:
			t.Fatalf("%q did not come; there is %q", text, s.String())
		}
	}
}

// TestLogFollow writes as a runtime does: in pieces, with rotations by rename
// between, the last of them unseen until the container has ended.
func TestLogFollow(t *testing.T) {
	path := t.TempDir() + "/0.log"
	out := &syncBuffer{written: make(chan struct{}, 1)}
	ended := make(chan struct{})
	result := make(chan error, 1)
	l := &logFollower{path: path, printer: &logPrinter{out: out}}
	go func() { result <- l.read(context.Background(), -1, ended) }()

	open := func() *os.File {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	write := func(f *os.File, text string) {
		if _, err := f.WriteString(text); err != nil {
			t.Fatal(err)
		}
	}
	f := open() // the file appears after the follower began
	write(f, stamp+" stdout F one\n"+stamp+" stdout F tw")
	out.waitFor(t, "one\n")
	write(f, "o\n")
	out.waitFor(t, "two\n")
	for i := range 3 {
		if err := os.Rename(path, fmt.Sprintf("%s.%d", path, i)); err != nil {
			t.Fatal(err)
		}
		write(f, fmt.Sprintf("%s stdout F old %d\n", stamp, i)) // before the runtime reopened
		f.Close()
		f = open()
		write(f, fmt.Sprintf("%s stdout F new %d\n", stamp, i))
		out.waitFor(t, fmt.Sprintf("new %d\n", i))
	}
	write(f, stamp+" stdout F last\n")
	close(ended)
	if err := <-result; err != nil {
		t.Fatal(err)
	}
	const want = "one\ntwo\nold 0\nnew 0\nold 1\nnew 1\nold 2\nnew 2\nlast\n"
	if out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
}

// TestLogFollowLastWords: what is written just before the container's end is
// printed, whether the end or the write is seen first.
func TestLogFollowLastWords(t *testing.T) {
	for range 40 {
		path := t.TempDir() + "/0.log"
		if err := os.WriteFile(path, []byte(stamp+" stdout F first\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		out := &syncBuffer{written: make(chan struct{}, 1)}
		ended, result := make(chan struct{}), make(chan error, 1)
		l := &logFollower{path: path, printer: &logPrinter{out: out}}
		go func() { result <- l.read(context.Background(), -1, ended) }()
		out.waitFor(t, "first\n")
		f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(f, "%s stdout F last\n", stamp)
		close(ended)
		f.Close()
		if err := <-result; err != nil || out.String() != "first\nlast\n" {
			t.Fatalf("%q, %v", out.String(), err)
		}
	}
}
