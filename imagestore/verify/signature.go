package verify

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/secure-systems-lab/go-securesystemslib/dsse"
)

// Subject is what signatures must be of.
type Subject struct {
	Repository string        // "docker.io/library/busybox"
	Digest     digest.Digest // of the manifest or index
}

// Simple checks a signature in the simple signing form and returns the
// fingerprint of the key that made it.
func (d *Demand) Simple(payload, value []byte, s Subject) (string, error) {
	fingerprint := ""
	for _, k := range d.keys {
		if k.verifier.VerifySignature(bytes.NewReader(value), bytes.NewReader(payload)) == nil {
			fingerprint = k.fingerprint
			break
		}
	}
	if fingerprint == "" {
		return "", errors.New("a signature is not by any of the keys")
	}
	// Only now is the text what the key's owner wrote.
	var text struct {
		Critical struct {
			Identity struct {
				Reference string `json:"docker-reference"`
			} `json:"identity"`
			Image struct {
				Digest digest.Digest `json:"docker-manifest-digest"`
			} `json:"image"`
			Type string `json:"type"`
		} `json:"critical"`
	}
	if err := json.Unmarshal(payload, &text); err != nil {
		return "", errors.New("what is signed is not a simple signing text")
	}
	c := text.Critical
	switch {
	case c.Type != "cosign container image signature" && c.Type != "atomic container signature":
		return "", fmt.Errorf("what is signed is of type %.64q and not an image", c.Type)
	case c.Image.Digest != s.Digest:
		return "", fmt.Errorf("the signature is of %.80q and not of %s", c.Image.Digest, s.Digest)
	case !sameRepository(c.Identity.Reference, s.Repository):
		return "", fmt.Errorf("the signature is for %.256q and not for %s", c.Identity.Reference, s.Repository)
	}
	return fingerprint, nil
}

// sameRepository compares a signed reference, which may have a tag, with a
// repository.
func sameRepository(signed, repository string) bool {
	named, err := reference.ParseNormalizedNamed(signed)
	return err == nil && named.Name() == repository
}

// What a sigstore bundle for an image is (cosign's BUNDLE_SPEC.md): a signed
// in-toto statement whose subject is the image. Other predicates are statements
// about an image, such as its list of parts, and no consent to run it.
const (
	statementPayload = "application/vnd.in-toto+json"
	statementPrefix  = "https://in-toto.io/Statement/"
	signPredicate    = "https://sigstore.dev/cosign/sign/v1"
)

// Bundle checks a sigstore bundle and returns the fingerprint of the key that
// made it. Bundles name no repository: the digest alone says what is signed.
func (d *Demand) Bundle(data []byte, s Subject) (string, error) {
	var bundle struct {
		MediaType string         `json:"mediaType"`
		Envelope  *dsse.Envelope `json:"dsseEnvelope"`
	}
	if err := json.Unmarshal(data, &bundle); err != nil || bundle.Envelope == nil {
		return "", errors.New("a bundle has no signed statement")
	}
	e := bundle.Envelope
	payload, err := e.DecodeB64Payload()
	if err != nil || e.PayloadType != statementPayload {
		return "", fmt.Errorf("a bundle's statement is of type %.64q", e.PayloadType)
	}
	fingerprint := d.signerOf(e, dsse.PAE(e.PayloadType, payload))
	if fingerprint == "" {
		return "", errors.New("a bundle is not signed by any of the keys")
	}
	var statement struct {
		Type      string `json:"_type"`
		Predicate string `json:"predicateType"`
		Subject   []struct {
			Digest map[string]string `json:"digest"`
		} `json:"subject"`
	}
	if err := json.Unmarshal(payload, &statement); err != nil || !strings.HasPrefix(statement.Type, statementPrefix) {
		return "", errors.New("what a bundle signs is not a statement")
	}
	if statement.Predicate != signPredicate {
		return "", fmt.Errorf("a bundle's statement is a %.128q and not a signature", statement.Predicate)
	}
	for _, subject := range statement.Subject {
		if subject.Digest[s.Digest.Algorithm().String()] == s.Digest.Encoded() {
			return fingerprint, nil
		}
	}
	return "", fmt.Errorf("a bundle is not of %s", s.Digest)
}

func (d *Demand) signerOf(e *dsse.Envelope, signed []byte) string {
	for _, k := range d.keys {
		if slices.ContainsFunc(e.Signatures, func(sig dsse.Signature) bool {
			value, err := base64.StdEncoding.DecodeString(sig.Sig)
			return err == nil && k.verifier.VerifySignature(bytes.NewReader(value), bytes.NewReader(signed)) == nil
		}) {
			return k.fingerprint
		}
	}
	return ""
}

// Unsigned is the refusal of an image that no signature speaks for; reasons say
// what was wrong with those that are there.
func (d *Demand) Unsigned(s Subject, reasons []error) error {
	if len(reasons) == 0 {
		return d.refuse("%s@%s has no signature", s.Repository, s.Digest)
	}
	const most = 4
	texts := make([]string, min(len(reasons), most))
	for i := range texts {
		texts[i] = reasons[i].Error()
	}
	return d.refuse("%s@%s: %s", s.Repository, s.Digest, strings.Join(texts, "; "))
}
