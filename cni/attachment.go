package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/libcni"

	"noded.dev/noded/internal/atomicfile"
)

const (
	attachmentVersion = 1
	attachmentSuffix  = ".json"
)

// attachment is what a pod's ADD was called with, written before the call: DEL
// must be called with the same, whatever became of the configuration.
type attachment struct {
	Version   int            `json:"version"`
	ID        string         `json:"id"`
	Name      string         `json:"name"` // of the network
	Conf      []byte         `json:"conf"` // the list as it was
	NetNS     string         `json:"netns"`
	Args      [][2]string    `json:"args"`
	Caps      map[string]any `json:"capabilityArgs,omitempty"`
	Connected bool           `json:"connected"` // ADD succeeded; Result is what it returned
	Result    Result         `json:"result"`
}

func (a *attachment) list() (*libcni.NetworkConfigList, error) {
	list, err := libcni.NetworkConfFromBytes(a.Conf)
	if err != nil {
		return nil, fmt.Errorf("recorded configuration: %w", err)
	}
	return list, checkList(list)
}

func (a *attachment) runtimeConf(netns string) *libcni.RuntimeConf {
	return &libcni.RuntimeConf{ContainerID: a.ID, NetNS: netns, IfName: podInterface, Args: a.Args, CapabilityArgs: a.Caps}
}

// attachments is a folder of records, one file per pod.
type attachments struct{ dir string }

func (s attachments) path(id string) string { return filepath.Join(s.dir, id+attachmentSuffix) }

func (s attachments) save(a *attachment) error {
	data, err := json.Marshal(a)
	if err != nil {
		return fmt.Errorf("encode network record: %w", err)
	}
	return atomicfile.Write(s.path(a.ID), data, 0o600)
}

// load returns nil if there is no record. One that a power cut damaged counts
// as none: the pod and its network ended with the power.
func (s attachments) load(id string) (*attachment, error) {
	data, err := os.ReadFile(s.path(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read network record: %w", err)
	}
	a := &attachment{}
	if err := json.Unmarshal(data, a); err != nil || a.Version != attachmentVersion || a.ID != id {
		return nil, nil
	}
	return a, nil
}

func (s attachments) remove(id string) error {
	if err := os.Remove(s.path(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("delete network record: %w", err)
	}
	return nil
}

// ids lists the pods that have a record, and deletes unfinished files.
func (s attachments) ids() ([]string, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, fmt.Errorf("list network records: %w", err)
	}
	var ids []string
	for _, e := range entries {
		if id, ok := strings.CutSuffix(e.Name(), attachmentSuffix); ok && validPodID.MatchString(id) {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids, nil
}
