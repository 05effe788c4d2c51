package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/test/node"
)

// TestPropagation mounts on the host and in the container, after its start, and
// looks who sees it.
func TestPropagation(t *testing.T) {
	n := start(t)
	for _, c := range []struct {
		mode         cri.MountPropagation
		toIt, fromIt bool
	}{
		{cri.MountPropagation_PROPAGATION_PRIVATE, false, false},
		{cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER, true, false},
		{cri.MountPropagation_PROPAGATION_BIDIRECTIONAL, true, true},
	} {
		t.Run(c.mode.String(), func(t *testing.T) {
			dir := sharedMount(t)
			p := n.RunPod(t, func(c *cri.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true })
			ctr := p.Run(t, "sleep 1000", func(config *cri.ContainerConfig) {
				config.Linux.SecurityContext.Privileged = true
				config.Mounts = []*cri.Mount{{HostPath: dir, ContainerPath: "/m", Propagation: c.mode}}
			})
			mountTmpfs(t, filepath.Join(dir, "in"))
			must(t, os.WriteFile(filepath.Join(dir, "in/file"), nil, 0o644))
			if got := ctr.Shell(t, "ls /m/in") == "file\n"; got != c.toIt {
				t.Errorf("the container sees the host's mount: %v", got)
			}
			must(t, unix.Unmount(filepath.Join(dir, "in"), 0))
			if got := ctr.Shell(t, "ls /m/in"); got != "" {
				t.Errorf("after the host unmounts, the container sees %q", got)
			}
			ctr.Shell(t, "mount -t tmpfs -o size=64k none /m/out && touch /m/out/file")
			_, err := os.Stat(filepath.Join(dir, "out/file"))
			if got := err == nil; got != c.fromIt {
				t.Errorf("the host sees the container's mount: %v", err)
			}
			ctr.Shell(t, "umount /m/out")
			if _, err := os.Stat(filepath.Join(dir, "out/file")); err == nil {
				t.Error("the host still has the mount that the container took away")
			}
			if got := ctr.Status(t).Mounts[0].Propagation; got != c.mode {
				t.Errorf("status tells %v", got)
			}
		})
	}
	t.Run("bidirectional of an ordinary container", func(t *testing.T) {
		config := node.ContainerConfig("c", "true")
		config.Mounts = []*cri.Mount{{HostPath: t.TempDir(), ContainerPath: "/m", Propagation: cri.MountPropagation_PROPAGATION_BIDIRECTIONAL}}
		_, err := n.RunPod(t).TryCreate(config)
		if noded() {
			wantCode(t, err, codes.InvalidArgument)
		}
	})
}

// TestMountOptions sets each option of a mount, writable and not, and looks at
// what the kernel makes of it and at what it keeps the container from.
func TestMountOptions(t *testing.T) {
	skipOnPeer(t, "it is older than this")
	n := start(t)
	ctx, cancel := node.Context()
	defer cancel()
	status, err := n.Runtime.Status(ctx, &cri.StatusRequest{})
	must(t, err)
	if !status.Features.GetMountOptions() {
		t.Error("the feature is not told")
	}
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "tool"), []byte("#!/bin/sh\nid -u\n"), 0o755))
	must(t, unix.Mknod(filepath.Join(dir, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	must(t, os.Chmod(filepath.Join(dir, "null"), 0o666))
	must(t, os.Symlink("tool", filepath.Join(dir, "link")))
	must(t, os.Mkdir(filepath.Join(dir, "sub"), 0o755))
	mountTmpfs(t, filepath.Join(dir, "sub"))
	must(t, os.WriteFile(filepath.Join(dir, "sub/tool"), []byte("#!/bin/sh\nid -u\n"), 0o755))
	p := n.RunPod(t)
	for option, c := range map[string]struct{ shown, script, want string }{
		"noexec":      {"noexec", "/m/tool 2>/dev/null || echo no; /m/sub/tool", "no\n0\n"},
		"rnoexec":     {"noexec", "/m/tool 2>/dev/null || echo no; /m/sub/tool 2>/dev/null || echo no", "no\nno\n"},
		"nodev":       {"nodev", "(: </m/null) 2>/dev/null || echo no", "no\n"},
		"nosuid":      {"nosuid", "/m/tool", "0\n"},
		"noatime":     {"noatime", "/m/tool", "0\n"},
		"nodiratime":  {"nodiratime", "/m/tool", "0\n"},
		"relatime":    {"relatime", "/m/tool", "0\n"},
		"nosymfollow": {"nosymfollow", "cat /m/link 2>/dev/null || echo no", "no\n"},
		"":            {"rw", "/m/tool; (: </m/null) && /m/sub/tool", "0\n0\n"},
	} {
		for _, readonly := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s,%v", option, readonly), func(t *testing.T) {
				mount := &cri.Mount{HostPath: dir, ContainerPath: "/m", Readonly: readonly, MountOptions: strings.Fields(option)}
				got := p.Output(t, "awk '$2==\"/m\"{print $4}' /proc/mounts; touch /m/written 2>/dev/null || echo ro; "+c.script, func(c *cri.ContainerConfig) { c.Mounts = []*cri.Mount{mount} })
				shown, rest, _ := strings.Cut(got, "\n")
				if option != "" && !strings.Contains(","+shown+",", ","+c.shown+",") {
					t.Errorf("the kernel shows %s", shown)
				}
				want := c.want
				if readonly {
					want = "ro\n" + want
				}
				if rest != want {
					t.Errorf("got %q, want %q", rest, want)
				}
			})
		}
	}
	for _, option := range []string{"exec", "rw", "suid", "bind", "rshared", "size=1", "context=x", "", "nodev,exec"} {
		config := node.ContainerConfig("c", "true")
		config.Mounts = []*cri.Mount{{HostPath: dir, ContainerPath: "/m", MountOptions: []string{option}}}
		_, err := p.TryCreate(config)
		wantCode(t, err, codes.InvalidArgument)
	}
}
