package cni

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"noded.dev/noded/cni/internal/nettest"
)

func TestMain(m *testing.M) { nettest.Main(m) }

const pluginDir = "/usr/lib/cni"

// node is a test's folders and its networks.
type node struct {
	Options
	ipam string // host-local's folder
}

func newNode(t testing.TB) *node {
	t.Helper()
	dir := t.TempDir()
	n := &node{ipam: filepath.Join(dir, "ipam")}
	n.Options = Options{Mode: ModeCNI, ConfDir: filepath.Join(dir, "net.d"), BinDirs: []string{filepath.Join(dir, "bin"), pluginDir},
		CacheDir: filepath.Join(dir, "cache"), Timeout: 20 * time.Second}
	for _, d := range []string{n.ConfDir, n.BinDirs[0]} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return n
}

func (n *node) open(t testing.TB) *Networks {
	t.Helper()
	nets, err := Open(t.Context(), n.Options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := nets.Close(); err != nil {
			t.Error(err)
		}
	})
	return nets
}

// conf writes a file of configuration the way an installer does: at once.
func (n *node) conf(t testing.TB, name, text string) {
	t.Helper()
	path := filepath.Join(n.ConfDir, name)
	if err := os.WriteFile(path+".tmp", []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		t.Fatal(err)
	}
}

// plugin writes a plugin as a shell script.
func (n *node) plugin(t testing.TB, name, script string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(n.BinDirs[0], name), []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
}

// bridged is the list that most clusters start with.
func (n *node) bridged(bridge string, net byte) string {
	return fmt.Sprintf(`{"cniVersion": "1.0.0", "name": "%[1]s-net", "plugins": [
		{"type": "bridge", "bridge": "%[1]s", "isGateway": true, "ipMasq": true, "hairpinMode": true,
		 "ipam": {"type": "host-local", "dataDir": "%[2]s", "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
		          "ranges": [[{"subnet": "10.%[3]d.0.0/24"}], [{"subnet": "fd00:%[3]d::/64"}]]}},
		{"type": "portmap", "capabilities": {"portMappings": true}},
		{"type": "loopback"}]}`, bridge, n.ipam, net)
}

// leases are the addresses that host-local has given away.
func (n *node) leases(t testing.TB) (list []string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(n.ipam, "*", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if a, err := netip.ParseAddr(filepath.Base(f)); err == nil {
			list = append(list, a.String())
		}
	}
	return list
}

func (n *node) cached(t testing.TB) []string {
	t.Helper()
	var all []string
	for _, d := range []string{"pods", "results", "builtin"} {
		files, err := filepath.Glob(filepath.Join(n.CacheDir, d, "*"))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, files...)
	}
	return all
}

func pod(id, netns string) Pod {
	return Pod{ID: id, Name: "web", Namespace: "default", UID: "1234", NetNS: netns}
}

func mustAdd(t testing.TB, nets *Networks, p Pod) Result {
	t.Helper()
	r, err := nets.Add(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func mustDel(t testing.TB, nets *Networks, p Pod) {
	t.Helper()
	if err := nets.Del(t.Context(), p); err != nil {
		t.Fatal(err)
	}
}
