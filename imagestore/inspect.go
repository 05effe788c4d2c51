package imagestore

import (
	"errors"
	"io/fs"
	"os"
	"strings"

	"noded.dev/noded/imagestore/registry"
)

// Inspect says what is wrong with the files that pulls with these options would
// use. It needs no store and changes nothing.
func Inspect(o Options) []error {
	var problems []error
	note := func(err error) {
		if err != nil {
			problems = append(problems, err)
		}
	}
	if o.DockerConfig != "" {
		note(registry.CheckCredentials(o.DockerConfig))
	}
	if o.NamespaceDir == "" {
		return problems
	}
	entries, err := os.ReadDir(o.NamespaceDir)
	if !errors.Is(err, fs.ErrNotExist) {
		note(err)
	}
	for _, e := range entries {
		name := strings.TrimSuffix(e.Name(), ".json")
		if e.IsDir() {
			name = e.Name()
		}
		note(registry.CheckNamespace(o.NamespaceDir, name))
	}
	return problems
}
