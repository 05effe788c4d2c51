package config

import (
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"
)

var update = flag.Bool("update", false, "write the generated files")

// TestGenerated keeps the default configuration file, the packaged one and the
// page of keys equal to the doc comments of config.go.
func TestGenerated(t *testing.T) {
	docs := fieldDocs(t)
	file, page := renderFile(docs), renderPage(docs)
	for _, out := range []struct{ path, want string }{
		{"default.toml", file},
		{"../packaging/config.toml", file},
		{"../docs/configuration.md", page},
	} {
		if *update {
			if err := os.WriteFile(out.path, []byte(out.want), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		got, err := os.ReadFile(out.path)
		if err != nil {
			t.Fatal(err)
		}
		if string(got) != out.want {
			t.Errorf("%s is not what the comments in config.go say: run go test ./config -run TestGenerated -update", out.path)
		}
	}
}

// The default file, read back, must be the default configuration.
func TestDefaultFileIsDefault(t *testing.T) {
	cfg := Config{}
	if err := decode(&cfg, "default.toml", []byte(DefaultFile())); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(cfg, Default()) {
		t.Errorf("the default file says\n%+v\nand Default is\n%+v", cfg, Default())
	}
}

// fieldDocs maps "Type.Field" to its doc comment, and fails on one without.
func fieldDocs(t *testing.T) map[string]string {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "config.go", nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	docs := map[string]string{}
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.TypeSpec)
		if !ok {
			return true
		}
		for _, f := range spec.Type.(*ast.StructType).Fields.List {
			name := spec.Name.Name + "." + f.Names[0].Name
			if docs[name] = strings.TrimSpace(f.Doc.Text()); docs[name] == "" {
				t.Errorf("%s has no doc comment", name)
			}
		}
		return false
	})
	return docs
}

// visit walks the tables of the default configuration: first a table's own
// keys, then the tables in it.
func visit(table string, v reflect.Value, each func(table string, owner reflect.Type, f reflect.StructField, v reflect.Value)) {
	for i := range v.NumField() {
		if f := v.Type().Field(i); !isTable(f.Type) && f.Type.Kind() != reflect.Map {
			each(table, v.Type(), f, v.Field(i))
		}
	}
	for i := range v.NumField() {
		f := v.Type().Field(i)
		name := join(table, f.Tag.Get("toml"))
		switch {
		case isTable(f.Type):
			each(name, v.Type(), f, v.Field(i))
			visit(name, v.Field(i), each)
		case f.Type.Kind() == reflect.Map:
			for _, key := range v.Field(i).MapKeys() {
				table := join(name, tableName(key.String()))
				each(table, v.Type(), f, v.Field(i))
				visit(table, v.Field(i).MapIndex(key), each)
			}
		}
	}
}

func tomlValue(f reflect.StructField, v reflect.Value) string {
	b, err := toml.Marshal(map[string]any{f.Tag.Get("toml"): v.Interface()})
	if err != nil {
		return err.Error()
	}
	return strings.ReplaceAll(strings.TrimSpace(string(b)), "'", `"`)
}

func renderFile(docs map[string]string) string {
	var b strings.Builder
	b.WriteString("# noded's configuration. Every key stands here with its default; a file needs only\n# what differs. Files in /etc/noded/conf.d/*.toml come after this one, by name.\n")
	visit("", reflect.ValueOf(Default()), func(table string, owner reflect.Type, f reflect.StructField, v reflect.Value) {
		doc := docs[owner.Name()+"."+f.Name]
		b.WriteString("\n# " + strings.ReplaceAll(doc, "\n", "\n# ") + "\n")
		if isTable(f.Type) || f.Type.Kind() == reflect.Map {
			b.WriteString("[" + table + "]\n")
			return
		}
		b.WriteString(tomlValue(f, v) + "\n")
	})
	return b.String()
}

const pageHead = `# Configuration

noded reads ` + "`/etc/noded/config.toml`" + ` and then ` + "`/etc/noded/conf.d/*.toml`" + ` in the order of their names (` + "`--config`" + ` names
another file, and its drop-ins are then in ` + "`conf.d`" + ` beside it unless ` + "`--config-dir`" + ` says otherwise). A later file overrides an earlier one key by key; a list replaces a list. The flags ` + "`--root`, `--state`" + `
and ` + "`--listen`" + ` stand above the files. Without any file noded runs on the defaults below.

An unknown key is an error, with file, line and the nearest key that exists; a wrong value is one too, and all are told at once:

` + "```" + `
$ noded config validate broken.toml
broken.toml:2: unknown key "network.mod", did you mean "network.mode"?
` + "```" + `

- ` + "`noded config default`" + ` prints the defaults with their comments: the file to begin with.
- ` + "`noded config dump`" + ` prints what is in force after files, drop-ins and flags.
- ` + "`noded config validate`" + ` says whether the files are right, without a daemon.

**Changing it.** SIGHUP makes the daemon read its files again. A key marked *reload* takes effect at once; for the others the
daemon logs that they need a restart, and goes on as before. Files with an error change nothing. A restart disturbs no container.

**Sizes** are written ` + "`\"512B\"`, `\"10KiB\"`, `\"16MiB\"`, `\"1GiB\"`" + `.

This page is made from the comments in ` + "`config/config.go`" + `.
`

func renderPage(docs map[string]string) string {
	var b strings.Builder
	b.WriteString(pageHead)
	b.WriteString("\n## The first lines of the file\n")
	visit("", reflect.ValueOf(Default()), func(table string, owner reflect.Type, f reflect.StructField, v reflect.Value) {
		doc := docs[owner.Name()+"."+f.Name]
		if isTable(f.Type) || f.Type.Kind() == reflect.Map {
			fmt.Fprintf(&b, "\n## `[%s]`\n%s\n", table, doc)
			return
		}
		reload := ""
		if f.Tag.Get("reload") == "yes" {
			reload = " *(reload)*"
		}
		fmt.Fprintf(&b, "\n- `%s`%s  \n  %s\n", tomlValue(f, v), reload, strings.ReplaceAll(doc, "\n", "\n  "))
	})
	return b.String()
}
