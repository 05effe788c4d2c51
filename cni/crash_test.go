package cni

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"noded.dev/noded/cni/internal/nettest"
	"noded.dev/noded/internal/kind"
	"noded.dev/noded/internal/namespace"
)

const crashEnv = "NODED_CNI_CRASH"

// TestCrashChild connects and disconnects a pod until it is killed.
func TestCrashChild(t *testing.T) {
	env := os.Getenv(crashEnv)
	if env == "" {
		t.Skip("is a part of TestCrash")
	}
	args := strings.Split(env, ",")
	nets, err := Open(t.Context(), Options{Mode: ModeCNI, ConfDir: args[0], BinDirs: []string{pluginDir}, CacheDir: args[1]})
	if err != nil {
		t.Fatal(err)
	}
	for {
		p := pod(args[3], args[2])
		p.PortMappings = []PortMapping{{HostPort: 8070, ContainerPort: 80, Protocol: "tcp"}}
		// The bridge plugin fails now and then to set a MAC while the last port
		// is going away; DEL is due in any case.
		if _, err := nets.Add(t.Context(), p); err != nil && !kind.Is(err, kind.Aborted) {
			t.Fatal(err)
		}
		mustDel(t, nets, p)
	}
}

func veths(t *testing.T) (names []string) {
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if l.Type() == "veth" {
			names = append(names, l.Attrs().Name)
		}
	}
	return names
}

func TestCrash(t *testing.T) {
	nettest.NeedRoot(t)
	n := newNode(t)
	n.conf(t, "10.conflist", n.bridged("cnicrash0", 80))
	found := 0
	for round := range 8 {
		ns := nettest.Pod(t)
		// No pod has the id of one before. The bridge plugin finds nothing to do
		// in a DEL after one that was killed when it had deleted the interface
		// (bridge 1.1), and the masquerading that it then leaves behind would
		// keep the same pod's next chain from being deleted.
		id := fmt.Sprintf("crash%d", round)
		child := exec.Command("/proc/self/exe", "-test.run=^TestCrashChild$")
		child.Env = append(os.Environ(), crashEnv+"="+strings.Join([]string{n.ConfDir, n.CacheDir, ns, id}, ","))
		var output bytes.Buffer
		child.Stdout = &output
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(50+rand.IntN(300)) * time.Millisecond) // anywhere in its work
		child.Process.Kill()
		if err := child.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
			t.Fatalf("child ended by itself: %v: %s", err, &output)
		}
		found += len(n.leases(t))
		nets := n.open(t)
		if err := nets.GC(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		if err := namespace.Remove(filepath.Dir(ns)); err != nil {
			t.Fatal(err)
		}
		left := append(n.leases(t), n.cached(t)...)
		for i := 0; len(veths(t)) > 0; i++ { // the kernel takes a namespace apart in a worker
			if i == 200 {
				left = append(left, veths(t)...)
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		rules, err := exec.Command("iptables-save", "-t", "nat").CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, rules)
		}
		if strings.Contains(string(rules), "8070") {
			left = append(left, string(rules))
		}
		if len(left) > 0 {
			t.Fatalf("left: %v", left)
		}
	}
	if found == 0 {
		t.Error("no crash found an address in use: the test kills too early")
	}
}
