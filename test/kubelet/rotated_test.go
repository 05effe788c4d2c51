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

// currentLog is the log file of a container's newest attempt, which is its name.
func currentLog(t *testing.T, k *Kubelet, pod, container string) string {
	t.Helper()
	logs, err := filepath.Glob(filepath.Join(k.Dir, "logs", "default_"+pod+"-*", container, "*.log"))
	if err != nil {
		t.Fatal(err)
	}
	sort.Strings(logs)
	if len(logs) == 0 {
		return ""
	}
	return logs[len(logs)-1]
}

// rotated reads the numbers of "line N" from a container's log files, oldest
// first. The kubelet appends a time to the names of old ones and zips all but
// the newest of these.
func rotated(t *testing.T, log string) []int {
	t.Helper()
	paths, err := filepath.Glob(log + ".*")
	if err != nil {
		t.Fatal(err)
	}
	sort.Strings(paths)
	var numbers []int
	for _, path := range append(paths, log) {
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
