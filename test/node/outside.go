package node

import (
	"fmt"
	"math/rand/v2"
	"os/exec"
	"strings"
	"testing"
)

// Outside is another machine, as far as the host can tell: a network namespace
// that reaches the host by a cable.
type Outside struct {
	HostIP string // the host's address at the cable
	name   string
}

// NewOutside lays the cable; it goes with the test.
func NewOutside(t testing.TB) *Outside {
	t.Helper()
	tag := fmt.Sprintf("%06x", rand.Uint32N(1<<24))
	net := fmt.Sprintf("172.%d.%d", 16+rand.IntN(16), rand.IntN(256))
	o := &Outside{HostIP: net + ".1", name: "out" + tag}
	ip(t, "netns", "add", o.name)
	t.Cleanup(func() { ip(t, "netns", "delete", o.name) })
	ip(t, "link", "add", "oh"+tag, "type", "veth", "peer", "name", "eth0", "netns", o.name)
	ip(t, "address", "add", o.HostIP+"/24", "dev", "oh"+tag)
	ip(t, "link", "set", "oh"+tag, "up")
	ip(t, "-n", o.name, "address", "add", net+".2/24", "dev", "eth0")
	ip(t, "-n", o.name, "link", "set", "eth0", "up")
	ip(t, "-n", o.name, "link", "set", "lo", "up")
	ip(t, "-n", o.name, "route", "add", "default", "via", o.HostIP)
	return o
}

// Get fetches a page over the cable.
func (o *Outside) Get(port int) (string, error) {
	out, err := exec.Command("ip", "netns", "exec", o.name, "curl", "-sS", "--max-time", "3", "--retry", "3", "--retry-all-errors", "--retry-delay", "1",
		fmt.Sprintf("http://%s:%d/", o.HostIP, port)).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return string(out), nil
}

func ip(t testing.TB, args ...string) {
	t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

// Once is Get without patience, for what should not answer.
func (o *Outside) Once(port int) (string, error) {
	out, err := exec.Command("ip", "netns", "exec", o.name, "curl", "-sS", "--max-time", "1", fmt.Sprintf("http://%s:%d/", o.HostIP, port)).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return string(out), nil
}
