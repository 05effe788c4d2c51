package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/sirupsen/logrus"

	"noded.dev/noded/cni"
	"noded.dev/noded/config"
	"noded.dev/noded/cri"
	"noded.dev/noded/cri/stream"
	"noded.dev/noded/imagestore"
	"noded.dev/noded/imagestore/verify"
	"noded.dev/noded/internal/cgroup"
	"noded.dev/noded/internal/facts"
	"noded.dev/noded/internal/hostpath"
	"noded.dev/noded/internal/namespace"
	"noded.dev/noded/runtime"
	"noded.dev/noded/sandbox"
)

// daemon is the parts of a running noded, in the order in which they are made;
// close ends them in reverse.
type daemon struct {
	mu  sync.Mutex    // guards cfg once noded serves
	cfg config.Config // in force

	log     *logrus.Entry
	images  *imagestore.Store
	network *cni.Networks
	runtime *runtime.Runtime
	pods    *sandbox.Manager
	streams *stream.Server
	cri     *cri.Server
	opened  []io.Closer
}

type closer func() error

func (c closer) Close() error { return c() }

// openDaemon makes the parts. If one fails, those before it are closed.
func openDaemon(ctx context.Context, cfg config.Config, log *logrus.Entry) (*daemon, error) {
	d := &daemon{cfg: cfg, log: log}
	for _, part := range []struct {
		name string
		open func(context.Context) (io.Closer, error)
	}{
		{"image store", d.openImages},
		{"network", d.openNetwork},
		{"runtime", d.openRuntime},
		{"pods", d.openPods},
		{"streaming server", d.openStreams},
	} {
		c, err := part.open(ctx)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("open %s: %w", part.name, err), d.close())
		}
		d.opened = append(d.opened, c)
	}
	d.cri = cri.NewServer(cri.Options{
		Sandboxes: d.pods, Images: d.images, Streams: d.streams, Version: version,
		Log: log.WithField("part", "cri"), Info: d.info,
	})
	return d, nil
}

func (d *daemon) close() error {
	var errs []error
	for i := len(d.opened) - 1; i >= 0; i-- {
		errs = append(errs, d.opened[i].Close())
	}
	return errors.Join(errs...)
}

func (d *daemon) openImages(ctx context.Context) (c io.Closer, err error) {
	options := imageOptions(d.cfg)
	options.Log = d.log.WithField("part", "images")
	d.images, err = imagestore.Open(ctx, options)
	return d.images, err
}

func imageOptions(cfg config.Config) imagestore.Options {
	i := cfg.Images
	return imagestore.Options{
		Root: filepath.Join(cfg.Root, "images"), ContainerRoot: i.ContainerRoot, RegistryDirs: i.RegistryDirs,
		MaxLayersAtOnce: i.MaxParallel, MinRate: int64(i.MinRate),
		TokenHosts: i.TokenHosts, Pinned: i.Pinned, Policy: imagePolicy(i),
		DockerConfig: dockerConfig(), NamespaceDir: i.CredentialsDir,
	}
}

func imagePolicy(i config.Images) []verify.Rule {
	var rules []verify.Rule
	for pattern, v := range i.Verify {
		rules = append(rules, verify.Rule{Pattern: pattern, Require: v.Require, Keys: v.Keys})
	}
	return rules
}

func (d *daemon) openNetwork(ctx context.Context) (c io.Closer, err error) {
	options, err := networkOptions(d.cfg, d.log.WithField("part", "network"))
	if err != nil {
		return nil, err
	}
	d.network, err = cni.Open(ctx, options)
	return d.network, err
}

func networkOptions(cfg config.Config, log logrus.FieldLogger) (cni.Options, error) {
	n := cfg.Network
	var subnets []netip.Prefix
	for _, text := range n.Builtin.Subnets {
		subnet, err := netip.ParsePrefix(text)
		if err != nil {
			return cni.Options{}, fmt.Errorf("network.builtin.subnets: %w", err)
		}
		subnets = append(subnets, subnet)
	}
	return cni.Options{
		Mode: n.Mode, ConfDir: n.ConfDir, BinDirs: n.BinDirs, CacheDir: filepath.Join(cfg.Root, "cni"),
		Builtin: cni.BuiltinOptions{Bridge: n.Builtin.Bridge, Subnets: subnets}, Log: log,
	}, nil
}

func (d *daemon) openRuntime(ctx context.Context) (c io.Closer, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find the noded binary: %w", err)
	}
	host, err := cgroup.Detect("")
	if err != nil {
		return nil, err
	}
	d.runtime, err = runtime.Open(ctx, runtime.Options{
		StateDir: d.cfg.State, ShimCommand: []string{self, "shim", "--state", d.cfg.State},
		Handlers: runtimeHandlers(d.cfg, d.systemdCgroup(host)), Default: d.cfg.Runtime.Default,
		Criu: criuCommand(d.cfg), Log: d.log.WithField("part", "runtime"),
	})
	return d.runtime, err
}

// criuCommand is the criu that makes checkpoints; "" if there are to be none.
// runc looks it up by this very name.
func criuCommand(cfg config.Config) string {
	if !cfg.Runtime.Checkpoint {
		return ""
	}
	return findCommand("criu")
}

func (d *daemon) systemdCgroup(host *cgroup.Host) bool {
	switch d.cfg.Runtime.CgroupDriver {
	case "systemd":
		return true
	case "cgroupfs":
		return false
	}
	return host.Systemd()
}

// runtimeHandlers resolves the configured commands: an absolute path, or a
// name that lies beside the noded binary or in PATH.
func runtimeHandlers(cfg config.Config, systemd bool) []runtime.Handler {
	var list []runtime.Handler
	for name, h := range cfg.Runtime.Handlers {
		list = append(list, runtime.Handler{
			Name: name, Path: findCommand(h.Path), Root: filepath.Join(cfg.State, "runtime", name), SystemdCgroup: systemd,
		})
	}
	return list
}

func (d *daemon) openPods(ctx context.Context) (c io.Closer, err error) {
	host, err := cgroup.Detect("")
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find the noded binary: %w", err)
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("read boot id: %w", err)
	}
	node, err := facts.Read(ctx, "")
	if err != nil {
		return nil, err
	}
	if err := namespace.Prepare(filepath.Join(d.cfg.State, "ns")); err != nil {
		return nil, err
	}
	systemd := d.systemdCgroup(host)
	known := specFacts(node, host, systemd)
	known.AppArmorDefault = loadAppArmor(node.AppArmor, d.log)
	d.pods, err = sandbox.Open(ctx, sandbox.Options{
		Root: d.cfg.Root, State: d.cfg.State, BootID: strings.TrimSpace(string(boot)),
		Facts: known, SystemdCgroup: systemd, CgroupParent: cgroupParent(filepath.Clean(d.cfg.Root), systemd),
		InitBinary: self, ShmSize: shmSize, CDISpecDirs: d.cfg.Runtime.CDISpecDirs, Log: d.log.WithField("part", "pods"),
		HostPaths: hostpath.New([]string{self, "hostpath"}, d.cfg.Runtime.MissingHostPath == "create"),
	}, sandbox.Deps{Images: d.images, Network: d.network, Runtime: d.runtime, Cgroups: host})
	if err != nil {
		return nil, err
	}
	return closer(func() error { d.pods.Close(); return nil }), nil
}

// shmSize is a pod's /dev/shm in bytes, as large as both peers make it.
const shmSize = 64 << 20

// cgroupParent is where the cgroups of pods go whose request names no parent.
// It belongs to one root folder alone: start-up kills what lies in it without
// an owner, which must never be the pods of another noded on this machine.
func cgroupParent(root string, systemd bool) string {
	if systemd {
		return cgroup.DefaultSlice
	}
	if root == config.Default().Root {
		return cgroup.DefaultParent
	}
	sum := sha256.Sum256([]byte(root))
	return cgroup.DefaultParent + "-" + hex.EncodeToString(sum[:4])
}

func (d *daemon) openStreams(context.Context) (c io.Closer, err error) {
	d.streams, err = stream.New(stream.Options{Addr: d.cfg.CRI.StreamAddress, Log: d.log.WithField("part", "stream")})
	return d.streams, err
}
