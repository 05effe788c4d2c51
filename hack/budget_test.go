package hack

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Budgets are alarms: the answer to an excess is to move state to the noun it
// belongs to, or an exception here, by name and with a reason.
const (
	maxFileLines  = 500
	maxFuncLines  = 80
	maxTestLines  = 150 // of a test: its table is data
	maxParameters = 5
)

// exceptions maps "file" or "file:function" to why it may be larger.
var exceptions = map[string]string{
	"cmd/noded/client.go:withDeadline": "gRPC fixes an interceptor's parameters",
}

func TestBudgets(t *testing.T) {
	used := map[string]bool{}
	report := func(name, format string, args ...any) {
		if exceptions[name] != "" {
			used[name] = true
			return
		}
		t.Errorf(name+": "+format, args...)
	}
	err := filepath.WalkDir("..", func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() && strings.HasPrefix(entry.Name(), ".") && entry.Name() != ".." {
			return fs.SkipDir
		}
		if !strings.HasSuffix(path, ".go") || !entry.Type().IsRegular() {
			return nil
		}
		source, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(path, "../")
		if lines := bytes.Count(source, []byte("\n")); lines > maxFileLines {
			report(name, "%d lines of at most %d", lines, maxFileLines)
		}
		files := token.NewFileSet()
		file, err := parser.ParseFile(files, path, source, 0)
		if err != nil {
			return err
		}
		for _, d := range file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok {
				checkFunc(name, files, f, report)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for name := range exceptions {
		if !used[name] {
			t.Errorf("the exception for %s is not needed (any more)", name)
		}
	}
}

func checkFunc(file string, files *token.FileSet, f *ast.FuncDecl, report func(string, string, ...any)) {
	name := file + ":" + f.Name.Name
	lines := files.Position(f.End()).Line - files.Position(f.Pos()).Line + 1
	most := maxFuncLines
	if strings.HasSuffix(file, "_test.go") {
		most = maxTestLines
	}
	if lines > most {
		report(name, "%d lines of at most %d", lines, most)
	}
	if n := f.Type.Params.NumFields(); n > maxParameters {
		report(name, "%d parameters of at most %d", n, maxParameters)
	}
	// Package initialisation is hidden control flow, and every start of the
	// shim and of a pod's init would pay for it.
	if f.Recv == nil && f.Name.Name == "init" && !strings.HasSuffix(file, "_test.go") {
		report(name, "there is no init() in noded")
	}
}
