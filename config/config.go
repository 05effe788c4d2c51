// Package config is noded's configuration: its keys, their defaults, how files
// are read and merged, and what is wrong with them. Only cmd/noded imports it;
// every other package gets its own small options.
package config

// Config is the whole configuration. The comment of each field is the only
// place where its key is described: the default configuration file and
// docs/configuration.md are made from these comments. A field tagged
// reload:"yes" takes effect on SIGHUP; every other one needs a restart of the
// daemon (which disturbs no container).
type Config struct {
	// Folder of images, layers and the records of pods and containers. It must
	// survive a reboot.
	Root string `toml:"root"`
	// Folder of sockets, pinned namespaces and pods' small files. It should be on a
	// tmpfs: nothing in it has to survive a reboot.
	State string `toml:"state"`

	// What noded writes to its standard error.
	Log Log `toml:"log"`
	// The socket that the kubelet and the command line talk to.
	CRI CRI `toml:"cri"`
	// OCI runtimes and cgroups.
	Runtime Runtime `toml:"runtime"`
	// How pods are connected.
	Network Network `toml:"network"`
	// How images are pulled and kept.
	Images Images `toml:"images"`
}

// Log configures the daemon's own log.
type Log struct {
	// How much is logged: "trace", "debug", "info", "warning" or "error".
	Level string `toml:"level" reload:"yes"`
	// "text" for people, "json" for machines.
	Format string `toml:"format"`
}

// CRI configures the gRPC server and the streaming server.
type CRI struct {
	// Where the CRI is served: "unix://" and an absolute path of at most 107 bytes.
	// The socket gets mode 0600 in a folder with mode 0700.
	Listen string `toml:"listen"`
	// Address and port of exec, attach and port-forward streams. Port 0 takes a free
	// one. Whoever reaches it also needs the one-time token of the URL; keep it on
	// loopback, where the kubelet is.
	StreamAddress string `toml:"stream_address"`
}

// Runtime configures OCI runtimes and cgroups.
type Runtime struct {
	// The handler of pods that name none.
	Default string `toml:"default"`
	// Who makes cgroups: "cgroupfs" (the runtime, by mkdir), "systemd" (over D-Bus) or
	// "auto": systemd where it is pid 1. The kubelet asks noded for this.
	CgroupDriver string `toml:"cgroup_driver"`
	// Folders of CDI specifications (*.json, *.yaml), by which vendors describe devices
	// such as GPUs. They are read whenever a container asks for such a device; of two
	// files that define one, that in the later folder counts. [] is none.
	CDISpecDirs []string `toml:"cdi_spec_dirs"`
	// What to do where the host path of a mount does not exist: "error" refuses the
	// container, as the CRI says; "create" makes a folder, as containerd and CRI-O do.
	MissingHostPath string `toml:"missing_host_path"`
	// Whether running containers and pods can be checkpointed, and pods be restored from
	// that. It takes CRIU (a command "criu" beside noded or in PATH) and a runtime that
	// was built with it. See docs/checkpoint.md for what an attacker could make of it.
	Checkpoint bool `toml:"checkpoint"`
	// Handlers by name; the name is what a RuntimeClass calls its handler. A handler
	// that is taken out here still serves the containers that were made with it.
	Handlers map[string]Handler `toml:"handlers"`
}

// Handler is one OCI runtime.
type Handler struct {
	// The command: an absolute path, or a name that is looked up beside the noded
	// binary first and in PATH then.
	Path string `toml:"path"`
}

// Network configures how pods are connected.
type Network struct {
	// "cni" runs the plugins of the first configuration in conf_dir, and pods wait
	// until there is one. "builtin" makes a bridge network in the daemon, without any
	// plugin: for a node without a cluster network.
	Mode string `toml:"mode"`
	// Folder of CNI configurations (*.conflist, *.conf, *.json; first by name). Changes
	// in it are seen without a reload.
	ConfDir string `toml:"conf_dir"`
	// Folders of CNI plugins, searched in order.
	BinDirs []string `toml:"bin_dirs"`
	// The built-in network; used only with mode = "builtin".
	Builtin Builtin `toml:"builtin"`
}

// Builtin configures the built-in bridge network.
type Builtin struct {
	// The bridge's name, at most 15 bytes.
	Bridge string `toml:"bridge"`
	// Pods' ranges: one IPv4, one IPv6, or one of each, the pod's main family first.
	// The kubelet's pod CIDR, if it sends one, is used instead.
	Subnets []string `toml:"subnets"`
}

// Images configures pulling and keeping images.
type Images struct {
	// Folder of containers' writable layers, where these are to be on another file system
	// than the images; "" keeps them with the images. Containers that exist when it
	// changes stay where they are.
	ContainerRoot string `toml:"container_root"`
	// Folders with one sub-folder per registry that holds a hosts.toml: mirrors, TLS and
	// request headers. The first folder that knows a registry counts. They are
	// read at every pull.
	RegistryDirs []string `toml:"registry_dirs"`
	// Layers of one image that are downloaded and unpacked side by side.
	MaxParallel int `toml:"max_parallel"`
	// A download that brings less than this a second, over a minute, goes on from the
	// next mirror, or fails.
	MinRate Size `toml:"min_rate"`
	// Further token servers that credentials may be sent to, as "host" or "host:port".
	// Without them only a server of the registry's own domain gets any.
	TokenHosts []string `toml:"token_hosts"`
	// Folder of registry credentials for the pods of single namespaces: Docker config
	// files called <namespace>.json or <namespace>/config.json. They count after those
	// of the pull request and before the node's own; "" is none. Read at every pull.
	CredentialsDir string `toml:"credentials_dir"`
	// Images that the kubelet never collects: full references with a tag or a digest, in
	// which "*" stands for any text, such as "registry.k8s.io/pause:*".
	Pinned []string `toml:"pinned" reload:"yes"`
	// Which images are pulled and run, by repository: patterns of full names, in which
	// "*" stands for any text, such as "registry.example.com/team/*". Of those that match
	// the longest counts. An image that was pulled before a rule was made is checked
	// when it is pulled again, and does not run until then.
	Verify map[string]Verify `toml:"verify" reload:"yes"`
}

// Verify is the rule for images of some repositories.
type Verify struct {
	// "nothing"; "signature" for one by sigstore (cosign) with one of the keys, which
	// names the image's digest and repository; or "refuse" for no image at all.
	Require string `toml:"require" reload:"yes"`
	// Files of public keys in PEM: ECDSA, Ed25519, or RSA of at least 2048 bits.
	Keys []string `toml:"keys" reload:"yes"`
}

// Default is the configuration of an empty file.
func Default() Config {
	return Config{
		Root:  "/var/lib/noded",
		State: "/run/noded",
		Log:   Log{Level: "info", Format: "text"},
		CRI: CRI{
			Listen:        "unix:///run/noded/noded.sock",
			StreamAddress: "127.0.0.1:0",
		},
		Runtime: Runtime{
			Default:      "runc",
			CgroupDriver: "auto",
			CDISpecDirs:  []string{"/etc/cdi", "/var/run/cdi"},
			Handlers:     map[string]Handler{"runc": {Path: "runc"}},

			MissingHostPath: "error",
		},
		Network: Network{
			Mode:    "cni",
			ConfDir: "/etc/cni/net.d",
			BinDirs: []string{"/opt/cni/bin", "/usr/lib/cni"},
			Builtin: Builtin{Bridge: "noded0", Subnets: []string{"10.89.0.0/16", "fd00:10:89::/64"}},
		},
		Images: Images{
			RegistryDirs: []string{"/etc/noded/certs.d", "/etc/containerd/certs.d", "/etc/docker/certs.d"},
			MaxParallel:  3,
			MinRate:      Size(1 << 10),
			TokenHosts:   []string{},

			CredentialsDir: "/etc/noded/credentials",
			Pinned:         []string{},
			Verify:         map[string]Verify{"*": {Require: "nothing", Keys: []string{}}},
		},
	}
}
