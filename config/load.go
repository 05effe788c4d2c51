package config

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// maxFile is far above any honest configuration file; it keeps a path that was
// mistaken (a device, a log) from filling memory.
const maxFile = 1 << 20

// Load reads the file at path and then the *.toml files of dropInDir in the
// order of their names, each overriding what came before it key by key, on top
// of Default. A list replaces a list. It validates the result. A missing
// dropInDir, or an empty name, means no drop-ins; an empty path means no file.
// All problems are in the error, each on a line that names file, line and key.
func Load(path, dropInDir string) (Config, error) {
	files, err := dropIns(dropInDir)
	if err != nil {
		return Config{}, err
	}
	if path != "" {
		files = append([]string{path}, files...)
	}
	cfg := Default()
	var problems []error
	for _, file := range files {
		if err := merge(&cfg, file); err != nil {
			problems = append(problems, err)
		}
	}
	if err := errors.Join(problems...); err != nil {
		return Config{}, err
	}
	if err := cfg.Validate(); err != nil {
		return Config{}, err
	}
	return cfg, nil
}

func dropIns(dir string) ([]string, error) {
	if dir == "" {
		return nil, nil
	}
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read drop-ins: %w", err)
	}
	var files []string
	for _, e := range entries {
		if !e.IsDir() && strings.HasSuffix(e.Name(), ".toml") && !strings.HasPrefix(e.Name(), ".") {
			files = append(files, filepath.Join(dir, e.Name()))
		}
	}
	sort.Strings(files)
	return files, nil
}

func merge(cfg *Config, file string) error {
	info, err := os.Stat(file)
	if err != nil {
		return fmt.Errorf("read configuration: %w", err)
	}
	if !info.Mode().IsRegular() || info.Size() > maxFile {
		return fmt.Errorf("read configuration: %s is not a file of at most %d bytes", file, maxFile)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("read configuration: %w", err)
	}
	return decode(cfg, file, data)
}

func decode(cfg *Config, file string, data []byte) error {
	decoder := toml.NewDecoder(bytes.NewReader(data)).DisallowUnknownFields()
	return explain(file, decoder.Decode(cfg))
}

// explain turns the decoder's errors into lines that say where, and for an
// unknown key which known one is nearest.
func explain(file string, err error) error {
	var unknown *toml.StrictMissingError
	if errors.As(err, &unknown) {
		var all []error
		for _, e := range unknown.Errors {
			line, _ := e.Position()
			key := strings.Join(e.Key(), ".")
			all = append(all, fmt.Errorf("%s:%d: unknown key %q%s", file, line, key, didYouMean(key)))
		}
		return errors.Join(all...)
	}
	var bad *toml.DecodeError
	if errors.As(err, &bad) {
		line, column := bad.Position()
		at := ""
		if len(bad.Key()) > 0 {
			at = fmt.Sprintf("%q: ", strings.Join(bad.Key(), "."))
		}
		return fmt.Errorf("%s:%d:%d: %s%s", file, line, column, at, strings.TrimPrefix(bad.Error(), "toml: "))
	}
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return nil
}

// Dump writes a configuration as TOML, without comments.
func Dump(cfg Config) ([]byte, error) {
	var b bytes.Buffer
	encoder := toml.NewEncoder(&b)
	encoder.SetIndentTables(false)
	if err := encoder.Encode(cfg); err != nil {
		return nil, fmt.Errorf("write configuration: %w", err)
	}
	return b.Bytes(), nil
}
