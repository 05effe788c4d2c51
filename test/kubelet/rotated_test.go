package kubelet

import (
	"compress/gzip"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"
)

// rotated reads the numbers of "line N" from a container's log files, oldest
// first. The kubelet appends a time to the names of old ones and zips all but
// the newest of these.
func rotated(t *testing.T, dir string) []int {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, "0.log.*"))
	if err != nil {
		t.Fatal(err)
	}
	sort.Strings(paths)
	var numbers []int
	for _, path := range append(paths, filepath.Join(dir, "0.log")) {
		if strings.HasSuffix(path, ".tmp") {
			continue // being zipped; its source is still there
		}
		for _, line := range strings.Split(read(t, path), "\n") {
			var n int
			if _, text, ok := strings.Cut(line, " F "); ok {
				if _, err := fmt.Sscanf(text, "line %d", &n); err == nil {
					numbers = append(numbers, n)
				}
			}
		}
	}
	return numbers
}

func read(t *testing.T, path string) string {
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var r io.Reader = f
	if strings.HasSuffix(path, ".gz") {
		if r, err = gzip.NewReader(f); err != nil {
			t.Fatal(err)
		}
	}
	data, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
