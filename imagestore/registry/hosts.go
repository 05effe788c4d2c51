package registry

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"

	"noded.dev/noded/internal/kind"
)

// host is one place that may serve a registry's content.
type host struct {
	url      *url.URL // scheme, host and API root, as https://r.example/v2
	pull     bool     // may serve blobs and manifests by digest
	resolve  bool     // may say what a tag means
	upstream bool     // the registry itself, not a mirror of it
	other    bool     // the host before under its other scheme: only where that one turns out wrong
	header   http.Header
	tls      *tls.Config
	dial     time.Duration
}

// name is how errors and progress call the host.
func (h *host) name() string { return h.url.Scheme + "://" + h.url.Host }

// hostEntry is a table of a hosts.toml file; the format is containerd's
// (docs/hosts.md there), which nodes already have on disk.
type hostEntry struct {
	Capabilities []string       `toml:"capabilities"`
	CA           any            `toml:"ca"`
	Client       any            `toml:"client"`
	SkipVerify   *bool          `toml:"skip_verify"`
	Header       map[string]any `toml:"header"`
	OverridePath bool           `toml:"override_path"`
	DialTimeout  string         `toml:"dial_timeout"`
}

type hostsFile struct {
	hostEntry
	Server string               `toml:"server"`
	Host   map[string]hostEntry `toml:"host"`
}

// findHosts returns the hosts to try for a registry, in order: from the first
// folder that knows it, then the first that has a _default, then the registry
// itself.
func findHosts(dirs []string, domain string) ([]*host, error) {
	for _, name := range []string{domain, "_default"} {
		for _, root := range dirs {
			dir := filepath.Join(root, name)
			info, err := os.Stat(dir)
			if errors.Is(err, fs.ErrNotExist) || err == nil && !info.IsDir() {
				continue
			}
			if err != nil {
				return nil, fmt.Errorf("look for registry configuration: %w", err)
			}
			hosts, err := readHostDir(dir, domain)
			if err != nil {
				return nil, kind.Errorf(kind.Precondition, "registry configuration %s: %w", dir, err)
			}
			return hosts, nil
		}
	}
	return defaultHosts(domain, nil), nil
}

// readHostDir reads a folder with a hosts.toml, or, as Docker has it, with
// certificates only.
func readHostDir(dir, domain string) ([]*host, error) {
	data, err := os.ReadFile(filepath.Join(dir, "hosts.toml"))
	if errors.Is(err, fs.ErrNotExist) {
		config, err := dockerCertificates(dir)
		if err != nil {
			return nil, err
		}
		return defaultHosts(domain, config), nil
	}
	if err != nil {
		return nil, err
	}
	return parseHosts(data, dir, domain)
}

func parseHosts(data []byte, dir, domain string) ([]*host, error) {
	var file hostsFile
	if err := toml.Unmarshal(data, &file); err != nil {
		return nil, fmt.Errorf("hosts.toml: %w", err)
	}
	var hosts []*host
	for _, key := range hostOrder(data, file.Host) {
		h, err := file.Host[key].host(key, dir)
		if err != nil {
			return nil, fmt.Errorf("host %q: %w", key, err)
		}
		hosts = append(hosts, h)
	}
	if file.Server == "" {
		return append(hosts, defaultHosts(domain, nil)...), nil
	}
	h, err := file.hostEntry.host(file.Server, dir)
	if err != nil {
		return nil, fmt.Errorf("server %q: %w", file.Server, err)
	}
	h.upstream = true
	return append(hosts, h), nil
}

// hostOrder returns the host keys in the order in which the file has them:
// TOML tables are unordered to a decoder, but mirrors are tried in order.
func hostOrder(data []byte, hosts map[string]hostEntry) []string {
	var order []string
	p := unstable.Parser{}
	p.Reset(data)
	for p.NextExpression() {
		e := p.Expression()
		if e.Kind != unstable.Table {
			continue
		}
		var parts []string
		for it := e.Key(); it.Next(); {
			parts = append(parts, string(it.Node().Data))
		}
		if len(parts) >= 2 && parts[0] == "host" && !slices.Contains(order, parts[1]) {
			order = append(order, parts[1])
		}
	}
	var rest []string // written in another form, as host."x".capabilities = …
	for key := range hosts {
		if !slices.Contains(order, key) {
			rest = append(rest, key)
		}
	}
	slices.Sort(rest)
	return append(order, rest...)
}

// host turns a table into a host. address may lack the scheme.
func (e hostEntry) host(address, dir string) (*host, error) {
	if !strings.Contains(address, "://") {
		address = defaultScheme(address) + "://" + address
	}
	u, err := url.Parse(address)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, errors.New("is not an http or https address")
	}
	if u.User != nil {
		return nil, errors.New("has credentials in its address; use config.json")
	}
	h := &host{url: &url.URL{Scheme: u.Scheme, Host: u.Host, Path: strings.TrimSuffix(u.Path, "/")}}
	if !e.OverridePath && !strings.HasSuffix(h.url.Path, "/v2") {
		h.url.Path += "/v2"
	}
	if err := e.capabilities(h); err != nil {
		return nil, err
	}
	if h.header, err = e.headers(); err != nil {
		return nil, err
	}
	if e.DialTimeout != "" {
		if h.dial, err = time.ParseDuration(e.DialTimeout); err != nil || h.dial <= 0 {
			return nil, fmt.Errorf("dial_timeout %q is not a positive duration", e.DialTimeout)
		}
	}
	h.tls, err = e.tlsConfig(dir)
	return h, err
}

func (e hostEntry) capabilities(h *host) error {
	h.pull, h.resolve = e.Capabilities == nil, e.Capabilities == nil
	for _, c := range e.Capabilities {
		switch c {
		case "pull":
			h.pull = true
		case "resolve":
			h.resolve = true
		case "push", "referrers":
		default:
			return fmt.Errorf("capability %q is not pull, resolve, push or referrers", c)
		}
	}
	return nil
}

func (e hostEntry) headers() (http.Header, error) {
	header := http.Header{}
	for key, value := range e.Header {
		list, err := texts(value)
		if err != nil {
			return nil, fmt.Errorf("header %s: %w", key, err)
		}
		for _, v := range list {
			header.Add(key, v)
		}
	}
	return header, nil
}

func (e hostEntry) tlsConfig(dir string) (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: e.SkipVerify != nil && *e.SkipVerify}
	files, err := texts(e.CA)
	if err != nil {
		return nil, fmt.Errorf("ca: %w", err)
	}
	for _, file := range files {
		if err := addCA(config, resolvePath(dir, file)); err != nil {
			return nil, err
		}
	}
	pairs, err := clientPairs(e.Client)
	if err != nil {
		return nil, err
	}
	for _, pair := range pairs {
		cert, err := tls.LoadX509KeyPair(resolvePath(dir, pair[0]), resolvePath(dir, pair[1]))
		if err != nil {
			return nil, fmt.Errorf("client certificate: %w", err)
		}
		config.Certificates = append(config.Certificates, cert)
	}
	return config, nil
}

// clientPairs reads the three forms of "client": one file, a list of files
// holding certificate and key, a list of [certificate, key].
func clientPairs(value any) ([][2]string, error) {
	list, ok := value.([]any)
	if !ok {
		files, err := texts(value)
		if err != nil {
			return nil, fmt.Errorf("client: %w", err)
		}
		return samePairs(files), nil
	}
	var pairs [][2]string
	for _, item := range list {
		files, err := texts(item)
		if err != nil || len(files) < 1 || len(files) > 2 {
			return nil, errors.New("client: is not a file, a list of files, or a list of [certificate, key]")
		}
		pairs = append(pairs, [2]string{files[0], files[len(files)-1]})
	}
	return pairs, nil
}

func samePairs(files []string) (pairs [][2]string) {
	for _, f := range files {
		pairs = append(pairs, [2]string{f, f})
	}
	return pairs
}

// texts reads a string or a list of strings.
func texts(value any) ([]string, error) {
	switch v := value.(type) {
	case nil:
		return nil, nil
	case string:
		return []string{v}, nil
	case []any:
		var list []string
		for _, item := range v {
			s, ok := item.(string)
			if !ok {
				return nil, errors.New("is not a string or a list of strings")
			}
			list = append(list, s)
		}
		return list, nil
	}
	return nil, errors.New("is not a string or a list of strings")
}

func resolvePath(dir, file string) string {
	if filepath.IsAbs(file) {
		return file
	}
	return filepath.Join(dir, file)
}

func addCA(config *tls.Config, file string) error {
	pem, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("read ca: %w", err)
	}
	if config.RootCAs == nil {
		// Beside the system's authorities, not instead of them: that is what
		// both containerd and Docker do with these files.
		if config.RootCAs, err = x509.SystemCertPool(); err != nil {
			config.RootCAs = x509.NewCertPool()
		}
	}
	if !config.RootCAs.AppendCertsFromPEM(pem) {
		return fmt.Errorf("ca %s holds no certificate", file)
	}
	return nil
}

// dockerCertificates reads *.crt as authorities and *.cert with *.key as
// client certificates.
func dockerCertificates(dir string) (*tls.Config, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	for _, e := range entries {
		file := filepath.Join(dir, e.Name())
		switch filepath.Ext(file) {
		case ".crt":
			if err := addCA(config, file); err != nil {
				return nil, err
			}
		case ".cert":
			cert, err := tls.LoadX509KeyPair(file, strings.TrimSuffix(file, ".cert")+".key")
			if err != nil {
				return nil, fmt.Errorf("client certificate: %w", err)
			}
			config.Certificates = append(config.Certificates, cert)
		}
	}
	return config, nil
}

// defaultHosts is the registry itself. A registry on this very machine, by
// the letters of its name and never by what DNS says, may also speak plain
// HTTP or TLS with a certificate that nobody signed, as with Docker.
func defaultHosts(domain string, config *tls.Config) []*host {
	at := domain
	if domain == "docker.io" {
		at = "registry-1.docker.io"
	}
	secure := upstreamHost("https", at, config)
	if !loopbackName(domain) {
		return []*host{secure}
	}
	if config == nil {
		secure.tls.InsecureSkipVerify = true
	}
	plain := upstreamHost("http", at, nil)
	if defaultScheme(domain) == "https" {
		plain.other = true
		return []*host{secure, plain}
	}
	secure.other = true
	return []*host{plain, secure}
}

func upstreamHost(scheme, at string, config *tls.Config) *host {
	if config == nil {
		config = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	return &host{url: &url.URL{Scheme: scheme, Host: at, Path: "/v2"}, pull: true, resolve: true, upstream: true, tls: config}
}

// defaultScheme is https but for this machine's own ports.
func defaultScheme(domain string) string {
	if loopbackName(domain) && !strings.HasSuffix(domain, ":443") {
		return "http"
	}
	return "https"
}

// loopbackName reports whether a host with optional port is literally
// localhost or a loopback address.
func loopbackName(domain string) bool {
	name := bareHost(domain)
	if name == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(name)
	return err == nil && ip.Unmap().IsLoopback()
}

// bareHost drops port and brackets.
func bareHost(domain string) string {
	if name, _, err := net.SplitHostPort(domain); err == nil {
		return name
	}
	return strings.Trim(domain, "[]")
}
