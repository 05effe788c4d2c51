package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"

	"noded.dev/noded/internal/kind"
)

const maxDockerConfig = 4 << 20 // bytes

// credentials is what one of Docker's config.json files holds, by registry
// host. What cannot be read of it costs only those pulls whose registry asks
// for what should have been there.
type credentials struct {
	byHost map[string]Auth
	broken map[string]error // entries, by host
	file   error            // why nothing of the file can be read
}

// find returns what the file has for a host, or why it cannot be read.
func (c *credentials) find(host string) (Auth, bool, error) {
	if c.file != nil {
		return Auth{}, false, c.file
	}
	a, ok := c.byHost[host]
	return a, ok, c.broken[host]
}

// readCredentials reads Docker's config.json. Credential helpers are not
// executed: they are programs that the daemon would run as root. A file that
// does not exist holds nothing.
func readCredentials(f *os.File, err error) *credentials {
	if errors.Is(err, fs.ErrNotExist) {
		return &credentials{}
	}
	if err != nil {
		return &credentials{file: fmt.Errorf("open credentials: %w", err)}
	}
	defer f.Close()
	path := f.Name()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return &credentials{file: fmt.Errorf("credentials %s: it is not a regular file", path)}
	}
	data, err := readAll(f, maxDockerConfig, "credentials file "+path, "docker_config_bytes")
	if err != nil {
		return &credentials{file: err}
	}
	var file struct {
		Auths map[string]struct {
			Auth, Username, Password, IdentityToken, RegistryToken string
		}
	}
	if err := json.Unmarshal(data, &file); err != nil {
		// json errors may quote the text that does not parse.
		return &credentials{file: fmt.Errorf("credentials %s: it is not valid JSON of a Docker config", path)}
	}
	c := &credentials{byHost: map[string]Auth{}, broken: map[string]error{}}
	for key, e := range file.Auths {
		host := serverHost(key)
		a := Auth{Username: e.Username, Password: e.Password, IdentityToken: e.IdentityToken, RegistryToken: e.RegistryToken}
		if e.Auth != "" {
			if a.Username, a.Password, err = DecodeAuth(e.Auth); err != nil {
				c.broken[host] = fmt.Errorf("credentials %s, entry %s: %w", path, clip(key), err)
				continue
			}
		}
		if err := a.check(); err != nil {
			c.broken[host] = fmt.Errorf("credentials %s, entry %s: %w", path, clip(key), err)
		} else if !a.empty() {
			c.byHost[host] = a
		}
	}
	return c
}

// CheckCredentials says what is wrong with a Docker config.json, nil if it does
// not exist.
func CheckCredentials(path string) error {
	return readCredentials(os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)).problems()
}

// CheckNamespace says what is wrong with the credentials of a namespace.
func CheckNamespace(dir, namespace string) error {
	if !namespaceName.MatchString(namespace) {
		return fmt.Errorf("credentials in %s: no namespace has the name %q", dir, namespace)
	}
	return readCredentials(openNamespace(dir, namespace)).problems()
}

func (c *credentials) problems() error {
	problems := []error{c.file}
	for _, err := range c.broken {
		problems = append(problems, err)
	}
	return errors.Join(problems...)
}

// namespaceName is an RFC 1123 label, which every Kubernetes namespace is.
// Others have no credentials; above all, none becomes a path.
var namespaceName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

// openNamespace opens the credentials file of a namespace: its own file, or
// config.json in a folder of its own, as Secrets are mounted. Symbolic links are
// followed within the folder only.
func openNamespace(dir, namespace string) (*os.File, error) {
	if dir == "" || !namespaceName.MatchString(namespace) {
		return nil, fs.ErrNotExist
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	f, err := root.OpenFile(namespace+".json", os.O_RDONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		f, err = root.OpenFile(filepath.Join(namespace, "config.json"), os.O_RDONLY|unix.O_NONBLOCK, 0)
	}
	return f, err
}

// OwnCredentials reports whether a namespace has a credentials file, so that
// its pulls are not shared with those of others.
func (c *Client) OwnCredentials(namespace string) bool {
	f, err := openNamespace(c.opts.NamespaceDir, namespace)
	if err == nil {
		f.Close()
	}
	return !errors.Is(err, fs.ErrNotExist)
}

// stored reads what the node has for a namespace's pulls, in the order in which
// it counts. The files are read anew for each pull.
func (c *Client) stored(namespace string) []*credentials {
	list := []*credentials{readCredentials(openNamespace(c.opts.NamespaceDir, namespace))}
	if c.opts.DockerConfig != "" {
		list = append(list, readCredentials(os.OpenFile(c.opts.DockerConfig, os.O_RDONLY|unix.O_NONBLOCK, 0)))
	}
	return list
}

// chooseAuth picks a host's credentials. What the caller brings is for the
// registry it names, so a mirror gets it only if it is the one named. The error
// says which stored ones cannot be read; it matters if the host refuses.
func chooseAuth(ref Reference, h *host, brought *Auth, stored []*credentials) (Auth, error) {
	at := canonicalHost(strings.ToLower(h.url.Host))
	if brought != nil && !brought.empty() {
		server := serverHost(brought.ServerAddress)
		if server == at || h.upstream && (server == "" || server == ref.Domain) {
			return *brought, nil
		}
	}
	names := []string{at}
	if h.upstream && ref.Domain != at {
		names = append(names, ref.Domain)
	}
	var problem error
	for _, c := range stored {
		for _, name := range names {
			a, found, err := c.find(name)
			if found {
				return a, problem
			}
			if problem == nil {
				problem = err
			}
		}
	}
	return Auth{}, problem
}

// refused explains a host's refusal by credentials that could not be read.
func (h *hostState) refused(err error) error {
	k := kindOf(err)
	if h.problem == nil || k != kind.Unauthenticated && k != kind.PermissionDenied {
		return err
	}
	return kind.Errorf(k, "%w; %w", err, h.problem)
}
