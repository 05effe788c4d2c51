// Package spec turns CRI requests into OCI runtime specs. It is pure: the same
// input gives the same spec; it touches no disk, no clock and no network.
package spec

import (
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	rspec "github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Facts are what the spec needs to know of this node.
type Facts struct {
	CgroupV2       bool
	SystemdCgroup  bool
	Seccomp        bool // kernel has seccomp filters
	AppArmor       bool // kernel has AppArmor enabled
	SELinux        bool
	Capabilities   []string            // noded's own bounding set, "CAP_CHOWN" …: "all" and privileged mean these
	HostDevices    []rspec.LinuxDevice // what a privileged container gets
	Swap           bool                // memory.memsw / memory.swap exists
	HugePages      []string            // "2MB", "1GB"
	CPUs           int                 // highest number of a CPU that is online, plus 1; 0 unknown
	MemoryNodes    int                 // the same of NUMA nodes
	Rlimits        []rspec.POSIXRlimit // hard limits that noded itself cannot exceed; empty: none known
	OOMScoreFloor  int                 // lowest oom_score_adj this process may set; CAP_SYS_RESOURCE gives -1000
	RuntimeSpecMax string              // newest spec version the handler takes; "" is 1.0.2

	Hostname        string // the node's, for pods in its network namespace
	AppArmorDefault string // profile loaded on the node for RuntimeDefault; "" none
	RRO             bool   // kernel and handler can make mounts recursively read-only
	IDMap           bool   // handler can map the owners of files in mounts

	MountFlags map[string]bool // mount options that the handler knows; empty: it does not tell
}

// User is a resolved identity (user_namespaces aside).
type User struct {
	UID, GID       uint32
	AdditionalGIDs []uint32 // GID too: a process that changes its primary group keeps it
	Home           string   // from /etc/passwd; "/" if unknown
	Name           string   // for USER; may be empty
}

// Paths are the host files and namespaces that a container is joined to.
type Paths struct {
	RootFS     string
	Hosts      string // host file mounted at /etc/hosts; "" none
	Hostname   string // … at /etc/hostname
	ResolvConf string // … at /etc/resolv.conf
	Shm        string // … at /dev/shm; "" a private tmpfs
	NetNS      string // "" the host's
	IPCNS      string // "" the host's
	UTSNS      string // "" the host's
	UserNS     string // "" the host's; owns the others
	PIDNS      string // join this; "" with HostPID false: a new one
	HostPID    bool
	OwnNet     bool   // a new network namespace, with a loopback only
	OwnIPC     bool   // a new one; Shm is "" then
	Self       string // the noded binary, which is the init of a shared PID namespace
}

// Input is all a container's spec depends on.
type Input struct {
	ID               string
	PodID            string
	Pod              *cri.PodSandboxConfig
	Container        *cri.ContainerConfig
	Image            ocispec.ImageConfig
	ImageName        string // as the user wrote it
	User             User
	Paths            Paths
	Cgroup           string              // OCI cgroupsPath
	SeccompLocalhost *rspec.LinuxSeccomp // parsed Localhost profile, if one is asked for
	// Devices are the host devices behind Container.Devices, resolved by the
	// caller (major, minor, type), in the same order.
	Devices [][]rspec.LinuxDevice
	// Mounts are Container.Mounts after their sources were resolved by the
	// caller: same order; Source is the path to bind.
	MountSources []string
	// MapTopOnly says, in their order, which mapped mounts have others below
	// that cannot be mapped.
	MapTopOnly  []bool
	Annotations map[string]string // allow-listed ones (see AllowAnnotations), passed to the runtime
	Facts       Facts

	// Defaults that this node's configuration gives to every container.
	Rlimits   []rspec.POSIXRlimit // lowered to Facts.Rlimits; empty: what the shim has
	PidsLimit int64               // 0: only the pod's limit
}
