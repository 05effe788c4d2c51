package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/utils"
	"github.com/containernetworking/cni/pkg/version"
	"golang.org/x/sys/unix"

	"noded.dev/noded/internal/kind"
)

// maxConfSize bounds one file of configuration, in bytes.
const maxConfSize = 1 << 20

// validType is what may be executed from the folders of plugins: a name
// (CVE-2021-20206).
var validType = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$`)

func checkType(plugin string) error {
	if !validType.MatchString(plugin) {
		return kind.Errorf(kind.Precondition, "plugin type %q is not a plain name", plugin)
	}
	return nil
}

// loadConf reads the network that pods get: the first file of dir in lexical
// order. nil without an error if there is none.
func loadConf(dir string) (*libcni.NetworkConfigList, string, error) {
	files, err := libcni.ConfFiles(dir, []string{".conflist", ".conf", ".json"})
	if err != nil {
		return nil, "", fmt.Errorf("list network configuration: %w", err)
	}
	if len(files) == 0 {
		return nil, "", nil
	}
	slices.Sort(files)
	list, err := loadConfFile(files[0])
	if err != nil {
		return nil, files[0], kind.Errorf(kind.Precondition, "network configuration %s: %w", files[0], err)
	}
	return list, files[0], nil
}

func loadConfFile(path string) (*libcni.NetworkConfigList, error) {
	data, err := readRegular(path)
	if err != nil {
		return nil, err
	}
	var list *libcni.NetworkConfigList
	if filepath.Ext(path) == ".conflist" {
		list, err = libcni.NetworkConfFromBytes(data)
	} else {
		list, err = loadSingle(data)
	}
	if err != nil {
		return nil, err
	}
	// The name before anything else: it becomes a part of paths.
	if err := utils.ValidateNetworkName(list.Name); err != nil {
		return nil, fmt.Errorf("name %q: %w", list.Name, err)
	}
	if !list.LoadOnlyInlinedPlugins {
		more, err := loadPluginFolder(filepath.Join(filepath.Dir(path), list.Name))
		if err != nil {
			return nil, err
		}
		list.Plugins = append(list.Plugins, more...)
	}
	if err := checkList(list); err != nil {
		return nil, err
	}
	return inlined(list)
}

// loadSingle reads the old form of one plugin without a list, as a list of it.
func loadSingle(data []byte) (*libcni.NetworkConfigList, error) {
	conf, err := libcni.NetworkPluginConfFromBytes(data)
	if err != nil {
		return nil, err
	}
	list, err := json.Marshal(map[string]any{
		"name": conf.Network.Name, "cniVersion": conf.Network.CNIVersion, "plugins": []json.RawMessage{data},
	})
	if err != nil {
		return nil, fmt.Errorf("make a list of it: %w", err)
	}
	return libcni.NetworkConfFromBytes(list)
}

func loadPluginFolder(dir string) ([]*libcni.PluginConfig, error) {
	files, err := libcni.ConfFiles(dir, []string{".conf"})
	if err != nil {
		return nil, fmt.Errorf("list the network's plugins: %w", err)
	}
	slices.Sort(files)
	var plugins []*libcni.PluginConfig
	for _, f := range files {
		data, err := readRegular(f)
		if err != nil {
			return nil, err
		}
		p, err := libcni.NetworkPluginConfFromBytes(data)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f, err)
		}
		plugins = append(plugins, p)
	}
	return plugins, nil
}

func checkList(list *libcni.NetworkConfigList) error {
	if len(list.Plugins) == 0 {
		return errors.New("no plugins")
	}
	if list.CNIVersion != "" { // "" is 0.1.0
		newer, err := version.GreaterThan(list.CNIVersion, version.Current())
		if err != nil {
			return fmt.Errorf("cniVersion: %w", err)
		}
		if newer {
			return fmt.Errorf("cniVersion %s is newer than %s", list.CNIVersion, version.Current())
		}
	}
	for _, p := range list.Plugins {
		if err := checkType(p.Network.Type); err != nil {
			return err
		}
		if ipam := p.Network.IPAM.Type; ipam != "" {
			if err := checkType(ipam); err != nil {
				return err
			}
		}
	}
	return nil
}

// inlined gives a list whose bytes hold all of its plugins, also those of the
// network's folder: what a record keeps must suffice for DEL.
func inlined(list *libcni.NetworkConfigList) (*libcni.NetworkConfigList, error) {
	doc := map[string]any{}
	if err := json.Unmarshal(list.Bytes, &doc); err != nil {
		return nil, fmt.Errorf("decode: %w", err)
	}
	plugins := make([]json.RawMessage, len(list.Plugins))
	for i, p := range list.Plugins {
		plugins[i] = p.Bytes
	}
	doc["plugins"] = plugins
	doc["loadOnlyInlinedPlugins"] = true
	data, err := json.Marshal(doc)
	if err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	return libcni.NetworkConfFromBytes(data)
}

// readRegular reads a file of bounded size, and never waits on a FIFO.
func readRegular(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxConfSize+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxConfSize {
		return nil, fmt.Errorf("%s is larger than %d bytes", path, maxConfSize)
	}
	return data, nil
}

// fingerprint changes whenever the folder's files do.
func fingerprint(dir string) string {
	var s string
	for _, d := range append([]string{dir}, subfolders(dir)...) {
		entries, err := os.ReadDir(d)
		if err != nil {
			s += err.Error()
			continue
		}
		for _, e := range entries {
			info, err := os.Stat(filepath.Join(d, e.Name()))
			if errors.Is(err, fs.ErrNotExist) || err == nil && info.IsDir() {
				continue
			}
			if err != nil {
				s += err.Error()
				continue
			}
			s += fmt.Sprintf("%s/%s %d %d\n", d, e.Name(), info.Size(), info.ModTime().UnixNano())
		}
	}
	return s
}

func subfolders(dir string) (list []string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	for _, e := range entries {
		if e.IsDir() {
			list = append(list, filepath.Join(dir, e.Name()))
		}
	}
	return list
}
