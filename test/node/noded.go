package node

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Build makes the daemon with the given build tags, or returns what NODED_BIN
// names where no tag is asked for.
func Build(dir string, tags ...string) (string, error) {
	if bin := os.Getenv("NODED_BIN"); bin != "" && len(tags) == 0 {
		return filepath.Abs(bin)
	}
	// Built in the daemon's own module, whichever module the tests are of.
	module, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "noded.dev/noded").Output()
	if err != nil {
		return "", fmt.Errorf("find the module: %w", err)
	}
	bin := filepath.Join(dir, strings.Join(append([]string{"noded"}, tags...), "-"))
	cmd := exec.Command("go", "build", "-buildvcs=false", "-tags", strings.Join(tags, ","), "-o", bin, "noded.dev/noded/cmd/noded")
	cmd.Dir = strings.TrimSpace(string(module))
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build noded: %w: %s", err, out)
	}
	return bin, nil
}

// noded is the daemon that these tests are about.
type noded struct{}

func (noded) prepare(n *Node) ([]string, error) {
	config := filepath.Join(n.Dir, "config.toml")
	network := fmt.Sprintf("mode = \"builtin\"\n[network.builtin]\nbridge = %q\nsubnets = [%q, %q]\n", n.Bridge, n.Subnet, n.subnet6())
	if n.CNI {
		if err := n.writeConflist(); err != nil {
			return nil, err
		}
		network = fmt.Sprintf("mode = \"cni\"\nconf_dir = %q\nbin_dirs = [\"/opt/cni/bin\", \"/usr/lib/cni\"]\n", n.conflists())
	}
	text := fmt.Sprintf("root = %q\nstate = %q\n%s\n[log]\nlevel = \"debug\"\n[cri]\nlisten = \"unix://%s\"\n[runtime.handlers.runc]\npath = %q\n[images]\nregistry_dirs = [%q]\n[network]\n%s",
		n.Root, n.State, n.Config, n.Socket, runc(), n.mirrors(), network)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, err
	}
	return []string{n.Binary, "serve", "--config", config}, errors.Join(n.WriteDropIn(n.DropIn), n.writeMirrors())
}

// WriteDropIn replaces the file that stands above the configuration. The daemon
// reads it when it starts and at SIGHUP.
func (n *Node) WriteDropIn(text string) error {
	n.DropIn = text
	dir := filepath.Join(n.Dir, "conf.d")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "test.toml"), []byte(strings.ReplaceAll(text, "NODE", n.Dir)), 0o600)
}

// runc is the OCI runtime that tests use: a new enough one if there is one.
func runc() string {
	if path := os.Getenv("NODED_TEST_RUNC"); path != "" {
		return path
	}
	return "runc"
}

// helpers finds the shim by its command line. There is one for each state folder.
func (noded) helpers(n *Node) map[string]int {
	found := map[string]int{}
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		data, err := os.ReadFile("/proc/" + e.Name() + "/cmdline")
		if err != nil {
			continue
		}
		args := bytes.Split(data, []byte{0})
		// Its children look alike until they execute something; it alone leads a
		// session.
		session, err := unix.Getsid(pid)
		if len(args) > 1 && string(args[1]) == "shim" && bytes.Contains(data, []byte(n.Dir)) && err == nil && session == pid {
			found["shim"] = pid
		}
	}
	return found
}

// passing are none: what noded has removed is gone when it says so.
func (noded) passing(*Node) []string { return nil }

// forgets is never: stopping what is gone has succeeded.
func (noded) forgets(error) bool { return false }

// subnet6 is a unique local IPv6 range that no other node has.
func (n *Node) subnet6() string {
	return fmt.Sprintf("fd%s:%s::/64", n.Tag[:2], n.Tag[2:])
}

// deleteRules removes the packet filter tables that the built-in network keeps
// for its bridge while the machine is up.
func (n *Node) deleteRules() error {
	out, err := exec.Command("nft", "list", "tables").Output()
	if err != nil {
		return nil // no nft, no rules
	}
	for _, line := range strings.Split(string(out), "\n") {
		if f := strings.Fields(line); len(f) == 3 && (strings.Contains(f[2], n.Bridge) || strings.Contains(f[2], n.Tag)) {
			if err := exec.Command("nft", "delete", "table", f[1], f[2]).Run(); err != nil {
				return fmt.Errorf("delete table %s: %w", f[2], err)
			}
		}
	}
	return nil
}
