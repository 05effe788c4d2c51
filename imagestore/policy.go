package imagestore

import (
	"context"
	"fmt"
	"strings"

	"github.com/opencontainers/go-digest"

	"noded.dev/noded/imagestore/registry"
	"noded.dev/noded/imagestore/verify"
)

// ErrRefused is in the chain of the error of an image that the policy does not
// allow; its kind is PermissionDenied.
var ErrRefused = verify.ErrRefused

// SetPolicy replaces the rules of which images are taken. An error changes
// nothing. Images that are here and lack what is required now stay, but are
// neither run nor found by ImageStatus until they are pulled again.
func (s *Store) SetPolicy(rules []verify.Rule) error {
	p, err := verify.New(rules)
	if err != nil {
		return err
	}
	s.policy.Store(p)
	return nil
}

// permit checks an image that is about to be pulled, before anything of it is
// fetched but its manifest and config, and notes who signed it.
func (s *Store) permit(ctx context.Context, session *registry.Session, ref registry.Reference, r *registry.Resolved) error {
	demand := s.policy.Load().For(ref.Name())
	if !demand.Signed() {
		return demand.Refuses()
	}
	var reasons []error
	digests := []digest.Digest{r.Top}
	if r.Digest != r.Top {
		digests = append(digests, r.Digest) // of an index the image for this node may be signed alone
	}
	for _, d := range digests {
		subject := verify.Subject{Repository: ref.Name(), Digest: d}
		signer, why, err := signerOf(ctx, session, demand, subject)
		if err != nil {
			return fmt.Errorf("look for signatures: %w", err)
		}
		if signer != "" {
			r.SignedBy = signer
			return nil
		}
		reasons = append(reasons, why...)
	}
	return demand.Unsigned(verify.Subject{Repository: ref.Name(), Digest: r.Top}, reasons)
}

// signerOf looks for a signature that counts. why says what was wrong with
// those found; err, that the registry could not be asked.
func signerOf(ctx context.Context, session *registry.Session, demand *verify.Demand, subject verify.Subject) (signer string, why []error, err error) {
	signatures, err := session.Signatures(ctx, subject.Digest)
	if err != nil {
		return "", nil, err
	}
	for _, sig := range signatures {
		signer, err := demand.Simple(sig.Payload, sig.Value, subject)
		if err == nil {
			return signer, nil, nil
		}
		why = append(why, err)
	}
	bundles, err := session.Bundles(ctx, subject.Digest)
	if err != nil {
		return "", nil, err
	}
	for _, b := range bundles {
		signer, err := demand.Bundle(b, subject)
		if err == nil {
			return signer, nil, nil
		}
		why = append(why, err)
	}
	return "", why, nil
}

// Admit says whether the policy lets an image be run that a user called name;
// by its id alone ("" too) it is enough that one of its names would. It asks no
// registry: who signed an image was noted when it was pulled.
func (s *Store) Admit(id, name string) error {
	s.mu.Lock()
	rec := s.images[id]
	s.mu.Unlock()
	if rec == nil {
		return nil // nothing can be made of it
	}
	return s.admit(rec, name)
}

func (s *Store) admit(rec *imageRecord, name string) error {
	policy := s.policy.Load()
	ref, err := registry.ParseReference(name)
	if err == nil && !strings.HasPrefix(hexOf(rec.ID), hexOf(name)) {
		return policy.For(ref.Name()).Admits(rec.Signed[ref.Name()])
	}
	for repository := range rec.repositories() {
		if err = policy.For(repository).Admits(rec.Signed[repository]); err == nil {
			return nil
		}
	}
	return err
}

// repositories are those that the image was pulled from.
func (r *imageRecord) repositories() map[string]bool {
	found := map[string]bool{}
	for _, name := range r.Digests { // every pull adds one
		repository, _, _ := strings.Cut(name, "@")
		found[repository] = true
	}
	return found
}
