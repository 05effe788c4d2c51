package nsexec

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	rspec "github.com/opencontainers/runtime-spec/specs-go"
)

// newestCommon is the newest call that the libseccomp of Debian 12 (2.5.4)
// knows. Beyond it, runc built with that library answers ENOSYS for calls that
// the profile allows or refuses.
const newestCommon = 450

// TestSeccompBehaves makes some thousand system calls under both filters.
func TestSeccompBehaves(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("the probe is written for amd64")
	}
	probe := filepath.Join(t.TempDir(), "probe")
	build := exec.Command("go", "build", "-o", probe, "./testdata/seccompprobe")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build probe: %v: %s", err, out)
	}
	for _, ct := range []struct {
		name   string
		change func(*rspec.Spec)
	}{
		{"default profile", func(*rspec.Spec) {}},
		{"default profile without socketcall", func(s *rspec.Spec) {
			for i, c := range s.Linux.Seccomp.Syscalls {
				s.Linux.Seccomp.Syscalls[i].Names = slices.DeleteFunc(slices.Clone(c.Names), func(name string) bool { return name == "socketcall" })
			}
		}},
		{"default profile with no_new_privs", func(s *rspec.Spec) { s.Process.NoNewPrivileges = true }},
		{"default profile for CAP_SYS_ADMIN", func(s *rspec.Spec) {
			c := append(s.Process.Capabilities.Bounding, "CAP_SYS_ADMIN")
			s.Process.Capabilities = &rspec.LinuxCapabilities{Bounding: c, Effective: c, Permitted: c}
		}},
	} {
		t.Run(ct.name, func(t *testing.T) {
			c := start(t, func(s *rspec.Spec) {
				defaultSeccomp(t)(s)
				ct.change(s)
				if c := s.Process.Capabilities; slices.Contains(c.Bounding, "CAP_SYS_ADMIN") {
					defaultSeccomp(t)(s)
				}
				s.Mounts = append(s.Mounts, rspec.Mount{Destination: "/probe", Source: probe, Type: "bind", Options: []string{"bind", "ro"}})
			})
			p := c.process("/probe", "32")
			p.Rlimits = nil
			here, err := c.here(p)
			if err != nil {
				t.Fatal(err)
			}
			compareCalls(t, here.out, c.there(p).out)
		})
	}
}

func compareCalls(t *testing.T, here, there string) {
	t.Helper()
	a, b := lines(here), lines(there)
	if len(a) < 700 || len(a) != len(b) {
		t.Fatalf("%d lines here, %d by the runtime; last %q %q", len(a), len(b), a[len(a)-1], b[len(b)-1])
	}
	if slices.Contains(a, "i386 absent") {
		t.Log("this kernel runs no 32-bit programs: their calls are not compared")
	}
	for i := range a {
		f := strings.Fields(a[i])
		nr, _ := strconv.ParseUint(f[1], 10, 64)
		if a[i] != b[i] && (nr <= newestCommon || !slices.Contains([]string{"x86_64", "i386"}, f[0])) {
			t.Errorf("here %q, by the runtime %q", a[i], b[i])
		}
	}
	if !slices.Contains(a, "socket 41 38 1") || !slices.Contains(a, "socket 41 40 1") || !slices.Contains(a, "socket 41 1 0") {
		t.Error("AF_ALG or AF_VSOCK is not refused with EPERM, or AF_UNIX is")
	}
}
