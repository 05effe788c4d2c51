package sandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/internal/atomicfile"
	"noded.dev/noded/internal/userdb"
	"noded.dev/noded/runtime"
)

// recordVersion is written into every record; a record of another version is
// set aside at start-up, never guessed at.
const recordVersion = 1

const recordFile = "record.json"

// podRecord is all that is durable of a pod. Config is the CRI message as the
// kubelet sent it; the rest is what noded decided.
type podRecord struct {
	Version     int
	ID          string
	State       podState
	CreatedAt   time.Time
	BootID      string // of the boot in which the pod's namespaces were made
	HandlerName string // as requested: "" is the default handler
	Handler     runtime.Handler
	Config      json.RawMessage

	Cgroup     string // OCI cgroupsPath's parent for the pod's containers
	OwnCgroup  bool   // noded made it, and removes it
	NetworkOwe bool   // Add may have run, so Del is owed
	IPs        []string
	Restoring  bool `json:",omitempty"` // not told to anybody yet: a start destroys it
	InitOwe    bool // the shared PID namespace's init may exist
	Init       runtime.Process

	// Overhead and Resources (cri.LinuxContainerResources) are the pod's own
	// since the last UpdatePodSandboxResources; before it, Config has them.
	Overhead  json.RawMessage `json:",omitempty"`
	Resources json.RawMessage `json:",omitempty"`
	Resize    *resizeRecord   `json:",omitempty"` // an update under way
}

// containerRecord is all that is durable of a container.
type containerRecord struct {
	Version        int
	ID             string
	PodID          string
	State          containerState
	BootID         string
	Handler        runtime.Handler
	Config         json.RawMessage
	ImageID        string
	ImageName      string // what the user called the image
	Cgroup         string // OCI cgroupsPath
	LogPath        string
	User           userdb.User
	StopSignal     int        // number of what StopContainer sends first
	StopSignalName cri.Signal // the same, as status shows it

	CreatedAt  time.Time
	StartedAt  time.Time
	FinishedAt time.Time
	Process    runtime.Process
	ExitCode   int
	Reason     string
	Message    string
	// StartError is why the command cannot be executed, known since create
	// and reported by StartContainer, as kubelets expect it there.
	StartError *startError
	// Restore says that its start lets it go on from a checkpoint.
	Restore bool `json:",omitempty"`
	// RuntimeGone is set when the OCI runtime and the shim hold nothing of it.
	RuntimeGone bool
	// Resources are the limits asked for and Figures those that the kernel
	// enforces (cri.LinuxContainerResources), since the last update.
	Resources         json.RawMessage   `json:",omitempty"`
	Figures           json.RawMessage   `json:",omitempty"`
	UpdateAnnotations map[string]string `json:",omitempty"` // of the last update
	Resize            *resizeRecord     `json:",omitempty"` // an update under way
	// OOMKills is the kernel's count of processes killed for memory before
	// noded's own SIGKILL: those did not end the container.
	OOMKills uint64 `json:",omitempty"`
}

type startError struct {
	Code    int
	Message string
}

func encodeMessage(m proto.Message) (json.RawMessage, error) {
	b, err := protojson.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode request: %w", err)
	}
	return b, nil
}

func decodeMessage(b json.RawMessage, m proto.Message) error {
	// A record may hold fields that an older or newer CRI knew.
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(b, m); err != nil {
		return fmt.Errorf("decode request: %w", err)
	}
	return nil
}

// saveRecord replaces dir's record. It costs no disk sync: a kill -9 loses
// nothing, and after a power cut no container lives that a lost record named.
func saveRecord(dir string, rec any) error {
	b, err := json.Marshal(rec)
	if err != nil {
		return fmt.Errorf("encode record: %w", err)
	}
	if err := atomicfile.Write(filepath.Join(dir, recordFile), b, 0o600); err != nil {
		return fmt.Errorf("save record: %w", err)
	}
	return nil
}

// loadRecords reads every record of a folder (pods or containers) with load,
// which gets the id and the bytes. What cannot be read is moved to the folder
// quarantine and reported through aside; it never stops the start.
func loadRecords(dir, quarantine string, load func(id string, b []byte) error, aside func(id string, err error)) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read records: %w", err)
	}
	for _, e := range entries {
		id := e.Name()
		removeTemps(filepath.Join(dir, id))
		b, err := os.ReadFile(filepath.Join(dir, id, recordFile))
		if errors.Is(err, os.ErrNotExist) || err == nil && len(b) == 0 {
			// Cut off while being made or removed; or, empty, the first record
			// that a power cut took the content of.
			continue
		}
		if err == nil {
			err = load(id, b)
		}
		if err != nil {
			aside(id, errors.Join(err, setAside(filepath.Join(dir, id), quarantine)))
		}
	}
	return nil
}

// removeTemps deletes what a cut-off record write left; what stays is harmless.
func removeTemps(dir string) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if atomicfile.IsTemp(e.Name()) {
			os.Remove(filepath.Join(dir, e.Name()))
		}
	}
}

// setAside moves a folder whose record cannot be read out of the way, keeping
// it for the operator.
func setAside(dir, quarantine string) error {
	if err := os.MkdirAll(quarantine, 0o700); err != nil {
		return fmt.Errorf("make quarantine: %w", err)
	}
	name := filepath.Base(filepath.Dir(dir)) + "-" + filepath.Base(dir) + "-" + time.Now().UTC().Format("20060102T150405.000000000")
	if err := os.Rename(dir, filepath.Join(quarantine, name)); err != nil {
		return fmt.Errorf("set aside: %w", err)
	}
	return nil
}

// decodeBody checks that a record is of this version and of its folder, and
// reads the request in it.
func decodeBody(folder string, version int, id string, request json.RawMessage, into proto.Message) error {
	if version != recordVersion || id != folder {
		return fmt.Errorf("record has version %d and id %.64q, want %d and %q", version, id, recordVersion, folder)
	}
	return decodeMessage(request, into)
}

func decodePodRecord(id string, b []byte) (podRecord, *cri.PodSandboxConfig, error) {
	var rec podRecord
	config := new(cri.PodSandboxConfig)
	if err := json.Unmarshal(b, &rec); err != nil {
		return rec, nil, fmt.Errorf("decode record: %w", err)
	}
	if err := decodeBody(id, rec.Version, rec.ID, rec.Config, config); err != nil {
		return rec, nil, err
	}
	if config.Metadata == nil {
		return rec, nil, errors.New("record has no pod metadata")
	}
	return rec, config, nil
}

func decodeContainerRecord(id string, b []byte) (containerRecord, *cri.ContainerConfig, error) {
	var rec containerRecord
	config := new(cri.ContainerConfig)
	if err := json.Unmarshal(b, &rec); err != nil {
		return rec, nil, fmt.Errorf("decode record: %w", err)
	}
	if err := decodeBody(id, rec.Version, rec.ID, rec.Config, config); err != nil {
		return rec, nil, err
	}
	if config.Metadata == nil || config.Image == nil {
		return rec, nil, errors.New("record has no container metadata or image")
	}
	return rec, config, nil
}
