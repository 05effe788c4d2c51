package imagestore

import (
	"context"
	"fmt"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

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

// TestMeasureChild pulls once in a process of its own and prints what it took.
func TestMeasureChild(t *testing.T) {
	root, ref := os.Getenv(childRoot), os.Getenv(childRef)
	if root == "" {
		t.Skip("is started by BenchmarkPull")
	}
	s := must[*Store](t)(Open(context.Background(), Options{Root: root, Log: quiet()}))
	begin := time.Now()
	must[Image](t)(s.Pull(context.Background(), ref, PullOptions{}))
	wall := time.Since(begin)
	var use unix.Rusage
	unix.Getrusage(unix.RUSAGE_SELF, &use)
	status := string(must[[]byte](t)(os.ReadFile("/proc/self/status")))
	_, peak, _ := strings.Cut(status, "VmHWM:")
	peak, _, _ = strings.Cut(peak, "kB")
	fmt.Printf("wall_ms %d\ncpu_ms %d\npeak_kb %s\n", wall.Milliseconds(), (use.Utime.Nano()+use.Stime.Nano())/1e6, strings.TrimSpace(peak))
	s.Close()
}

// BenchmarkPull measures a pull of 200 MB in 10,000 files from a registry on
// this machine, each in a fresh process and store: wall time, processor time,
// peak memory. Nothing is deleted in between: ext4 is slow to make files where
// some were deleted in the last seconds.
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
			sum := map[string]float64{}
			for b.Loop() {
				cmd := exec.Command(os.Args[0], "-test.run=^TestMeasureChild$")
				cmd.Env = append(os.Environ(), childRoot+"="+filepath.Join(b.TempDir(), "s"), childRef+"="+reg.Address+"/big:v1")
				for line := range strings.Lines(string(must[[]byte](b)(cmd.Output()))) {
					name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
					if n, err := strconv.ParseFloat(value, 64); err == nil {
						sum[name] += n
					}
				}
			}
			for name, n := range sum {
				b.ReportMetric(n/float64(b.N), name)
			}
		})
	}
}
