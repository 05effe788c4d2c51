package cni

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"noded.dev/noded/cni/internal/nettest"
	"noded.dev/noded/internal/kind"
)

func TestRealPlugins(t *testing.T) {
	nettest.NeedRoot(t)
	n := newNode(t)
	n.conf(t, "10-bridge.conflist", n.bridged("cnireal0", 77))
	nets := n.open(t)
	if err := nets.Ready(); err != nil {
		t.Fatal(err)
	}
	outside := nettest.Outside(t)
	a, b := pod("a", nettest.Pod(t)), pod("b", nettest.Pod(t))
	a.PortMappings = []PortMapping{{HostPort: 8090, ContainerPort: 80, Protocol: "tcp"}}
	resultA := mustAdd(t, nets, a)
	mustAdd(t, nets, b)
	if len(resultA.IPs) != 2 || !resultA.IPs[0].Is4() || !resultA.IPs[1].Is6() {
		t.Fatalf("result %v, want IPv4 and IPv6", resultA)
	}
	again := mustAdd(t, nets, a)
	if again.IPs[0] != resultA.IPs[0] || again.IPs[1] != resultA.IPs[1] {
		t.Errorf("Add again gave %v, first %v", again, resultA)
	}
	// Of b: portmap 1.1 looks for IPv4 rules when it checks IPv6 ones.
	if err := nets.Check(t.Context(), b); err != nil {
		t.Error(err)
	}
	nettest.Serve(t, a.NetNS, ":80")
	for _, c := range []struct{ name, from, to string }{
		{"pod to pod", b.NetNS, net.JoinHostPort(resultA.IPs[0].String(), "80")},
		{"host to pod, IPv6", "", net.JoinHostPort(resultA.IPs[1].String(), "80")},
		{"host port from outside", outside, nettest.NodeIPv4 + ":8090"},
		{"host port from the node", "", "127.0.0.1:8090"},
	} {
		_, err := nettest.Ask(c.from, "tcp", c.to)
		for range 3 { // the bridge plugin leaves duplicate address detection on, for a second or two
			if err != nil {
				_, err = nettest.Ask(c.from, "tcp", c.to)
			}
		}
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	for range 2 {
		mustDel(t, nets, a)
		mustDel(t, nets, b)
	}
	if left := append(n.leases(t), n.cached(t)...); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func TestDelWithoutConfigurationAndNamespace(t *testing.T) {
	nettest.NeedRoot(t)
	n := newNode(t)
	n.conf(t, "10-bridge.conflist", n.bridged("cnigone0", 78))
	nets := n.open(t)
	p := pod("p", nettest.Pod(t))
	mustAdd(t, nets, p)
	if len(n.leases(t)) != 2 {
		t.Fatalf("leases %v", n.leases(t))
	}
	if err := os.RemoveAll(n.ConfDir); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Dir(p.NetNS)); err != nil && !strings.Contains(err.Error(), "busy") {
		t.Fatal(err)
	}
	restarted := n.open(t)
	if err := restarted.Ready(); !kind.Is(err, kind.Precondition) {
		t.Errorf("ready without configuration: %v", err)
	}
	mustDel(t, restarted, p)
	if left := append(n.leases(t), n.cached(t)...); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// TestGoneNamespaceIsNotNamed: plugins must not be sent to a file where no
// namespace is any more.
func TestGoneNamespaceIsNotNamed(t *testing.T) {
	nettest.NeedRoot(t)
	n := newNode(t)
	n.plugin(t, "fake", `[ "$CNI_COMMAND" = DEL ] && [ -n "$CNI_NETNS" ] && exit 1
[ "$CNI_COMMAND" = ADD ] && echo '{"cniVersion":"1.0.0","ips":[{"address":"10.1.2.3/24"}]}'; exit 0`)
	n.conf(t, "10.conf", `{"cniVersion":"1.0.0","name":"n","type":"fake"}`)
	nets := n.open(t)
	p := pod("p", nettest.Pod(t))
	mustAdd(t, nets, p)
	if err := unix.Unmount(p.NetNS, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	mustDel(t, nets, p)
}

func TestMissingPluginKeepsTheDebt(t *testing.T) {
	nettest.NeedRoot(t)
	n := newNode(t)
	n.plugin(t, "fake", `[ "$CNI_COMMAND" = ADD ] && echo '{"cniVersion":"1.0.0","ips":[{"address":"10.1.2.3/24"}]}'; exit 0`)
	n.conf(t, "10.conf", `{"cniVersion":"1.0.0","name":"n","type":"fake"}`)
	nets := n.open(t)
	p := pod("p", nettest.Pod(t))
	mustAdd(t, nets, p)
	binary := filepath.Join(n.BinDirs[0], "fake")
	if err := os.Rename(binary, binary+".away"); err != nil {
		t.Fatal(err)
	}
	err := nets.Del(t.Context(), p)
	if !kind.Is(err, kind.Aborted) || !strings.Contains(err.Error(), "fake") || !strings.Contains(err.Error(), "default/web") {
		t.Errorf("without the plugin: %v, want kind Aborted, the pod and the plugin", err)
	}
	if len(n.cached(t)) == 0 {
		t.Error("the record is gone though DEL was not called")
	}
	if err := os.Rename(binary+".away", binary); err != nil {
		t.Fatal(err)
	}
	mustDel(t, nets, p)
}

func TestBadPlugins(t *testing.T) {
	nettest.NeedRoot(t)
	for _, c := range []struct {
		name, script string
		want         kind.Kind
		says         string
	}{
		{"fails", `[ $CNI_COMMAND = ADD ] && { echo '{"code":7,"msg":"no luck"}'; exit 1; }; exit 0`, kind.Aborted, "no luck"},
		{"dies", `[ $CNI_COMMAND = ADD ] && kill -9 $$; exit 0`, kind.Aborted, "killed"},
		{"complains", `[ $CNI_COMMAND = ADD ] && { echo oops >&2; exit 3; }; exit 0`, kind.Aborted, "oops"},
		{"says nothing", `exit 0`, kind.Aborted, "fake"},
		{"talks rubbish", `echo 'rubbish{'`, kind.Aborted, "fake"},
		{"null", `echo null`, kind.Aborted, "no address"},
		{"no address", `echo '{"cniVersion":"1.0.0"}'`, kind.Aborted, "no address"},
		{"talks too much", `[ $CNI_COMMAND = ADD ] && exec head -c 10000000 /dev/zero; exit 0`, kind.Aborted, "1048576"},
		{"hangs", `[ $CNI_COMMAND = ADD ] && { sleep 60 & echo $! > "$(dirname "$0")/child"; sleep 60; }; exit 0`, kind.Deadline, "fake"},
		{"hangs and holds its output", `[ $CNI_COMMAND = ADD ] && { setsid sleep 3 & sleep 60; }; exit 0`, kind.Deadline, "fake"},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newNode(t)
			n.plugin(t, "fake", c.script)
			n.conf(t, "10.conflist", `{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"fake"}]}`)
			nets := n.open(t)
			p := pod("p", nettest.Pod(t))
			ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
			defer cancel()
			begin := time.Now()
			_, err := nets.Add(ctx, p)
			if !kind.Is(err, c.want) || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), "default/web") {
				t.Errorf("%v (kind %v), want kind %v, %q and the pod", err, kind.Of(err), c.want, c.says)
			}
			if took := time.Since(begin); took > 2*time.Second {
				t.Errorf("took %v with a deadline of 0.5 s", took)
			}
			if child, err := os.ReadFile(filepath.Join(n.BinDirs[0], "child")); err == nil {
				waitGone(t, strings.TrimSpace(string(child)))
			}
			mustDel(t, nets, p)
			if left := n.cached(t); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
		})
	}
}

func TestWhatPluginsAreTold(t *testing.T) {
	nettest.NeedRoot(t)
	t.Setenv("SECRET_OF_THE_DAEMON", "1")
	n := newNode(t)
	told := filepath.Join(t.TempDir(), "told")
	n.plugin(t, "fake", `{ env; cat; } > `+told+`.$CNI_COMMAND; echo '{"cniVersion":"1.0.0","ips":[{"address":"10.1.2.3/24"}]}'`)
	n.conf(t, "10.conflist", `{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"fake",
		"capabilities":{"portMappings":true,"bandwidth":true,"dns":true,"ipRanges":true}}]}`)
	nets := n.open(t)
	if err := nets.SetPodCIDR([]string{"10.5.0.0/24", "fd00:5::/64"}); err != nil {
		t.Fatal(err)
	}
	p := pod("p", nettest.Pod(t))
	p.PortMappings = []PortMapping{{HostPort: 1, ContainerPort: 2, Protocol: "sctp"}}
	p.DNS = DNS{Servers: []string{"10.96.0.10"}}
	p.IngressBPS = 1000000
	nets = n.open(t) // the ranges outlive the process
	mustAdd(t, nets, p)
	for _, verb := range []string{"ADD", "DEL"} {
		if verb == "DEL" {
			mustDel(t, nets, p)
		}
		data, err := os.ReadFile(told + "." + verb)
		if err != nil {
			t.Fatal(err)
		}
		got := string(data)
		for _, want := range []string{"CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=p;K8S_POD_UID=1234",
			"CNI_IFNAME=eth0", "CNI_CONTAINERID=p", "CNI_NETNS=" + p.NetNS, `"hostPort":1`, `"containerPort":2`, `"protocol":"sctp"`,
			`"servers":["10.96.0.10"]`, `"ingressRate":1000000`, `"ipRanges":[[{"subnet":"10.5.0.0/24"}],[{"subnet":"fd00:5::/64"}]]`} {
			if !strings.Contains(got, want) {
				t.Errorf("%s was not told %s, but:\n%s", verb, want, got)
			}
		}
		if strings.Contains(got, "SECRET") {
			t.Errorf("%s was told the daemon's environment", verb)
		}
	}
}

func TestReload(t *testing.T) {
	n := newNode(t)
	nets := n.open(t)
	if err := nets.Ready(); !kind.Is(err, kind.Precondition) {
		t.Fatalf("without configuration: %v", err)
	}
	if _, err := nets.Add(t.Context(), pod("p", "/none")); !kind.Is(err, kind.Precondition) {
		t.Errorf("Add without configuration: %v", err)
	}
	conf := func(name string) string {
		return `{"cniVersion":"1.0.0","name":"` + name + `","plugins":[{"type":"bridge"}]}`
	}
	current := func() string {
		if list, _ := nets.backend.(*plugins).network(); list != nil {
			return list.Name
		}
		return ""
	}
	for _, c := range []struct {
		name   string
		change func()
		uses   string
		ready  bool
	}{
		{"first file", func() { n.conf(t, "20.conflist", conf("twenty")) }, "twenty", true},
		{"earlier name", func() { n.conf(t, "10.conflist", conf("ten")) }, "ten", true},
		{"broken", func() { n.conf(t, "10.conflist", "{") }, "ten", false},
		{"repaired", func() { n.conf(t, "10.conflist", conf("ten2")) }, "ten2", true},
		{"path as type", func() { n.conf(t, "05.conf", `{"name":"x","type":"../../bin/sh"}`) }, "ten2", false},
		{"removed", func() { os.Remove(filepath.Join(n.ConfDir, "05.conf")) }, "ten2", true},
		{"next", func() { os.Remove(filepath.Join(n.ConfDir, "10.conflist")) }, "twenty", true},
		{"none", func() { os.Remove(filepath.Join(n.ConfDir, "20.conflist")) }, "", false},
		{"folder is another", func() { os.RemoveAll(n.ConfDir); os.Mkdir(n.ConfDir, 0o755); n.conf(t, "30.conflist", conf("thirty")) }, "thirty", true},
	} {
		c.change()
		ok := false
		for begin := time.Now(); !ok && time.Since(begin) < 3*time.Second; time.Sleep(5 * time.Millisecond) {
			ok = current() == c.uses && (nets.Ready() == nil) == c.ready
		}
		if !ok {
			t.Errorf("%s: uses %q and is ready: %v; want %q, %v", c.name, current(), nets.Ready(), c.uses, c.ready)
		}
	}
}

// waitGone waits for the end of a process that is not this one's child, which
// has no event.
func waitGone(t *testing.T, pid string) {
	t.Helper()
	for range 100 {
		stat, err := os.ReadFile("/proc/" + pid + "/stat")
		if err != nil || strings.Contains(string(stat), ") Z ") {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("process %s, which the plugin started, is still there", pid)
}
