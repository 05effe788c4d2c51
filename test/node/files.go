package node

import (
	"fmt"
	"os"
	"path/filepath"
)

func (n *Node) conflists() string { return filepath.Join(n.Dir, "net.d") }
func (n *Node) mirrors() string   { return filepath.Join(n.Dir, "certs.d") }

// writeConflist makes an ordinary bridge network of Debian's plugins, whose
// address files are in the node's folder.
func (n *Node) writeConflist() error {
	if err := os.MkdirAll(n.conflists(), 0o700); err != nil {
		return err
	}
	text := fmt.Sprintf(`{"cniVersion": "1.0.0", "name": "net-%s", "plugins": [
 {"type": "bridge", "bridge": %q, "isGateway": true, "ipMasq": true, "hairpinMode": true,
  "ipam": {"type": "host-local", "dataDir": %q, "ranges": [[{"subnet": %q}]], "routes": [{"dst": "0.0.0.0/0"}]}},
 {"type": "portmap", "capabilities": {"portMappings": true}}]}
`, n.Tag, n.Bridge, filepath.Join(n.Root, "ipam"), n.Subnet)
	return os.WriteFile(filepath.Join(n.conflists(), "10-test.conflist"), []byte(text), 0o600)
}

// writeMirrors leads every registry's name to the test registry.
func (n *Node) writeMirrors() error {
	if n.Registry == nil {
		return nil
	}
	return n.Mirror("_default", n.Registry)
}

// Mirror leads one registry's name to another test registry.
func (n *Node) Mirror(name string, r *Registry) error {
	dir := filepath.Join(n.mirrors(), name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	text := fmt.Sprintf("server = \"http://%[1]s\"\n[host.\"http://%[1]s\"]\n  capabilities = [\"pull\", \"resolve\"]\n", r.Host)
	return os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(text), 0o600)
}
