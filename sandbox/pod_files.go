package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"noded.dev/noded/internal/kind"
)

// writeFiles writes the files that containers find at /etc/hosts,
// /etc/hostname and /etc/resolv.conf, unless the kubelet mounts its own.
func (p *Pod) writeFiles(context.Context) error {
	name := p.hostname()
	hosts, err := p.hostsFile(name)
	if err != nil {
		return err
	}
	resolv, err := p.resolvFile()
	if err != nil {
		return err
	}
	return errors.Join(
		p.writeFile(p.paths.hosts(), hosts),
		p.writeFile(p.paths.hostname(), []byte(name+"\n")),
		p.writeFile(p.paths.resolvConf(), resolv),
	)
}

// writeFile writes a file that the pod's root may change.
func (p *Pod) writeFile(path string, content []byte) error {
	if err := os.WriteFile(path, content, 0o644); err != nil || p.userNS() == nil {
		return err
	}
	uid, gid, err := p.podRoot()
	if err != nil {
		return err
	}
	return os.Chown(path, uid, gid)
}

// hostsFile is the node's own for a host-network pod, else loopback and the
// pod's addresses.
func (p *Pod) hostsFile(name string) ([]byte, error) {
	if hostNetwork(p.config) {
		b, err := os.ReadFile("/etc/hosts")
		if errors.Is(err, os.ErrNotExist) {
			return nil, nil
		}
		return b, err
	}
	var b bytes.Buffer
	b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n")
	for _, ip := range p.record().IPs {
		fmt.Fprintf(&b, "%s\t%s\n", ip, name)
	}
	return b.Bytes(), nil
}

// resolvFile renders the request's DNS configuration; without one, containers
// resolve as the node does.
func (p *Pod) resolvFile() ([]byte, error) {
	dns := p.config.GetDnsConfig()
	if dns == nil {
		b, err := os.ReadFile("/etc/resolv.conf")
		if errors.Is(err, os.ErrNotExist) {
			return nil, nil
		}
		return b, err
	}
	var b bytes.Buffer
	if len(dns.Searches) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(dns.Searches, " "))
	}
	for _, s := range dns.Servers {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	if len(dns.Options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(dns.Options, " "))
	}
	return b.Bytes(), nil
}

// mountShm mounts the tmpfs that the pod's containers share as /dev/shm. With
// the host's IPC namespace they get the host's instead.
func (p *Pod) mountShm(context.Context) error {
	if !sharedIPC(p.config) {
		return nil
	}
	if err := os.MkdirAll(p.paths.shm(), 0o700); err != nil {
		return err
	}
	uid, gid, err := p.podRoot()
	if err != nil {
		return err
	}
	options := fmt.Sprintf("mode=1777,size=%d,uid=%d,gid=%d", p.m.opts.ShmSize, uid, gid)
	if err := unix.Mount("shm", p.paths.shm(), "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, options); err != nil {
		return fmt.Errorf("mount tmpfs of %d bytes: %w", p.m.opts.ShmSize, err)
	}
	return nil
}

// unmountShm detaches every mount on the shm folder; lazily, because a process
// of another namespace may hold it.
func unmountShm(path string) error {
	for {
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		switch {
		case err == nil:
			continue // a crash may have mounted it twice
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT):
			return nil
		default:
			return fmt.Errorf("unmount %s: %w", path, err)
		}
	}
}

// shmPath is what a container gets at /dev/shm.
func (p *Pod) shmPath() string {
	switch {
	case sharedIPC(p.config):
		return p.paths.shm()
	case hostIPC(p.config):
		return "/dev/shm"
	}
	return "" // each has one of its own
}

// bandwidth reads the annotations that kubelets pass for the bandwidth plugin,
// as "10M" bits per second.
func bandwidth(annotations map[string]string) (ingress, egress uint64, err error) {
	read := func(key string) uint64 {
		text, ok := annotations[key]
		if !ok || err != nil {
			return 0
		}
		v, e := parseQuantity(text)
		if e != nil {
			err = kind.Errorf(kind.Invalid, "annotation %s: %w", key, e)
		}
		return v
	}
	ingress = read("kubernetes.io/ingress-bandwidth")
	egress = read("kubernetes.io/egress-bandwidth")
	return ingress, egress, err
}
