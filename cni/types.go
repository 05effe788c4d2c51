// Package cni connects pods to networks: by ordinary CNI configuration lists
// through libcni, or by a built-in bridge network that executes no plugin.
package cni

import "net/netip"

// PortMapping publishes a pod's port on the host.
type PortMapping struct {
	HostIP        netip.Addr // zero value: all addresses
	HostPort      uint16     // never 0: such mappings are dropped before
	ContainerPort uint16
	Protocol      string // "tcp", "udp", "sctp"
}

// DNS is what the dns capability hands to plugins.
type DNS struct{ Servers, Searches, Options []string }

// Pod is what networks need to know of a pod.
type Pod struct {
	ID, Name, Namespace, UID string
	NetNS                    string // path of the pinned network namespace
	PortMappings             []PortMapping
	DNS                      DNS
	IngressBPS, EgressBPS    uint64 // bandwidth annotations in bits per second; 0 unlimited
}

// podInterface is the name inside the pod, as kubelets and probes expect it.
const podInterface = "eth0"

// Result is a pod's network as it was set up.
type Result struct {
	IPs []netip.Addr // primary first, at most one more of the other family first after it
}
