package containerlog

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const stamp = 1767323045123456789 // 2026-01-02T03:04:05.123456789Z

func rendered(stream, data string, skip int64) string {
	var out bytes.Buffer
	r := renderer{skip: skip, writer: func(p []byte) error { out.Write(p); return nil }}
	r.render(stamp, stream, []byte(data))
	return out.String()
}

func TestRender(t *testing.T) {
	long := strings.Repeat("x", maxRecord)
	const p = "2026-01-02T03:04:05.123456789Z stdout "
	for _, c := range []struct{ in, want string }{
		{"", ""},
		{"a\n", p + "F a\n"},
		{"a", p + "P a\n"},
		{"a\nb", p + "F a\n" + p + "P b\n"},
		{"\n\n", p + "F \n" + p + "F \n"},
		{long, p + "P " + long + "\n"},
		{long + "\n", p + "F " + long + "\n"},
		{long + "y\n", p + "P " + long + "\n" + p + "F y\n"},
		{"\x00\xff \r\n", p + "F \x00\xff \r\n"},
	} {
		if got := rendered("stdout", c.in, 0); got != c.want {
			t.Errorf("%.40q gave %.120q, want %.120q", c.in, got, c.want)
		}
	}
}

// However much of a chunk's records is there already, the rest is added.
func TestRenderSkip(t *testing.T) {
	data := strings.Repeat("line\n", 50) + "\n\nend"
	whole := rendered("stderr", data, 0)
	for skip := range len(whole) + 1 {
		if got := rendered("stderr", data, int64(skip)); got != whole[skip:] {
			t.Fatalf("after %d bytes: %.80q", skip, got)
		}
	}
}

// rig is a stream over a FIFO of which the test holds the other end.
type rig struct {
	dir, path, spool string
	table            *Table
	log              *Log
	w                *os.File
	warned           int
}

func newRig(t testing.TB) *rig {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "ncl") // a tmpfs, as in the product
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	r := &rig{dir: dir, path: filepath.Join(t.TempDir(), "log"), spool: filepath.Join(dir, "spool")}
	if r.table, err = OpenTable(filepath.Join(dir, "table")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.table.Close() })
	if err := unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(filepath.Join(dir, "fifo"), unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	r.w = os.NewFile(uintptr(fd), "fifo")
	t.Cleanup(func() { r.w.Close() })
	return r
}

func (r *rig) open(t testing.TB) *Stream {
	t.Helper()
	log, err := OpenLog(r.path)
	if err != nil {
		t.Fatal(err)
	}
	r.log = log
	fd, err := unix.Open(filepath.Join(r.dir, "fifo"), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	s, err := Open(Config{
		Name: "stdout", Src: os.NewFile(uintptr(fd), "fifo"), Spool: r.spool,
		Table: r.table, Entry: 0, Log: log, Pool: NewPool(), Warn: func(error) { r.warned++ },
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (r *rig) content(t testing.TB) string {
	t.Helper()
	data, err := os.ReadFile(r.path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// Every state that a killed shim can leave is finished to the same log.
func TestRecover(t *testing.T) {
	data := strings.Repeat("a line of text\n", 100) + "rest"
	whole := rendered("stdout", data, 0)
	before := "2026-01-01T00:00:00Z stdout F before\n"
	for _, c := range []struct {
		name    string
		phase   uint32
		written int // of the records
		rotated bool
	}{
		{"writing, nothing written", phaseWriting, 0, false},
		{"writing, part written", phaseWriting, 777, false},
		{"writing, all written", phaseWriting, len(whole), false},
		{"writing, part written, rotated", phaseWriting, 777, true},
		{"done", phaseDone, len(whole), false},
	} {
		r := newRig(t)
		os.WriteFile(r.path, []byte(before+whole[:c.written]), 0o640)
		os.WriteFile(filepath.Join(r.dir, "spool"), []byte(data), 0o600)
		var st unix.Stat_t
		unix.Stat(r.path, &st)
		e := r.table.at(0)
		e.offset, e.stamp, e.dev, e.ino = int64(len(before)), stamp, st.Dev, st.Ino
		e.phase.Store(c.phase)
		check := r.path
		if c.rotated {
			check = r.path + ".1"
			os.Rename(r.path, check)
		}
		s := r.open(t)
		got, _ := os.ReadFile(check)
		if string(got) != before+whole {
			t.Errorf("%s: log has %d bytes, want %d", c.name, len(got), len(before+whole))
		}
		if c.rotated && r.content(t) != "" {
			t.Errorf("%s: new log has %q", c.name, r.content(t))
		}
		spool, _ := os.ReadFile(filepath.Join(r.dir, "spool"))
		if len(spool) != 0 || e.phase.Load() != phaseIdle {
			t.Errorf("%s: not settled", c.name)
		}
		go s.Run()
		s.Close()
	}
}

// A record that was being written is completed before another stream of the
// same log appends.
func TestRecoverOrder(t *testing.T) {
	r := newRig(t)
	whole := rendered("stderr", "broken off\n", 0)
	os.WriteFile(r.path, []byte(whole[:20]), 0o640)
	os.WriteFile(r.spool, []byte("waits\n"), 0o600)
	os.WriteFile(r.spool+"2", []byte("broken off\n"), 0o600)
	var st unix.Stat_t
	unix.Stat(r.path, &st)
	e := r.table.at(1)
	e.offset, e.stamp, e.dev, e.ino = 0, stamp, st.Dev, st.Ino
	e.phase.Store(phaseWriting)
	first := r.open(t)
	null, _ := os.Open(os.DevNull)
	second, err := Open(Config{
		Name: "stderr", Src: null, Spool: r.spool + "2", Table: r.table, Entry: 1, Log: r.log, Pool: NewPool(),
	})
	if err != nil {
		t.Fatal(err)
	}
	go first.Run()
	go second.Run()
	r.drain(t, first)
	first.Close()
	second.Close()
	if got := r.content(t); !strings.HasPrefix(got, whole) || !strings.HasSuffix(got, "F waits\n") {
		t.Errorf("log %q", got)
	}
}

func TestRecoverIdle(t *testing.T) {
	r := newRig(t)
	os.WriteFile(filepath.Join(r.dir, "spool"), []byte("taken\n"), 0o600)
	s := r.open(t)
	go s.Run()
	r.w.WriteString("next\n")
	r.drain(t, s)
	s.Close()
	got := r.content(t)
	if strings.Count(got, "\n") != 2 || !strings.Contains(got, "F taken\n") || !strings.HasSuffix(got, "F next\n") {
		t.Errorf("log %q", got)
	}
}

func (r *rig) drain(t testing.TB, s *Stream) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := s.Drain(ctx); err != nil {
		t.Fatal("drain:", err)
	}
}

func TestOpenLogRefuses(t *testing.T) {
	dir := t.TempDir()
	link, fifo := filepath.Join(dir, "link"), filepath.Join(dir, "fifo")
	os.Symlink(filepath.Join(dir, "target"), link)
	unix.Mkfifo(fifo, 0o600)
	for _, path := range []string{link, fifo, dir, filepath.Join(dir, "absent", "log")} {
		if l, err := OpenLog(path); err == nil {
			l.Close()
			t.Errorf("%s was opened", path)
		}
	}
	if _, err := os.Lstat(filepath.Join(dir, "target")); err == nil {
		t.Error("a file was made through a link")
	}
}

// A reopen that fails leaves the old file in use and makes none.
func TestReopenFails(t *testing.T) {
	r := newRig(t)
	s := r.open(t)
	go s.Run()
	os.Rename(r.path, r.path+".1")
	os.Symlink("/nonexistent", r.path)
	if err := r.log.Reopen(); err == nil {
		t.Error("a link was opened")
	}
	r.w.WriteString("x\n")
	r.drain(t, s)
	s.Close()
	if got, _ := os.ReadFile(r.path + ".1"); !strings.HasSuffix(string(got), "F x\n") {
		t.Errorf("old log %q", got)
	}
}

// On a full disk output is dropped whole and counted; the container runs on,
// and its log too when there is room again.
func TestFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	small := t.TempDir()
	if err := unix.Mount("tmpfs", small, "tmpfs", 0, "size=64k"); err != nil {
		t.Skip("cannot mount:", err)
	}
	defer unix.Unmount(small, unix.MNT_DETACH)
	r := newRig(t)
	r.path = filepath.Join(small, "log")
	s := r.open(t)
	go s.Run()
	line := strings.Repeat("0123456789", 9) + "\n"
	for range 3000 {
		if _, err := r.w.WriteString(line); err != nil {
			t.Fatal(err)
		}
	}
	r.drain(t, s)
	if r.log.Dropped() == 0 || r.warned == 0 {
		t.Error("nothing was dropped")
	}
	os.Truncate(r.path, 0)
	r.w.WriteString("again\n")
	r.drain(t, s)
	s.Close()
	if got := r.content(t); !strings.HasSuffix(got, " stdout F again\n") || strings.Count(got, "\n") != 1 {
		t.Errorf("log %.100q", got)
	}
}

// A full state folder costs the safety of a read, not output.
func TestFullSpool(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	r := newRig(t)
	small := t.TempDir()
	if err := unix.Mount("tmpfs", small, "tmpfs", 0, "size=64k"); err != nil {
		t.Skip("cannot mount:", err)
	}
	defer unix.Unmount(small, unix.MNT_DETACH)
	r.spool = filepath.Join(small, "spool")
	s := r.open(t)
	if err := os.WriteFile(filepath.Join(small, "other"), make([]byte, 64<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	go s.Run()
	want := strings.Repeat("0123456789\n", 30000)
	r.w.WriteString(want)
	r.drain(t, s)
	os.Remove(filepath.Join(small, "other"))
	r.w.WriteString("again\n")
	r.drain(t, s)
	s.Close()
	if got := joined(t, r.content(t)); got != want+"again\n" {
		t.Errorf("%d bytes, want %d", len(got), len(want)+6)
	}
}

// What goes in comes out, whatever the sizes of writes.
func TestStreamExact(t *testing.T) {
	r := newRig(t)
	s := r.open(t)
	go s.Run()
	rng := rand.New(rand.NewPCG(1, 2))
	var want bytes.Buffer
	for want.Len() < 8<<20 {
		b := make([]byte, rng.IntN(100000))
		for i := range b {
			if b[i] = byte('a' + rng.IntN(26)); rng.IntN(200) == 0 {
				b[i] = '\n'
			}
		}
		want.Write(b)
		r.w.Write(b)
	}
	r.drain(t, s)
	s.Close()
	if joined(t, r.content(t)) != want.String() {
		t.Error("the output differs")
	}
}

// joined is what a log reader makes of records.
func joined(t *testing.T, log string) string {
	t.Helper()
	var got strings.Builder
	for line := range strings.Lines(log) {
		f := strings.SplitN(line, " ", 4)
		if len(f[3]) > maxRecord+1 {
			t.Fatalf("a record of %d bytes", len(f[3]))
		}
		if got.WriteString(strings.TrimSuffix(f[3], "\n")); f[2] == "F" {
			got.WriteByte('\n')
		}
	}
	return got.String()
}

func BenchmarkStream(b *testing.B) {
	for _, size := range []int{100, 1000} {
		b.Run(fmt.Sprintf("line=%d", size), func(b *testing.B) {
			r := newRig(b)
			s := r.open(b)
			go s.Run()
			line := strings.Repeat("x", size-1) + "\n"
			block := []byte(strings.Repeat(line, 65536/size))
			b.SetBytes(int64(len(block)))
			b.ReportAllocs()
			for b.Loop() {
				r.w.Write(block)
			}
			for !s.empty() {
				time.Sleep(time.Millisecond)
			}
			s.Close()
		})
	}
}
