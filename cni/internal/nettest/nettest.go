// Package nettest gives tests of networks a node of their own: a network and a
// mount namespace that vanish with the test, with pods and an outside host.
package nettest

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"noded.dev/noded/internal/namespace"
)

const nodeEnv = "NODED_NETTEST_NODE"

// Addresses of the node and of the host beside it.
const (
	NodeIPv4    = "203.0.113.1"
	OutsideIPv4 = "203.0.113.2"
	NodeIPv6    = "2001:db8::1"
	OutsideIPv6 = "2001:db8::2"
)

// timeout bounds one exchange: a packet that is dropped has no other end.
const timeout = time.Second

// Main runs a package's tests in fresh namespaces, so that they need not mind
// the machine's network and cannot leave anything there. Without root it runs
// them as they are; they skip themselves by NeedRoot.
func Main(m *testing.M) {
	if os.Geteuid() != 0 {
		os.Exit(m.Run())
	}
	if os.Getenv(nodeEnv) != "" {
		if err := becomeNode(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), nodeEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Run(); err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			os.Exit(exit.ExitCode())
		}
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func becomeNode() error {
	if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

// NeedRoot skips a test that works on the kernel.
func NeedRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

// Pod makes a network namespace as a pod has it and returns its path.
func Pod(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp(t.TempDir(), "pod")
	if err != nil {
		t.Fatal(err)
	}
	dir = filepath.Join(dir, "ns")
	t.Cleanup(func() {
		if err := namespace.Remove(dir); err != nil {
			t.Error(err)
		}
	})
	if err := namespace.Create(t.Context(), namespace.Request{Dir: dir, Net: true}); err != nil {
		t.Fatal(err)
	}
	return namespace.Path(dir, namespace.Net)
}

// Outside makes a host that is a neighbour of the node and has its default
// route there.
func Outside(t testing.TB) string {
	t.Helper()
	ns := Pod(t)
	f, err := os.Open(ns)
	check(t, err)
	defer f.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "uplink"
	check(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "wire", PeerNamespace: netlink.NsFd(int(f.Fd()))}))
	t.Cleanup(func() {
		if l, err := netlink.LinkByName("uplink"); err == nil {
			check(t, netlink.LinkDel(l))
		}
	})
	check(t, address("uplink", NodeIPv4+"/24", NodeIPv6+"/64"))
	check(t, namespace.Do(ns, func() error {
		if err := address("wire", OutsideIPv4+"/24", OutsideIPv6+"/64"); err != nil {
			return err
		}
		for _, r := range []struct{ dst, gw string }{{"0.0.0.0/0", NodeIPv4}, {"::/0", NodeIPv6}} {
			_, dst, err := net.ParseCIDR(r.dst)
			if err != nil {
				return err
			}
			if err := netlink.RouteAdd(&netlink.Route{Dst: dst, Gw: net.ParseIP(r.gw)}); err != nil {
				return fmt.Errorf("route %s by %s: %w", r.dst, r.gw, err)
			}
		}
		return nil
	}))
	return ns
}

func address(link string, addrs ...string) error {
	l, err := netlink.LinkByName(link)
	if err != nil {
		return err
	}
	for _, a := range addrs {
		addr, err := netlink.ParseAddr(a)
		if err != nil {
			return err
		}
		if addr.IP.To4() == nil {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrAdd(l, addr); err != nil {
			return fmt.Errorf("address %s: %w", a, err)
		}
	}
	return netlink.LinkSetUp(l)
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// in runs f in a namespace, "" being the node itself.
func in(ns string, f func() error) error {
	if ns == "" {
		return f()
	}
	return namespace.Do(ns, f)
}

// Serve answers each TCP connection and UDP packet at addr in a namespace with
// the asker's address, until the test ends.
func Serve(t testing.TB, ns, addr string) {
	t.Helper()
	check(t, in(ns, func() error {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			return err
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				io.WriteString(c, host(c.RemoteAddr()))
				c.Close()
			}
		}()
		u, err := net.ListenPacket("udp", addr)
		if err != nil {
			return err
		}
		t.Cleanup(func() { u.Close() })
		go func() {
			buf := make([]byte, 64)
			for {
				_, from, err := u.ReadFrom(buf)
				if err != nil {
					return
				}
				u.WriteTo([]byte(host(from)), from)
			}
		}()
		return nil
	}))
}

func host(a net.Addr) string {
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return a.String()
	}
	return ap.Addr().Unmap().WithZone("").String()
}

// Ask connects from a namespace and returns what Serve saw as the asker.
func Ask(ns, network, addr string) (seen string, err error) {
	err = in(ns, func() error {
		d := net.Dialer{Timeout: timeout, FallbackDelay: -1}
		c, err := d.Dial(network, addr)
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(timeout))
		if network == "udp" {
			if _, err := c.Write([]byte("?")); err != nil {
				return err
			}
			buf := make([]byte, 64)
			n, err := c.Read(buf)
			seen = string(buf[:n])
			return err
		}
		all, err := io.ReadAll(c)
		seen = string(all)
		return err
	})
	return seen, err
}
