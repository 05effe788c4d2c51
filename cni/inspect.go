package cni

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"github.com/containernetworking/cni/libcni"

	"noded.dev/noded/cni/builtin"
)

// Finding is one thing that `noded check` says about the network.
type Finding struct {
	Problem bool   // pods will not be connected, or not reached; otherwise for information
	Minor   bool   // of a problem: it may be meant so, or not matter here
	Text    string // a sentence, without a full stop
}

// Inspect looks at what the options need of this node. It changes nothing, and
// executes plugins with the verbs VERSION and STATUS only.
func Inspect(ctx context.Context, o Options) []Finding {
	switch o.Mode {
	case ModeCNI:
		return inspectPlugins(ctx, o)
	case ModeBuiltin:
		var list []Finding
		for _, f := range builtin.Inspect(builtin.Options{Bridge: o.Builtin.Bridge, Subnets: o.Builtin.Subnets}) {
			list = append(list, Finding(f))
		}
		return list
	}
	return []Finding{problem("network mode %q is neither %q nor %q", o.Mode, ModeCNI, ModeBuiltin)}
}

func problem(format string, args ...any) Finding {
	return Finding{Problem: true, Text: fmt.Sprintf(format, args...)}
}

func inspectPlugins(ctx context.Context, o Options) []Finding {
	var found []Finding
	for _, dir := range o.BinDirs {
		if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
			found = append(found, Finding{Text: fmt.Sprintf("folder of CNI plugins %s does not exist", dir)})
		}
	}
	list, file, err := loadConf(o.ConfDir)
	switch {
	case err != nil:
		return append(found, problem("%v", err))
	case list == nil:
		return append(found, Finding{Problem: true, Minor: true, Text: fmt.Sprintf("no network configuration in %s, so pods wait; on a Kubernetes "+
			"node the cluster's network plugin installs one, elsewhere network.mode = \"builtin\" needs none", o.ConfDir)})
	}
	found = append(found, Finding{Text: fmt.Sprintf("network %s (CNI %s) from %s", list.Name, list.CNIVersion, file)})
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	c := libcni.NewCNIConfigWithCacheDir(o.BinDirs, o.CacheDir, &runner{})
	for _, p := range list.Plugins {
		found = append(found, inspectPlugin(ctx, c, p.Network.Type, list.CNIVersion)...)
		if ipam := p.Network.IPAM.Type; ipam != "" {
			found = append(found, inspectPlugin(ctx, c, ipam, list.CNIVersion)...)
		}
	}
	if err := c.GetStatusNetworkList(ctx, list); err != nil {
		found = append(found, problem("network %s is not ready: %v", list.Name, err))
	}
	return found
}

func inspectPlugin(ctx context.Context, c *libcni.CNIConfig, name, version string) []Finding {
	info, err := c.GetVersionInfo(ctx, name)
	if err != nil {
		return []Finding{problem("CNI plugin %s: %v", name, err)}
	}
	if version == "" {
		version = "0.1.0"
	}
	if !slices.Contains(info.SupportedVersions(), version) {
		return []Finding{problem("CNI plugin %s does not know version %s of the configuration, only %v", name, version, info.SupportedVersions())}
	}
	return nil
}
