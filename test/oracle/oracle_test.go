package oracle

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TestSees leaves one thing of each kind behind and expects exactly the
// oracle's line for it, and no line once it is taken away.
func TestSees(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir := t.TempDir()
	name := fmt.Sprintf("orc%d", os.Getpid()%100000)
	scope := Scope{
		Paths: []string{dir}, Files: []string{dir}, Cgroups: []string{"/" + name}, Links: []string{name}, Rules: []string{name},
		Env: "ORACLE_TEST=" + name, Roles: func() map[string]int { return map[string]int{"self": os.Getpid()} },
	}
	for _, c := range []struct {
		want string
		make func(t *testing.T) (undo func())
	}{
		{"process", func(t *testing.T) func() {
			c := exec.Command("sleep", "60")
			c.Env = []string{"ORACLE_TEST=" + name}
			check(t, c.Start())
			return func() { c.Process.Kill(); c.Wait() }
		}},
		{"mount " + dir, func(t *testing.T) func() {
			check(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=4k"))
			return func() { check(t, unix.Unmount(dir, 0)) }
		}},
		{"namespace uts:[", func(t *testing.T) func() {
			pin := filepath.Join(dir, "uts")
			check(t, os.WriteFile(pin, nil, 0o600))
			check(t, exec.Command("unshare", "--uts="+pin, "true").Run())
			return func() { check(t, unix.Unmount(pin, 0)); check(t, os.Remove(pin)) }
		}},
		{"cgroup /" + name, func(t *testing.T) func() {
			var dirs []string
			for _, m := range readMounts("self") {
				if strings.HasPrefix(m.fstype, "cgroup") {
					dirs = append(dirs, filepath.Join(m.point, name))
					check(t, os.Mkdir(dirs[len(dirs)-1], 0o755))
				}
			}
			return func() {
				for _, d := range dirs {
					check(t, os.Remove(d))
				}
			}
		}},
		{"link " + name, func(t *testing.T) func() {
			l := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}}
			check(t, netlink.LinkAdd(l))
			return func() { check(t, netlink.LinkDel(l)) }
		}},
		{"nft table inet " + name, func(t *testing.T) func() {
			check(t, exec.Command("nft", "add", "table", "inet", name).Run())
			return func() { check(t, exec.Command("nft", "delete", "table", "inet", name).Run()) }
		}},
		{"file " + dir + "/left", func(t *testing.T) func() {
			check(t, os.WriteFile(dir+"/left", nil, 0o600))
			return func() { check(t, os.Remove(dir+"/left")) }
		}},
		{"unix socket " + dir, func(t *testing.T) func() {
			l, err := net.Listen("unix", dir+"/sock")
			check(t, err)
			return func() { l.Close() }
		}},
		{"descriptor of self: pipe", func(t *testing.T) func() {
			r, w, err := os.Pipe()
			check(t, err)
			return func() { r.Close(); w.Close() }
		}},
	} {
		t.Run(c.want[:min(len(c.want), 12)], func(t *testing.T) {
			before, err := Take(scope)
			check(t, err)
			undo := c.make(t)
			after, err := Take(scope)
			check(t, err)
			if lines := Diff(before, after); !contains(strings.Join(lines, "\n"), []string{"+ " + c.want}) {
				t.Errorf("the oracle did not see %q; it saw:\n%s", c.want, strings.Join(lines, "\n"))
			}
			undo()
			if lines, _, err := wait(scope, before, 2*time.Second); err != nil || len(lines) > 0 {
				t.Errorf("after taking it away: %v\n%s", err, strings.Join(lines, "\n"))
			}
		})
	}
}

// TestLoss proves that what vanishes is told too.
func TestLoss(t *testing.T) {
	dir := t.TempDir()
	check(t, os.WriteFile(dir+"/mine", nil, 0o600))
	scope := Scope{Files: []string{dir}}
	before, err := Take(scope)
	check(t, err)
	check(t, os.Remove(dir+"/mine"))
	after, err := Take(scope)
	check(t, err)
	if lines := Diff(before, after); len(lines) != 1 || lines[0] != "- file "+dir+"/mine (----------)" {
		t.Errorf("lines %q", lines)
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
