// Package verify decides which images a node takes: by their repository, and
// where that asks for it, by a sigstore signature of a known key.
package verify

import (
	"cmp"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/sigstore/sigstore/pkg/cryptoutils"
	"github.com/sigstore/sigstore/pkg/signature"

	"noded.dev/noded/internal/kind"
)

// What a rule may require.
const (
	Nothing       = "nothing"
	BySignature   = "signature"
	RefusedAlways = "refuse"
)

// Rule is what images of some repositories need.
type Rule struct {
	Pattern string   // of repositories; "*" is any text
	Require string   // Nothing, BySignature or RefusedAlways
	Keys    []string // files of public keys in PEM; any one of them is enough
}

// ErrRefused is in the chain of every refusal.
var ErrRefused = errors.New("the image policy refuses this image")

// Policy is a node's rules, never changed. The zero value takes every image.
type Policy struct{ rules []*Demand }

// Demand is what the rule that counts for a repository wants.
type Demand struct {
	pattern string
	match   *regexp.Regexp
	require string
	keys    []key
}

type key struct {
	fingerprint string
	verifier    signature.Verifier
}

// New reads the rules' keys. Of the patterns that match a repository the
// longest counts, of equally long ones the first by name.
func New(rules []Rule) (*Policy, error) {
	p := &Policy{}
	var problems []error
	for _, r := range rules {
		parts := strings.Split(r.Pattern, "*")
		for i := range parts {
			parts[i] = regexp.QuoteMeta(parts[i])
		}
		d := &Demand{pattern: r.Pattern, require: r.Require, match: regexp.MustCompile("^(?s:" + strings.Join(parts, ".*") + ")$")}
		for _, file := range r.Keys {
			k, err := readKey(file)
			if err != nil {
				problems = append(problems, fmt.Errorf("image policy for %q: key %s: %w", r.Pattern, file, err))
			}
			d.keys = append(d.keys, k)
		}
		p.rules = append(p.rules, d)
	}
	slices.SortFunc(p.rules, func(a, b *Demand) int {
		return cmp.Or(cmp.Compare(len(b.pattern), len(a.pattern)), cmp.Compare(a.pattern, b.pattern))
	})
	return p, errors.Join(problems...)
}

const maxKeyFile = 64 << 10 // bytes

// readKey reads a public key: ECDSA, Ed25519, or RSA of at least 2048 bits.
func readKey(file string) (key, error) {
	f, err := os.Open(file)
	if err != nil {
		return key{}, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxKeyFile))
	if err != nil {
		return key{}, err
	}
	public, err := cryptoutils.UnmarshalPEMToPublicKey(data)
	if err != nil {
		return key{}, fmt.Errorf("it is not a public key in PEM: %w", err)
	}
	if k, ok := public.(*rsa.PublicKey); ok && k.N.BitLen() < 2048 {
		return key{}, fmt.Errorf("an RSA key of %d bits is too short", k.N.BitLen())
	}
	verifier, err := signature.LoadVerifier(public, crypto.SHA256)
	if err != nil {
		return key{}, err
	}
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return key{}, err
	}
	sum := sha256.Sum256(der)
	return key{hex.EncodeToString(sum[:]), verifier}, nil
}

// For returns what counts for a repository, as "docker.io/library/busybox".
func (p *Policy) For(repository string) *Demand {
	for _, d := range p.rules {
		if d.match.MatchString(repository) {
			return d
		}
	}
	return &Demand{require: Nothing}
}

// Signed reports whether images must be signed.
func (d *Demand) Signed() bool { return d.require == BySignature }

// Refuses returns an error if no image is taken.
func (d *Demand) Refuses() error {
	if d.require == RefusedAlways {
		return d.refuse("no image of the repository is allowed")
	}
	return nil
}

// Admits checks an image that is stored by the fingerprints of the keys that
// had signed it when it was pulled from the repository.
func (d *Demand) Admits(fingerprints []string) error {
	if !d.Signed() {
		return d.Refuses()
	}
	for _, k := range d.keys {
		if slices.Contains(fingerprints, k.fingerprint) {
			return nil
		}
	}
	return d.refuse("it was pulled without the signature that is required now; pull it again")
}

func (d *Demand) refuse(format string, args ...any) error {
	return kind.Errorf(kind.PermissionDenied, "%w (images.verify.%q): %w", ErrRefused, d.pattern, fmt.Errorf(format, args...))
}
