package builtin

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"noded.dev/noded/cni/internal/nettest"
	"noded.dev/noded/internal/kind"
)

// leftovers is all that pods may leave on the node.
func leftovers(t testing.TB, n *Network) []string {
	t.Helper()
	var list []string
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if strings.HasPrefix(l.Attrs().Name, linkPrefix) {
			list = append(list, "interface "+l.Attrs().Name)
		}
	}
	files, err := os.ReadDir(n.opts.Dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		list = append(list, "file "+f.Name())
	}
	for _, m := range mapNames {
		var doc struct {
			Nftables []struct {
				Map struct{ Elem []any }
			}
		}
		if err := json.Unmarshal([]byte(run(t, "nft", "-j", "list", "map", "inet", n.opts.Bridge, m)), &doc); err != nil {
			t.Fatal(err)
		}
		for _, e := range doc.Nftables {
			if len(e.Map.Elem) > 0 {
				list = append(list, fmt.Sprint("map ", m, e.Map.Elem))
			}
		}
	}
	if v, err := os.ReadFile("/proc/sys/net/ipv4/conf/" + n.opts.Bridge + "/route_localnet"); err != nil || strings.TrimSpace(string(v)) != "0" {
		list = append(list, "route_localnet")
	}
	return append(list, n.Pods()...)
}

func ports(base uint16) []Port {
	return []Port{
		{HostPort: base, ContainerPort: 80, Protocol: "tcp"}, {HostPort: base, ContainerPort: 80, Protocol: "udp"},
		{HostIP: netip.MustParseAddr("127.0.0.1"), HostPort: base + 1, ContainerPort: 80, Protocol: "tcp"},
	}
}

func TestManyLeaveNothing(t *testing.T) {
	n := open(t)
	var wg sync.WaitGroup
	for worker := range 4 {
		ns := nettest.Pod(t)
		wg.Go(func() {
			for i := range 50 {
				id := fmt.Sprintf("w%d-%d", worker, i)
				pod := Pod{ID: id, NetNS: ns, Ports: ports(uint16(10000 + 100*worker + i%50*2))}
				if _, err := n.Add(t.Context(), pod); err != nil {
					t.Error(err)
				}
				if err := n.Del(t.Context(), id); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if left := leftovers(t, n); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if err := n.Teardown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if out := run(t, "nft", "list", "tables"); strings.Contains(out, n.opts.Bridge) {
		t.Errorf("after teardown: %s", out)
	}
	if _, err := netlink.LinkByName(n.opts.Bridge); err == nil {
		t.Error("after teardown the bridge is still there")
	}
}

const crashEnv = "NODED_BUILTIN_CRASH"

// TestCrashChild adds and deletes pods until it is killed.
func TestCrashChild(t *testing.T) {
	env := os.Getenv(crashEnv)
	if env == "" {
		t.Skip("is a part of TestCrash")
	}
	args := strings.Split(env, ",")
	n, err := Open(t.Context(), Options{Bridge: "ndcrash0", Dir: args[0], Log: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i, ns := range args[1:] {
		wg.Go(func() {
			for {
				id := fmt.Sprint("pod", i)
				if _, err := n.Add(t.Context(), Pod{ID: id, NetNS: ns, Ports: ports(uint16(9000 + 10*i))}); err != nil {
					t.Error(err)
					return
				}
				if err := n.Del(t.Context(), id); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func TestCrash(t *testing.T) {
	nettest.NeedRoot(t)
	dir := t.TempDir()
	args := []string{dir, nettest.Pod(t), nettest.Pod(t)}
	found := 0
	for range 20 {
		child := exec.Command("/proc/self/exe", "-test.run=^TestCrashChild$")
		child.Env = append(os.Environ(), crashEnv+"="+strings.Join(args, ","))
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(40+rand.IntN(120)) * time.Millisecond) // anywhere in its work
		child.Process.Kill()
		if err := child.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
			t.Fatalf("child ended by itself: %v", err)
		}
		n := open(t, func(o *Options) { o.Bridge = "ndcrash0"; o.Dir = dir })
		found += len(n.Pods())
		for _, id := range n.Pods() {
			if err := n.Del(t.Context(), id); err != nil {
				t.Fatal(err)
			}
		}
		if err := n.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
		if left := leftovers(t, n); len(left) > 0 {
			t.Fatalf("left: %v", left)
		}
		n.Close()
	}
	if found == 0 {
		t.Error("no crash found a pod: the test kills too early")
	}
}

func TestRestartKeepsPods(t *testing.T) {
	n := open(t)
	outside := nettest.Outside(t)
	pod := Pod{ID: "p", NetNS: nettest.Pod(t), Ports: ports(8080)}
	first := add(t, n, pod)
	nettest.Serve(t, pod.NetNS, ":80")
	n.Close()
	n, err := Open(t.Context(), n.opts)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if _, err := nettest.Ask(outside, "tcp", nettest.NodeIPv4+":8080"); err != nil {
		t.Errorf("host port after a restart: %v", err)
	}
	before := run(t, "nsenter", "--net="+pod.NetNS, "ip", "link", "show", "eth0")
	if again := add(t, n, pod); again[0] != first[0] || again[1] != first[1] {
		t.Errorf("addresses %v, before the restart %v", again, first)
	}
	if after := run(t, "nsenter", "--net="+pod.NetNS, "ip", "link", "show", "eth0"); after != before {
		t.Errorf("the pod's interface was replaced:\n%s%s", before, after)
	}
	if err := n.Check(t.Context(), "p"); err != nil {
		t.Error(err)
	}
	run(t, "nsenter", "--net="+pod.NetNS, "ip", "addr", "flush", "dev", "eth0")
	if err := n.Check(t.Context(), "p"); !kind.Is(err, kind.Precondition) {
		t.Errorf("check of a pod without addresses: %v", err)
	}
	if err := n.Del(t.Context(), "p"); err != nil {
		t.Fatal(err)
	}
	if left := leftovers(t, n); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func TestNamespaceDeletedUnderUs(t *testing.T) {
	n := open(t)
	pod := Pod{ID: "p", NetNS: nettest.Pod(t), Ports: ports(8080)}
	add(t, n, pod)
	if err := unix.Unmount(pod.NetNS, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	if err := n.Del(t.Context(), "p"); err != nil {
		t.Fatal(err)
	}
	if left := leftovers(t, n); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	for _, ns := range []string{pod.NetNS, filepath.Join(t.TempDir(), "none")} {
		if _, err := n.Add(t.Context(), Pod{ID: "q", NetNS: ns, Ports: ports(8080)}); err == nil {
			t.Errorf("connected %s, which is no namespace", ns)
		}
		if err := n.Del(t.Context(), "q"); err != nil {
			t.Fatal(err)
		}
	}
	if left := leftovers(t, n); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// TestRepair flushes the node's rules, as a reload of its firewall does, and
// deletes the bridge.
func TestRepair(t *testing.T) {
	n := open(t)
	outside := nettest.Outside(t)
	pod := Pod{ID: "p", NetNS: nettest.Pod(t), Ports: ports(8080)}
	add(t, n, pod)
	nettest.Serve(t, pod.NetNS, ":80")
	want := run(t, "nft", "list", "table", "inet", n.opts.Bridge)
	for _, damage := range [][]string{
		{"flush", "ruleset"}, {"delete", "table", "inet", n.opts.Bridge}, {"flush", "chain", "inet", n.opts.Bridge, "isolate"},
		{"flush", "map", "inet", n.opts.Bridge, "hostports4"},
	} {
		run(t, "nft", damage...)
		ok := false
		for begin := time.Now(); !ok && time.Since(begin) < 2*time.Second; time.Sleep(time.Millisecond) {
			out, err := exec.Command("nft", "list", "table", "inet", n.opts.Bridge).Output()
			ok = err == nil && len(out) == len(want)
		}
		if !ok {
			t.Errorf("after %v the table stays as it is", damage)
		}
	}
	if _, err := nettest.Ask(outside, "tcp", nettest.NodeIPv4+":8080"); err != nil {
		t.Error(err)
	}
	run(t, "ip", "link", "del", n.opts.Bridge)
	other := Pod{ID: "other", NetNS: nettest.Pod(t)}
	add(t, n, other)
	if _, err := nettest.Ask(other.NetNS, "tcp", "10.89.0.1:1"); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("new bridge: %v", err)
	}
}

func TestStraysAndDamagedRecords(t *testing.T) {
	n := open(t)
	add(t, n, Pod{ID: "lost", NetNS: nettest.Pod(t)})
	add(t, n, Pod{ID: "damaged", NetNS: nettest.Pod(t)})
	for _, step := range []error{
		os.Remove(filepath.Join(n.opts.Dir, "lost.json")),
		os.WriteFile(filepath.Join(n.opts.Dir, "damaged.json"), []byte("{"), 0o600),
		os.WriteFile(filepath.Join(n.opts.Dir, ".tmp-x.json-1"), nil, 0o600),
	} {
		if step != nil {
			t.Fatal(step)
		}
	}
	n.Close()
	n, err := Open(t.Context(), n.opts)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if err := n.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left := leftovers(t, n); len(left) != 1 || left[0] != "file damaged.json.broken" {
		t.Errorf("left: %v, want the damaged record set aside", left)
	}
}
