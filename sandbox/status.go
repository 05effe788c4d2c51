package sandbox

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/internal/userdb"
)

// PodStatus is the CRI's view of one pod; verbose adds the record, for
// operators.
func (m *Manager) PodStatus(id string, verbose bool) (*cri.PodSandboxStatusResponse, error) {
	p, err := m.pod(id)
	if err != nil {
		return nil, err
	}
	// The time is taken first: the kubelet holds what follows for at least as
	// new as any event before it.
	out := &cri.PodSandboxStatusResponse{Timestamp: m.clock.now()}
	out.Status, out.ContainersStatuses = p.view.Load().status, p.containerStatuses()
	if !verbose {
		return out, nil
	}
	info := map[string]any{"record": p.record(), "paths": map[string]string{"record": p.paths.root, "state": p.paths.state, "namespaces": p.paths.ns}}
	for name, r := range map[string]*cri.LinuxContainerResources{"overhead": p.resources().overhead, "resources": p.resources().resources} {
		if r != nil {
			info[name] = r
		}
	}
	if pid := p.record().Init.Pid; pid != 0 {
		info["pid"] = pid
	}
	out.Info, err = verboseInfo(info)
	return out, err
}

// ContainerStatus is the CRI's view of one container; verbose adds the record
// and the OCI spec, for operators.
func (m *Manager) ContainerStatus(id string, verbose bool) (*cri.ContainerStatusResponse, error) {
	c, err := m.container(id)
	if err != nil {
		return nil, err
	}
	out := &cri.ContainerStatusResponse{Status: c.view.Load().status}
	if !verbose {
		return out, nil
	}
	rec := c.record()
	info := map[string]any{"sandboxID": rec.PodID, "pid": rec.Process.Pid, "record": rec, "paths": map[string]string{"record": c.paths.root}}
	if b, err := os.ReadFile(filepath.Join(c.paths.bundle(), "config.json")); err == nil {
		info["runtimeSpec"] = json.RawMessage(b)
	}
	out.Info, err = verboseInfo(info)
	return out, err
}

// verboseInfo is one JSON text under the key "info", which crictl shows as it
// is.
func verboseInfo(info map[string]any) (map[string]string, error) {
	b, err := json.Marshal(info)
	if err != nil {
		return nil, fmt.Errorf("encode verbose info: %w", err)
	}
	return map[string]string{"info": string(b)}, nil
}

func criUser(u userdb.User) *cri.ContainerUser {
	groups := make([]int64, 0, len(u.AdditionalGIDs))
	for _, g := range u.AdditionalGIDs {
		groups = append(groups, int64(g))
	}
	return &cri.ContainerUser{Linux: &cri.LinuxContainerUser{Uid: int64(u.UID), Gid: int64(u.GID), SupplementalGroups: groups}}
}
