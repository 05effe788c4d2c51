// Package hack checks what the design fixes about the sources themselves.
package hack

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "noded.dev/noded/"

// listed is what `go list` says of a package.
type listed struct {
	ImportPath, Dir string
	GoFiles         []string
	Imports, Deps   []string
}

func packages(t *testing.T) []listed {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Dir,GoFiles,Imports,Deps", "./...")
	cmd.Dir = ".."
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.Bytes())
	}
	var all []listed
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

// downward says which of noded's packages each folder at the top may import,
// besides its own sub-packages and internal/*.
var downward = map[string][]string{
	"cmd":        {"cri", "sandbox", "spec", "imagestore", "cni", "runtime", "config"},
	"cri":        {"sandbox", "imagestore"},
	"sandbox":    {"spec", "imagestore", "cni", "runtime"},
	"spec":       {},
	"imagestore": {},
	"cni":        {},
	"runtime":    {},
	"config":     {},
	"internal":   {},
	"hack":       {},
	// Tests stand outside of the product and may look at anything.
	"test": {"cri", "sandbox", "spec", "imagestore", "cni", "runtime", "config", "cmd"},
}

// streamPackage is stricter than its folder: it is handed a function, not a pod.
const streamPackage = "cri/stream"

func top(path string) string {
	name, _, _ := strings.Cut(path, "/")
	return name
}

// TestImportsPointDown keeps the arrows of the design's drawing.
func TestImportsPointDown(t *testing.T) {
	for _, p := range packages(t) {
		from := strings.TrimPrefix(p.ImportPath, module)
		allowed, known := downward[top(from)]
		if !known {
			t.Errorf("%s: the design has no folder %s at the top", from, top(from))
			continue
		}
		for _, imported := range p.Imports {
			to, own := strings.CutPrefix(imported, module)
			if !own || top(to) == "internal" || top(to) == top(from) && from != streamPackage {
				continue
			}
			if from == streamPackage || !slices.Contains(allowed, top(to)) {
				t.Errorf("%s imports %s: imports point down only, and leaves import no sibling", from, to)
			}
		}
	}
}

// confined lists third parties that only some folders may import.
var confined = []struct {
	prefix string
	only   []string
	reason string
}{
	{"google.golang.org/grpc", []string{"cri", "cmd", "test"}, "the core speaks in error kinds, not in gRPC codes"},
	{"k8s.io/cri-api", []string{"cri", "sandbox", "spec", "cmd", "test"}, "leaves are libraries that never heard of pods"},
	{"github.com/spf13/cobra", []string{"cmd"}, "only the command line is a command line"},
	{"github.com/pelletier/go-toml", []string{"config", "imagestore"}, "configuration is read in config, hosts.toml in imagestore"},
	{"testing", []string{"test"}, "test code does not belong into the product"},
}

func TestConfinedImports(t *testing.T) {
	for _, p := range packages(t) {
		from := strings.TrimPrefix(p.ImportPath, module)
		if strings.HasSuffix(from, "test") {
			continue // helpers of tests, as net/http/httptest
		}
		for _, imported := range p.Imports {
			for _, c := range confined {
				if (imported == c.prefix || strings.HasPrefix(imported, c.prefix+"/")) && !slices.Contains(c.only, top(from)) {
					t.Errorf("%s imports %s: %s", from, imported, c.reason)
				}
			}
		}
	}
}

// TestLeavesReachNoGRPC: not even through what they import.
func TestLeavesReachNoGRPC(t *testing.T) {
	for _, p := range packages(t) {
		from := strings.TrimPrefix(p.ImportPath, module)
		if !slices.Contains([]string{"imagestore", "cni", "runtime", "config", "internal"}, top(from)) && from != streamPackage {
			continue
		}
		for _, dep := range p.Deps {
			if dep == "google.golang.org/grpc" || strings.HasPrefix(dep, "k8s.io/cri-api") {
				t.Errorf("%s depends on %s, through something it imports", from, dep)
			}
		}
	}
}

// TestStaticBinary: the product must build and run without a C library.
func TestStaticBinary(t *testing.T) {
	cmd := exec.Command("go", "list", "-deps", "-f", "{{if .CgoFiles}}{{.ImportPath}}{{end}}", "./cmd/noded")
	cmd.Dir = ".."
	cmd.Env = append(cmd.Environ(), "CGO_ENABLED=0")
	out, err := cmd.CombinedOutput()
	if err != nil || len(bytes.TrimSpace(out)) > 0 {
		t.Errorf("cmd/noded needs cgo for: %s (%v)", bytes.TrimSpace(out), err)
	}
}
