package config

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// maxSocketPath is what unix(7) leaves of sun_path's 108 bytes beside the NUL.
const maxSocketPath = 107

// shimSocket is the shim's socket below state, whose path has to fit as well.
// (Those of terminals do not count: the shim names them by a descriptor.)
const shimSocket = "shim.sock"

// RFC 1123 label: what Kubernetes allows as a RuntimeClass's handler.
var handlerName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

// problems gathers what is wrong, so that one run tells all of it.
type problems struct{ list []error }

func (p *problems) addf(key, format string, args ...any) {
	p.list = append(p.list, fmt.Errorf("%s: %s", key, fmt.Sprintf(format, args...)))
}

func (p *problems) oneOf(key, value string, allowed ...string) {
	if !slices.Contains(allowed, value) {
		p.addf(key, "%q is not one of %s", value, strings.Join(allowed, ", "))
	}
}

func (p *problems) absolute(key, path string) {
	if !filepath.IsAbs(path) {
		p.addf(key, "%q is not an absolute path", path)
	}
	if strings.ContainsAny(path, "\x00\n") {
		p.addf(key, "%q has a NUL or a newline in it", path)
	}
}

// Validate reports every problem at once, one line each, beginning with the key.
func (c Config) Validate() error {
	p := &problems{}
	c.validateFolders(p)
	p.oneOf("log.level", c.Log.Level, "trace", "debug", "info", "warning", "error")
	p.oneOf("log.format", c.Log.Format, "text", "json")
	c.CRI.validate(p)
	c.Runtime.validate(p)
	c.Network.validate(p)
	c.Images.validate(p)
	return errors.Join(p.list...)
}

func (c Config) validateFolders(p *problems) {
	p.absolute("root", c.Root)
	p.absolute("state", c.State)
	root, state := filepath.Clean(c.Root), filepath.Clean(c.State)
	if root == "/" {
		p.addf("root", "it cannot be /")
	}
	if state == "/" {
		p.addf("state", "it cannot be /")
	}
	// Overlay options separate paths by these; a root with one could not mount.
	if strings.ContainsAny(root, ",:\\") {
		p.addf("root", "%q has a comma, colon or backslash in it, which overlay mounts cannot take", c.Root)
	}
	if c.Images.ContainerRoot != "" {
		p.absolute("images.container_root", c.Images.ContainerRoot)
		for _, other := range []string{root, state} {
			if own := filepath.Clean(c.Images.ContainerRoot); own == "/" || own == other || strings.HasPrefix(own, other+"/") || strings.HasPrefix(other, own+"/") {
				p.addf("images.container_root", "%s and %s must not be one inside the other", own, other)
			}
		}
	}
	if root == state || strings.HasPrefix(root, state+"/") || strings.HasPrefix(state, root+"/") {
		p.addf("state", "%s and root %s must not be one inside the other", state, root)
	}
	if n := len(filepath.Join(state, shimSocket)); n > maxSocketPath {
		p.addf("state", "%s is too long: the socket paths below it would have %d bytes of at most %d", state, n, maxSocketPath)
	}
}

func (c CRI) validate(p *problems) {
	if _, err := SocketPath(c.Listen); err != nil {
		p.addf("cri.listen", "%v", err)
	}
	host, port, err := net.SplitHostPort(c.StreamAddress)
	if err != nil {
		p.addf("cri.stream_address", "%q is not an address and a port such as 127.0.0.1:0", c.StreamAddress)
	} else {
		if _, err := netip.ParseAddr(host); err != nil {
			p.addf("cri.stream_address", "%q is not an IP address", host)
		}
		if _, err := strconv.ParseUint(port, 10, 16); err != nil {
			p.addf("cri.stream_address", "%q is not a port of 0 to 65535", port)
		}
	}
}

// SocketPath checks a "unix://" address and returns its path.
func SocketPath(listen string) (string, error) {
	path, ok := strings.CutPrefix(listen, "unix://")
	if !ok || !filepath.IsAbs(path) {
		return "", fmt.Errorf("%q is not \"unix://\" and an absolute path", listen)
	}
	if len(path) > maxSocketPath {
		return "", fmt.Errorf("%s has %d bytes, a socket's path at most %d", path, len(path), maxSocketPath)
	}
	return path, nil
}

func (r Runtime) validate(p *problems) {
	p.oneOf("runtime.cgroup_driver", r.CgroupDriver, "auto", "cgroupfs", "systemd")
	for _, dir := range r.CDISpecDirs {
		p.absolute("runtime.cdi_spec_dirs", dir)
	}
	p.oneOf("runtime.missing_host_path", r.MissingHostPath, "error", "create")
	if _, ok := r.Handlers[r.Default]; !ok {
		p.addf("runtime.default", "there is no [runtime.handlers.%s]", r.Default)
	}
	for _, name := range slices.Sorted(maps.Keys(r.Handlers)) {
		h := r.Handlers[name]
		key := "runtime.handlers." + tableName(name)
		if !handlerName.MatchString(name) {
			p.addf(key, "a handler's name has at most 63 of a-z, 0-9 and -, the - not at an end")
		}
		if h.Path == "" {
			p.addf(key+".path", "it is empty")
		} else if strings.Contains(h.Path, "/") {
			p.absolute(key+".path", h.Path)
		}
	}
}

func (n Network) validate(p *problems) {
	p.oneOf("network.mode", n.Mode, "cni", "builtin")
	p.absolute("network.conf_dir", n.ConfDir)
	for _, dir := range n.BinDirs {
		p.absolute("network.bin_dirs", dir)
	}
	if n.Mode == "cni" && len(n.BinDirs) == 0 {
		p.addf("network.bin_dirs", "mode \"cni\" needs at least one folder")
	}
	n.Builtin.validate(p)
}

func (b Builtin) validate(p *problems) {
	// IFNAMSIZ is 16 with the NUL; the kernel refuses "/", blanks, "." and "..".
	if len(b.Bridge) == 0 || len(b.Bridge) > 15 || strings.ContainsAny(b.Bridge, "/: \t\n\x00") || b.Bridge == "." || b.Bridge == ".." {
		p.addf("network.builtin.bridge", "%q is not an interface name of 1 to 15 bytes", b.Bridge)
	}
	families := map[bool]int{}
	for _, s := range b.Subnets {
		prefix, err := netip.ParsePrefix(s)
		if err != nil {
			p.addf("network.builtin.subnets", "%q is not a range such as 10.89.0.0/16", s)
			continue
		}
		if prefix != prefix.Masked() {
			p.addf("network.builtin.subnets", "%s has bits set outside its mask; the range is %s", s, prefix.Masked())
		}
		// Gateway, one pod, and the two addresses an IPv4 range loses at its ends.
		if prefix.Addr().BitLen()-prefix.Bits() < 2 {
			p.addf("network.builtin.subnets", "%s has no room for a gateway and a pod", s)
		}
		families[prefix.Addr().Is4()]++
	}
	if len(b.Subnets) == 0 || families[true] > 1 || families[false] > 1 {
		p.addf("network.builtin.subnets", "it takes one IPv4 range, one IPv6 range, or one of each")
	}
}

func (i Images) validate(p *problems) {
	for _, dir := range i.RegistryDirs {
		p.absolute("images.registry_dirs", dir)
	}
	if i.MaxParallel < 1 || i.MaxParallel > 64 {
		p.addf("images.max_parallel", "%d is not between 1 and 64", i.MaxParallel)
	}
	if i.MinRate < 0 {
		p.addf("images.min_rate", "it is below 0")
	}
	for _, host := range i.TokenHosts {
		// What a URL with this host and nothing else has as its host.
		if u, err := url.Parse("https://" + host); err != nil || host == "" || u.Host != host {
			p.addf("images.token_hosts", "%q is not a host such as auth.example.com or auth.example.com:5001", host)
		}
	}
	if i.CredentialsDir != "" {
		p.absolute("images.credentials_dir", i.CredentialsDir)
	}
	for _, pattern := range slices.Sorted(maps.Keys(i.Verify)) {
		i.Verify[pattern].validate(p, pattern)
	}
	for _, pattern := range i.Pinned {
		if pattern == "" || strings.ContainsAny(pattern, " \t\n\x00") || !strings.ContainsAny(pattern, "*:@") {
			p.addf("images.pinned", "%q can match no image: references have a tag or a digest, or write a \"*\"", pattern)
		}
	}
}
