package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/sirupsen/logrus"

	"noded.dev/noded/config"
	"noded.dev/noded/internal/cgroup"
	"noded.dev/noded/internal/facts"
	"noded.dev/noded/spec"
)

func newLogger(cfg config.Log) (*logrus.Entry, error) {
	level, err := logrus.ParseLevel(cfg.Level)
	if err != nil {
		return nil, fmt.Errorf("log.level: %w", err)
	}
	l := logrus.New()
	l.SetLevel(level)
	if cfg.Format == "json" {
		l.SetFormatter(&logrus.JSONFormatter{})
	} else {
		l.SetFormatter(&logrus.TextFormatter{DisableColors: true, FullTimestamp: true, TimestampFormat: "2006-01-02T15:04:05.000Z07:00"})
	}
	return logrus.NewEntry(l), nil
}

// apply puts the keys in force that can change while noded runs.
func (d *daemon) apply(next config.Config) {
	if level, err := logrus.ParseLevel(next.Log.Level); err == nil {
		d.log.Logger.SetLevel(level)
	}
	d.images.SetPinned(next.Images.Pinned)
	if err := d.images.SetPolicy(imagePolicy(next.Images)); err != nil {
		d.log.WithError(err).Error("image policy is not reloaded, the old one stays")
		next.Images.Verify = d.cfg.Images.Verify
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.cfg.Log.Level = next.Log.Level
	d.cfg.Images.Pinned, d.cfg.Images.Verify = next.Images.Pinned, next.Images.Verify
}

// info is what a verbose Status shows an operator besides the conditions.
func (d *daemon) info() map[string]any {
	d.mu.Lock()
	cfg := d.cfg
	d.mu.Unlock()
	return map[string]any{"config": cfg, "pulls": d.images.Pulls()}
}

// dockerConfig is where Docker keeps the credentials of the user that noded
// runs as, which serve pulls that bring none.
func dockerConfig() string {
	if dir := os.Getenv("DOCKER_CONFIG"); dir != "" {
		return filepath.Join(dir, "config.json")
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "" // systemd gives services no HOME; then there is none
	}
	return filepath.Join(home, ".docker", "config.json")
}

// findCommand gives a configured command an absolute path: a bare name lies
// beside the noded binary, or in PATH. What is not found stays as it is, and
// the runtime reports it.
func findCommand(name string) string {
	if filepath.IsAbs(name) {
		return name
	}
	if self, err := os.Executable(); err == nil {
		beside := filepath.Join(filepath.Dir(self), name)
		if info, err := os.Stat(beside); err == nil && info.Mode().IsRegular() {
			return beside
		}
	}
	if found, err := exec.LookPath(name); err == nil {
		return found
	}
	return name
}

// specFacts hands on what container specs depend on.
func specFacts(node facts.Node, host *cgroup.Host, systemd bool) spec.Facts {
	return spec.Facts{
		CgroupV2: host.Mode() == cgroup.V2, SystemdCgroup: systemd, Seccomp: node.Seccomp, AppArmor: node.AppArmor, SELinux: node.SELinux,
		Capabilities: node.Capabilities, Swap: node.Swap, HugePages: node.Huge, CPUs: node.CPUs, MemoryNodes: node.Nodes, Rlimits: node.Rlimits,
		OOMScoreFloor: node.OOMScoreFloor, Hostname: node.Hostname,
	}
}
