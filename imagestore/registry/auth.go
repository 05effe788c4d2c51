package registry

import (
	"encoding/base64"
	"net/url"
	"strings"

	"noded.dev/noded/internal/kind"
)

// Auth is what is known for one registry; forms are used in this order:
// RegistryToken, IdentityToken, user and password. Its String hides it all.
type Auth struct {
	Username, Password string
	IdentityToken      string // refresh token for the token server
	RegistryToken      string // bearer token, used as it is
	ServerAddress      string // registry these are for; "" the reference's own
}

// String keeps the secrets out of whatever prints an Auth.
func (a Auth) String() string { return "[credentials]" }

// GoString is String for %#v.
func (a Auth) GoString() string { return a.String() }

func (a Auth) empty() bool {
	return a.Username == "" && a.Password == "" && a.IdentityToken == "" && a.RegistryToken == ""
}

func (a Auth) basic() string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(a.Username+":"+a.Password))
}

// check refuses what would break out of an HTTP header.
func (a Auth) check() error {
	for _, s := range []string{a.Username, a.Password, a.IdentityToken, a.RegistryToken} {
		if strings.ContainsAny(s, "\r\n\x00") {
			return kind.Errorf(kind.Invalid, "registry credentials contain a line break or NUL")
		}
	}
	if strings.Contains(a.Username, ":") {
		return kind.Errorf(kind.Invalid, "registry user name contains a colon")
	}
	return nil
}

// DecodeAuth reads base64 of "user:password".
func DecodeAuth(encoded string) (user, password string, err error) {
	b, err := base64.StdEncoding.DecodeString(strings.TrimSpace(encoded))
	if err != nil {
		// The decoder's own error quotes no input, but says where it broke;
		// even that is more than a log should hold of a secret.
		return "", "", kind.Errorf(kind.Invalid, "registry credentials are not base64")
	}
	user, password, ok := strings.Cut(strings.TrimRight(string(b), "\x00"), ":")
	if !ok {
		return "", "", kind.Errorf(kind.Invalid, "registry credentials have no colon")
	}
	return user, password, nil
}

// serverHost reduces the ways in which people write a registry's address,
// with scheme, path or Docker Hub's several names, to its host and port.
func serverHost(address string) string {
	address = strings.TrimSpace(address)
	if strings.Contains(address, "://") {
		if u, err := url.Parse(address); err == nil {
			address = u.Host
		}
	} else {
		address, _, _ = strings.Cut(address, "/")
	}
	return canonicalHost(strings.ToLower(address))
}

// canonicalHost gives Docker Hub one name.
func canonicalHost(host string) string {
	switch host {
	case "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com":
		return "docker.io"
	}
	return host
}
