package main

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/config"
)

// runLogAnnotation remembers the log folder: the CRI does not give a pod's log
// folder back.
const runLogAnnotation = "noded.dev/log-dir"

// podName is an RFC 1123 label: the name becomes the pod's host name.
var podName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

func (o runOptions) pod(uid string) (*cri.PodSandboxConfig, error) {
	if !podName.MatchString(o.name) {
		return nil, fmt.Errorf("--name %q: a name has at most 63 of a-z, 0-9 and -, the - not at an end", o.name)
	}
	ports, err := parsePorts(o.ports)
	if err != nil {
		return nil, err
	}
	logs, err := filepath.Abs(filepath.Join(o.logDir, "default_"+o.name+"_"+uid))
	if err != nil {
		return nil, fmt.Errorf("--log-dir: %w", err)
	}
	network, host := cri.NamespaceMode_POD, o.name
	if o.hostNetwork {
		if len(ports) > 0 {
			return nil, fmt.Errorf("--publish goes not with --host-network: the ports are the host's already")
		}
		// The CRI wants no host name of its own for a pod in the host's network.
		network, host = cri.NamespaceMode_NODE, ""
	}
	return &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: o.name, Namespace: "default", Uid: uid},
		Hostname:     host,
		LogDirectory: logs,
		PortMappings: ports,
		Labels: map[string]string{
			runLabel: "true",
			// These let crictl and the kubelet's tools show the pod as any other.
			"io.kubernetes.pod.name": o.name, "io.kubernetes.pod.namespace": "default", "io.kubernetes.pod.uid": uid,
		},
		Annotations: map[string]string{runLogAnnotation: logs},
		Linux: &cri.LinuxPodSandboxConfig{SecurityContext: &cri.LinuxSandboxSecurityContext{
			NamespaceOptions: &cri.NamespaceOption{Network: network, Pid: cri.NamespaceMode_CONTAINER},
			Seccomp:          &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault},
		}},
	}, nil
}

func (o runOptions) container() (*cri.ContainerConfig, error) {
	env, err := parseEnv(o.env)
	if err != nil {
		return nil, err
	}
	mounts, err := parseMounts(o.mounts)
	if err != nil {
		return nil, err
	}
	resources, err := o.resources()
	if err != nil {
		return nil, err
	}
	network := cri.NamespaceMode_POD
	if o.hostNetwork {
		network = cri.NamespaceMode_NODE
	}
	return &cri.ContainerConfig{
		Metadata:   &cri.ContainerMetadata{Name: o.name},
		Image:      &cri.ImageSpec{Image: o.image, UserSpecifiedImage: o.image},
		Args:       o.command,
		WorkingDir: o.workdir,
		Envs:       env,
		Mounts:     mounts,
		Labels: map[string]string{
			"io.kubernetes.container.name": o.name, "io.kubernetes.pod.name": o.name, "io.kubernetes.pod.namespace": "default",
		},
		LogPath:   o.name + ".log",
		Stdin:     o.stdin,
		StdinOnce: o.stdin,
		Tty:       o.tty,
		Linux: &cri.LinuxContainerConfig{Resources: resources, SecurityContext: &cri.LinuxContainerSecurityContext{
			NamespaceOptions: &cri.NamespaceOption{Network: network, Pid: cri.NamespaceMode_CONTAINER},
			Seccomp:          &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault},
		}},
	}, nil
}

// cpuPeriod is the kernel's usual CFS period in microseconds.
const cpuPeriod = 100_000

func (o runOptions) resources() (*cri.LinuxContainerResources, error) {
	r := &cri.LinuxContainerResources{}
	if o.memory != "" {
		var size config.Size
		if err := size.UnmarshalText([]byte(o.memory)); err != nil {
			return nil, fmt.Errorf("--memory: %w", err)
		}
		r.MemoryLimitInBytes = int64(size)
	}
	// The kernel takes no quota below a millisecond.
	if o.cpus < 0 || o.cpus > 0 && o.cpus < 0.01 {
		return nil, fmt.Errorf("--cpus %g: at least 0.01", o.cpus)
	}
	if o.cpus > 0 {
		r.CpuPeriod, r.CpuQuota = cpuPeriod, int64(o.cpus*cpuPeriod)
	}
	return r, nil
}

// parsePorts reads "[hostIP:]hostPort:containerPort[/protocol]"; an IPv6
// address stands in brackets.
func parsePorts(list []string) ([]*cri.PortMapping, error) {
	var ports []*cri.PortMapping
	for _, text := range list {
		p, err := parsePort(text)
		if err != nil {
			return nil, fmt.Errorf("--publish %q: %w", text, err)
		}
		ports = append(ports, p)
	}
	return ports, nil
}

func parsePort(text string) (*cri.PortMapping, error) {
	p := &cri.PortMapping{}
	rest, protocol, _ := strings.Cut(text, "/")
	switch protocol {
	case "", "tcp":
	case "udp":
		p.Protocol = cri.Protocol_UDP
	case "sctp":
		p.Protocol = cri.Protocol_SCTP
	default:
		return nil, fmt.Errorf("%q is not tcp, udp or sctp", protocol)
	}
	colon := strings.LastIndex(rest, ":")
	if colon < 0 {
		return nil, fmt.Errorf("write hostPort:containerPort")
	}
	host, container := rest[:colon], rest[colon+1:]
	if i := strings.LastIndex(host, ":"); i >= 0 {
		addr, err := netip.ParseAddr(strings.Trim(host[:i], "[]"))
		if err != nil {
			return nil, fmt.Errorf("%q is not an IP address", host[:i])
		}
		p.HostIp, host = addr.String(), host[i+1:]
	}
	for _, n := range []struct {
		text string
		to   *int32
	}{{host, &p.HostPort}, {container, &p.ContainerPort}} {
		v, err := strconv.ParseUint(n.text, 10, 16)
		if err != nil || v == 0 {
			return nil, fmt.Errorf("%q is not a port of 1 to 65535", n.text)
		}
		*n.to = int32(v)
	}
	return p, nil
}

func parseEnv(list []string) ([]*cri.KeyValue, error) {
	var env []*cri.KeyValue
	for _, text := range list {
		name, value, ok := strings.Cut(text, "=")
		if name == "" {
			return nil, fmt.Errorf("--env %q: write NAME=value", text)
		}
		if !ok {
			value = os.Getenv(name)
		}
		env = append(env, &cri.KeyValue{Key: name, Value: []byte(value)})
	}
	return env, nil
}

func parseMounts(list []string) ([]*cri.Mount, error) {
	var mounts []*cri.Mount
	for _, text := range list {
		parts := strings.Split(text, ":")
		if len(parts) < 2 || len(parts) > 3 || len(parts) == 3 && parts[2] != "ro" && parts[2] != "rw" {
			return nil, fmt.Errorf("--volume %q: write /host/path:/container/path[:ro]", text)
		}
		if !filepath.IsAbs(parts[0]) || !filepath.IsAbs(parts[1]) {
			return nil, fmt.Errorf("--volume %q: both paths must be absolute", text)
		}
		mounts = append(mounts, &cri.Mount{HostPath: parts[0], ContainerPath: parts[1], Readonly: len(parts) == 3 && parts[2] == "ro"})
	}
	return mounts, nil
}
