package imagestore

import (
	"context"
	"fmt"
	"math/rand"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"noded.dev/noded/test/testimage"
)

// manyFiles makes layers of text-like files, of about size bytes in all.
func manyFiles(t testing.TB, layers, size int, c testimage.Compression) testimage.Image {
	words := make([]string, 4000)
	r := rand.New(rand.NewSource(1))
	for i := range words {
		words[i] = fmt.Sprintf("%x ", r.Int63()>>uint(r.Intn(50)))
	}
	var list []testimage.Layer
	for l := range layers {
		var entries []testimage.Entry
		for made, n := 0, 0; made < size/layers; n++ {
			if n%50 == 0 {
				entries = append(entries, testimage.Entry{Name: fmt.Sprintf("l%d/d%d/", l, n/50)})
			}
			body := make([]byte, 0, 64<<10)
			for want := 1000 + r.Intn(40_000); len(body) < want; {
				body = append(body, words[r.Intn(len(words))]...)
			}
			made += len(body)
			entries = append(entries, testimage.Entry{Name: fmt.Sprintf("l%d/d%d/f%d", l, n/50, n), Body: string(body)})
		}
		entries[0].Name = fmt.Sprintf("l%d/", l)
		list = append(list, must[testimage.Layer](t)(testimage.NewLayer(c, entries...)))
	}
	return image(t, list...)
}

// BenchmarkPull measures a pull of 200 MB in 10,000 files from a registry on
// this machine: wall time per op, processor time and peak memory.
func BenchmarkPull(b *testing.B) {
	needRoot(b)
	for _, shape := range []struct {
		name   string
		layers int
		c      testimage.Compression
	}{{"gzip x1", 1, testimage.Gzip}, {"gzip x4", 4, testimage.Gzip}, {"zstd x4", 4, testimage.Zstd}} {
		b.Run(shape.name, func(b *testing.B) {
			reg := startRegistry(b)
			if err := testimage.Push(reg.Address, "big", "v1", manyFiles(b, shape.layers, 200<<20, shape.c)); err != nil {
				b.Fatal(err)
			}
			runtime.GC()
			for b.Loop() {
				b.StopTimer()
				s := must[*Store](b)(Open(context.Background(), Options{Root: filepath.Join(b.TempDir(), "s"), Log: logrus.New()}))
				var before, after unix.Rusage
				unix.Getrusage(unix.RUSAGE_SELF, &before)
				begin := time.Now()
				b.StartTimer()
				img := must[Image](b)(s.Pull(context.Background(), reg.Address+"/big:v1", PullOptions{}))
				b.StopTimer()
				unix.Getrusage(unix.RUSAGE_SELF, &after)
				cpu := time.Duration(after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano())
				sys := time.Duration(after.Stime.Nano() - before.Stime.Nano())
				b.Logf("wall %v cpu %v (sys %v) size %d MB", time.Since(begin).Round(time.Millisecond), cpu.Round(time.Millisecond), sys.Round(time.Millisecond), img.Size>>20)
				// Not removed before the end: ext4 is slow to make files where
				// some were deleted in the last seconds.
				s.Close()
				b.StartTimer()
			}
		})
	}
}
