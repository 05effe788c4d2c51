package node

import (
	"fmt"
	"os"
	"path/filepath"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// containerd is Debian's, run to prove that the tests ask for nothing that the
// field's other runtimes would not give.
type containerd struct{}

func (containerd) prepare(n *Node) ([]string, error) {
	n.CNI = true
	config := filepath.Join(n.Dir, "containerd.toml")
	text := fmt.Sprintf(`version = 2
root = %q
state = %q
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs"]
[grpc]
address = %q
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "registry.test/pause:1"
disable_apparmor = true
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true
stream_server_address = "127.0.0.1"
stream_server_port = "0"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = %q
[plugins."io.containerd.grpc.v1.cri".registry]
config_path = %q
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
BinaryName = %q
`, n.Root, n.State, n.Socket, n.conflists(), n.mirrors(), runc())
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, err
	}
	if err := n.writeConflist(); err != nil {
		return nil, err
	}
	return []string{"containerd", "--config", config}, n.writeMirrors()
}

// helpers are none: containerd's shims are per pod and end with it.
func (containerd) helpers(*Node) map[string]int { return map[string]int{} }

// passing are what its garbage collection frees now and then.
func (containerd) passing(n *Node) []string {
	return []string{filepath.Join(n.Root, "io.containerd.snapshotter.v1.overlayfs"), filepath.Join(n.Root, "io.containerd.content.v1.content")}
}

func (containerd) forgets(err error) bool { return status.Code(err) == codes.NotFound }
