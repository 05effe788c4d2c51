package cri

import (
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"

	api "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/sandbox"
)

// Version says who answers.
func (s *Server) Version(context.Context, *api.VersionRequest) (*api.VersionResponse, error) {
	return &api.VersionResponse{
		Version:           "0.1.0", // of the kubelet's runtime API; the only one there ever was
		RuntimeName:       "noded",
		RuntimeVersion:    s.version,
		RuntimeApiVersion: "v1",
	}, nil
}

// Status says whether pods can run here, and with which handlers.
func (s *Server) Status(_ context.Context, req *api.StatusRequest) (*api.StatusResponse, error) {
	st := s.sandboxes.Status()
	resp := &api.StatusResponse{
		Status: &api.RuntimeStatus{Conditions: []*api.RuntimeCondition{
			condition(api.RuntimeReady, "RuntimeNotReady", st.RuntimeError),
			condition(api.NetworkReady, "NetworkPluginNotReady", st.NetworkError),
		}},
		RuntimeHandlers: handlers(st),
		Features: &api.RuntimeFeatures{
			SupplementalGroupsPolicy: true, MountOptions: true, UserNamespacesHostNetwork: st.UserNamespaces(),
		},
	}
	if req.Verbose {
		info, err := s.verboseInfo(st)
		if err != nil {
			return nil, err
		}
		resp.Info = info
	}
	return resp, nil
}

func condition(name, reason string, err error) *api.RuntimeCondition {
	if err == nil {
		return &api.RuntimeCondition{Type: name, Status: true}
	}
	return &api.RuntimeCondition{Type: name, Reason: reason, Message: cleanText(err.Error(), nil)}
}

// handlers lists the usable runtime handlers, the default one under "" too,
// which is how the kubelet asks for it.
func handlers(st sandbox.Status) []*api.RuntimeHandler {
	var list []*api.RuntimeHandler
	for _, h := range st.Handlers {
		if !h.Usable {
			continue
		}
		names := []string{h.Name}
		if h.Name == st.DefaultHandler {
			names = append(names, "")
		}
		for _, name := range names {
			list = append(list, &api.RuntimeHandler{
				Name: name,
				Features: &api.RuntimeHandlerFeatures{
					RecursiveReadOnlyMounts: h.RRO,
					UserNamespaces:          h.UserNS,
				},
			})
		}
	}
	return list
}

// handlerInfo is what a verbose Status says of a runtime handler.
type handlerInfo struct {
	Name    string `json:"name"`
	Path    string `json:"path"`
	Version string `json:"version,omitempty"`
	Usable  bool   `json:"usable"`
	Default bool   `json:"default"`
	Problem string `json:"problem,omitempty"`
}

func (s *Server) verboseInfo(st sandbox.Status) (map[string]string, error) {
	list := []handlerInfo{}
	for _, h := range st.Handlers {
		list = append(list, handlerInfo{
			Name: h.Name, Path: h.Path, Version: h.Version, Usable: h.Usable,
			Default: h.Name == st.DefaultHandler, Problem: h.Problem,
		})
	}
	values := map[string]any{"version": s.version, "handlers": list}
	if s.info != nil {
		for key, value := range s.info() {
			values[key] = value
		}
	}
	info := make(map[string]string, len(values))
	for key, value := range values {
		text, err := json.Marshal(value)
		if err != nil {
			return nil, fmt.Errorf("status info %q: %w", key, err)
		}
		info[key] = string(text)
	}
	return info, nil
}

// RuntimeConfig tells the kubelet the cgroup driver; it is the same until the
// node boots again.
func (s *Server) RuntimeConfig(context.Context, *api.RuntimeConfigRequest) (*api.RuntimeConfigResponse, error) {
	return &api.RuntimeConfigResponse{
		Linux: &api.LinuxRuntimeConfiguration{CgroupDriver: s.sandboxes.CgroupDriver()},
	}, nil
}

// semverText is the grammar of semver.org, which the kubelet parses with.
var semverText = regexp.MustCompile(`^(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?$`)

// semver makes a semantic version of what a build calls itself: "v1.2.3" is
// "1.2.3", "dev" is "0.0.0-build-dev".
func semver(v string) string {
	v = strings.TrimPrefix(v, "v")
	if semverText.MatchString(v) {
		return v
	}
	clean := strings.Trim(regexp.MustCompile(`[^0-9A-Za-z]+`).ReplaceAllString(v, "-"), "-")
	if clean == "" {
		return "0.0.0"
	}
	return "0.0.0-build-" + clean
}
