package spec

import (
	"path"
	"strings"

	rspec "github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/internal/kind"
)

// applyDevices denies every device and then allows the requested ones; the
// runtime adds the few that every container has (/dev/null and its like). A
// privileged container gets all of the node's.
func applyDevices(in *Input, s *rspec.Spec) error {
	if len(in.Devices) != len(in.Container.GetDevices()) {
		return kind.Errorf(kind.Internal, "%d resolved devices for %d requested", len(in.Devices), len(in.Container.GetDevices()))
	}
	var set deviceSet
	if in.privileged() {
		set.rules = []rspec.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}
		for _, d := range in.Facts.HostDevices {
			set.add(d)
		}
	} else {
		set.rules = []rspec.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}
	}
	for i, d := range in.Container.GetDevices() {
		if err := set.request(d, in.Devices[i], in.privileged()); err != nil {
			return err
		}
	}
	if len(set.list) > maxDevices {
		return tooMany("devices", len(set.list), maxDevices)
	}
	s.Linux.Devices = set.list
	s.Linux.Resources.Devices = set.rules
	return nil
}

// deviceSet holds device nodes with unique paths, and cgroup rules.
type deviceSet struct {
	list  []rspec.LinuxDevice
	index map[string]int
	rules []rspec.LinuxDeviceCgroup
}

// add puts a node in; a later one at the same path replaces it.
func (s *deviceSet) add(d rspec.LinuxDevice) {
	if s.index == nil {
		s.index = map[string]int{}
	}
	if i, ok := s.index[d.Path]; ok {
		s.list[i] = d
		return
	}
	s.index[d.Path] = len(s.list)
	s.list = append(s.list, d)
}

func (s *deviceSet) request(d *cri.Device, resolved []rspec.LinuxDevice, privileged bool) error {
	base := path.Clean(d.GetContainerPath())
	for _, node := range resolved {
		if node.Path != base && !strings.HasPrefix(node.Path, base+"/") {
			return kind.Errorf(kind.Internal, "device %s was resolved outside of %s", node.Path, base)
		}
		s.add(node)
		if !privileged {
			s.rules = append(s.rules, rspec.LinuxDeviceCgroup{Allow: true, Type: node.Type,
				Major: ptr(node.Major), Minor: ptr(node.Minor), Access: d.GetPermissions()})
		}
	}
	return nil
}
