package sandbox

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	rspec "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/internal/cgroup"
	"noded.dev/noded/internal/userdb"
	"noded.dev/noded/runtime"
)

func testPodRecord(t *testing.T) (podRecord, *cri.PodSandboxConfig) {
	t.Helper()
	config := &cri.PodSandboxConfig{
		Metadata: &cri.PodSandboxMetadata{Name: "n", Namespace: "ns", Uid: "u", Attempt: 3},
		Labels:   map[string]string{"a": "b"},
		Linux:    &cri.LinuxPodSandboxConfig{Sysctls: map[string]string{"net.ipv4.ip_forward": "1"}},
	}
	raw, err := encodeMessage(config)
	if err != nil {
		t.Fatal(err)
	}
	return podRecord{
		Version: recordVersion, ID: newID(), State: podReady, CreatedAt: time.Now().UTC(), BootID: "b", HandlerName: "runc",
		Handler: runtime.Handler{Name: "runc", Path: "/usr/bin/runc"}, Config: raw, Cgroup: "/c", OwnCgroup: true, NetworkOwe: true,
		IPs: []string{"10.0.0.2", "fd00::2"}, InitOwe: true, Init: runtime.Process{Pid: 7, StartTime: 9},
		Restoring: true, Overhead: json.RawMessage(`{"cpuShares":"2"}`), Resources: json.RawMessage(`{"cpuShares":"3"}`),
		Resize: &resizeRecord{Before: []cgroup.Setting{{File: "cpu.shares", Value: "2"}}},
	}, config
}

// Every field of a record survives being saved and loaded.
func TestRecordRoundTrip(t *testing.T) {
	want, config := testPodRecord(t)
	dir := t.TempDir()
	if err := saveRecord(dir, &want); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, recordFile))
	if err != nil {
		t.Fatal(err)
	}
	got, gotConfig, err := decodePodRecord(want.ID, b)
	if err != nil {
		t.Fatal(err)
	}
	if !proto.Equal(config, gotConfig) {
		t.Errorf("config: got %v, want %v", gotConfig, config)
	}
	got.Config, want.Config = nil, nil // compared above; protojson does not promise its spaces
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
	noZeroFields(t, want, "Config")
}

func TestContainerRecordRoundTrip(t *testing.T) {
	config := &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: "c"}, Image: &cri.ImageSpec{Image: "i"},
		Envs: []*cri.KeyValue{{Key: "k", Value: []byte{0xff, 'v'}}}, // values are bytes, not text
	}
	raw, err := encodeMessage(config)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now().UTC()
	want := containerRecord{
		Version: recordVersion, ID: newID(), PodID: "p", State: stateRunning, BootID: "b", Handler: runtime.Handler{Name: "runc"},
		Config: raw, ImageID: "sha256:1", ImageName: "i", Cgroup: "/c/1", LogPath: "/l", User: userdb.User{UID: 1},
		StopSignal: 15, StopSignalName: cri.Signal_SIGNAL_SIGTERM, CreatedAt: now, StartedAt: now, FinishedAt: now,
		Process: runtime.Process{Pid: 1}, ExitCode: 1, Reason: "r", Message: "m", StartError: &startError{Code: 127, Message: "x"},
		Restore: true, RuntimeGone: true, Resources: json.RawMessage(`{"cpuShares":"2"}`), Figures: json.RawMessage(`{"cpuShares":"3"}`),
		UpdateAnnotations: map[string]string{"a": "b"}, OOMKills: 1,
		Resize: &resizeRecord{
			Before:   []cgroup.Setting{{File: "cpu.max", Value: "max 100000"}},
			Undo:     &rspec.LinuxResources{CPU: &rspec.LinuxCPU{Cpus: "0"}},
			OOMScore: &oomScores{Before: 1, After: 2},
		},
	}
	dir := t.TempDir()
	if err := saveRecord(dir, &want); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, recordFile))
	if err != nil {
		t.Fatal(err)
	}
	got, gotConfig, err := decodeContainerRecord(want.ID, b)
	if err != nil {
		t.Fatal(err)
	}
	if !proto.Equal(config, gotConfig) {
		t.Errorf("config: got %v, want %v", gotConfig, config)
	}
	got.Config, want.Config = nil, nil
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
	noZeroFields(t, want, "Config")
}

// noZeroFields makes sure that a field added to a record is added to its test.
func noZeroFields(t *testing.T, rec any, except string) {
	t.Helper()
	v := reflect.ValueOf(rec)
	for i := range v.NumField() {
		if name := v.Type().Field(i).Name; name != except && v.Field(i).IsZero() {
			t.Errorf("field %s is not covered by this test", name)
		}
	}
}

// A record cut off at any byte, or of another version, is set aside and named;
// the others load.
func TestTornRecords(t *testing.T) {
	rec, _ := testPodRecord(t)
	whole, err := json.Marshal(&rec)
	if err != nil {
		t.Fatal(err)
	}
	for n := 0; n < len(whole); n++ {
		if _, _, err := decodePodRecord(rec.ID, whole[:n]); err == nil {
			t.Fatalf("a record of %d of %d bytes was taken", n, len(whole))
		}
	}
	dir, quarantine := filepath.Join(t.TempDir(), "pods"), t.TempDir()
	other := rec
	other.ID, other.Version = newID(), recordVersion+1
	torn := newID()
	for id, b := range map[string][]byte{rec.ID: whole, other.ID: must(json.Marshal(&other)), torn: whole[:9]} {
		if err := os.MkdirAll(filepath.Join(dir, id), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, id, recordFile), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	loaded, aside := map[string]bool{}, map[string]bool{}
	err = loadRecords(dir, quarantine, func(id string, b []byte) error {
		_, _, err := decodePodRecord(id, b)
		loaded[id] = err == nil
		return err
	}, func(id string, err error) { aside[id] = true })
	if err != nil {
		t.Fatal(err)
	}
	if !loaded[rec.ID] || len(aside) != 2 || !aside[other.ID] || !aside[torn] {
		t.Errorf("loaded %v, set aside %v", loaded, aside)
	}
	if kept, _ := os.ReadDir(quarantine); len(kept) != 2 {
		t.Errorf("quarantine holds %d folders, want 2", len(kept))
	}
	if left, _ := os.ReadDir(dir); len(left) != 1 {
		t.Errorf("%d folders are left, want 1", len(left))
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
