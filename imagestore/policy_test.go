package imagestore

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"noded.dev/noded/imagestore/verify"
	"noded.dev/noded/internal/kind"
	"noded.dev/noded/test/testimage"
)

// signer makes a key and the file of its public half.
func signer(t *testing.T) (*ecdsa.PrivateKey, string) {
	t.Helper()
	key := must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	der := must[[]byte](t)(x509.MarshalPKIXPublicKey(key.Public()))
	file := filepath.Join(t.TempDir(), "key.pub")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return key, file
}

// index wraps an image for this node into an index.
func index(t *testing.T, f *fake, tag string, img testimage.Image) digest.Digest {
	t.Helper()
	data := must[[]byte](t)(testimage.Referrers(img))
	data = []byte(strings.Replace(string(data), `"artifactType":"`+testimage.BundleType+`"`, `"platform":{"os":"linux","architecture":"`+img.Descriptor().Platform.Architecture+`"}`, 1))
	f.manifest(tag, ocispec.MediaTypeImageIndex, data)
	return digest.FromBytes(data)
}

// TestPolicySignatures pulls images with signatures of all kinds from a
// repository that wants one.
func TestPolicySignatures(t *testing.T) {
	needRoot(t)
	key, file := signer(t)
	stranger, _ := signer(t)
	img := smallImage(t)
	other := image(t, must[testimage.Layer](t)(testimage.NewLayer(testimage.Gzip, testimage.Entry{Name: "g", Body: "y"})))
	sig := func(k *ecdsa.PrivateKey, repository string, d digest.Digest) testimage.Image {
		return must[testimage.Image](t)(testimage.Signature(k, repository, d))
	}
	bundle := func(f *fake, k *ecdsa.PrivateKey, of testimage.Image, predicate string) {
		b := must[testimage.Image](t)(testimage.Bundle(k, of, predicate))
		f.add("bundle", b)
		f.manifest(testimage.ReferrersTag(img.Digest()), ocispec.MediaTypeImageIndex, must[[]byte](t)(testimage.Referrers(b)))
	}
	for name, c := range map[string]struct {
		sign func(f *fake, repository string)
		ok   bool
		text string
	}{
		"signed":            {func(f *fake, r string) { f.add(testimage.SignatureTag(img.Digest()), sig(key, r, img.Digest())) }, true, ""},
		"signed with a tag": {func(f *fake, r string) { f.add(testimage.SignatureTag(img.Digest()), sig(key, r+":v1", img.Digest())) }, true, ""},
		"not signed":        {func(*fake, string) {}, false, "has no signature"},
		"by another key":    {func(f *fake, r string) { f.add(testimage.SignatureTag(img.Digest()), sig(stranger, r, img.Digest())) }, false, "not by any of the keys"},
		"of another image":  {func(f *fake, r string) { f.add(testimage.SignatureTag(img.Digest()), sig(key, r, other.Digest())) }, false, "and not of " + img.Digest().String()},
		"for another repository": {func(f *fake, _ string) {
			f.add(testimage.SignatureTag(img.Digest()), sig(key, "registry.test/x", img.Digest()))
		}, false, "registry.test/x"},
		"for no repository": {func(f *fake, _ string) { f.add(testimage.SignatureTag(img.Digest()), sig(key, "", img.Digest())) }, false, "not for"},
		"text changed after": {func(f *fake, r string) {
			s := sig(key, r, other.Digest())
			s.Layers[0].Blob = []byte(strings.ReplaceAll(string(s.Layers[0].Blob), other.Digest().String(), img.Digest().String()))
			s.Manifest = []byte(strings.ReplaceAll(string(s.Manifest), digest.FromBytes(sig(key, r, other.Digest()).Layers[0].Blob).String(), digest.FromBytes(s.Layers[0].Blob).String()))
			f.add(testimage.SignatureTag(img.Digest()), s)
		}, false, "not by any of the keys"},
		"bundle":                  {func(f *fake, _ string) { bundle(f, key, img, testimage.SignPredicate) }, true, ""},
		"bundle by another key":   {func(f *fake, _ string) { bundle(f, stranger, img, testimage.SignPredicate) }, false, "any of the keys"},
		"bundle of another image": {func(f *fake, _ string) { bundle(f, key, other, testimage.SignPredicate) }, false, "has no signature"},
		"a list of parts":         {func(f *fake, _ string) { bundle(f, key, img, "https://spdx.dev/Document") }, false, "and not a signature"},
		"registry is unwell": {func(f *fake, _ string) {
			f.before = func(w http.ResponseWriter, r *http.Request) bool {
				if !strings.HasSuffix(r.URL.Path, ".sig") {
					return false
				}
				w.WriteHeader(http.StatusBadGateway)
				return true
			}
		}, false, "look for signatures"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			f.add("v1", img)
			repository := f.host() + "/a"
			c.sign(f, repository)
			s := openWith(t, func(o *Options) {
				o.Policy = []verify.Rule{{Pattern: "*", Require: verify.Nothing}, {Pattern: repository, Require: verify.BySignature, Keys: []string{file}}}
			})
			got, err := s.Pull(context.Background(), repository+":v1", PullOptions{})
			if c.ok {
				if err != nil || s.Admit(got.ID, repository+":v1") != nil {
					t.Errorf("refused: %v, %v", err, s.Admit(got.ID, repository+":v1"))
				}
				return
			}
			want := kind.PermissionDenied
			if name == "registry is unwell" {
				want = kind.Unavailable
			}
			if !kind.Is(err, want) || !strings.Contains(err.Error(), c.text) || errors.Is(err, ErrRefused) != (want == kind.PermissionDenied) {
				t.Errorf("kind %v: %v", kind.Of(err), err)
			}
			if len(f.asked("/blobs/"+digest.FromBytes(img.Layers[0].Blob).String())) > 0 {
				t.Error("a layer was fetched")
			}
			clean(t, s)
		})
	}
}

// TestPolicyIndex: the signature may be of the index, or of this node's image
// in it.
func TestPolicyIndex(t *testing.T) {
	key, file := signer(t)
	img := smallImage(t)
	for _, whole := range []bool{true, false} {
		f := newFake(t)
		f.add("v1", img)
		signed := index(t, f, "many", img)
		if !whole {
			signed = img.Digest()
		}
		f.add(testimage.SignatureTag(signed), must[testimage.Image](t)(testimage.Signature(key, f.host()+"/a", signed)))
		s := openWith(t, func(o *Options) {
			o.Policy = []verify.Rule{{Pattern: "*", Require: verify.BySignature, Keys: []string{file}}}
		})
		if _, err := s.Pull(context.Background(), f.host()+"/a:many", PullOptions{}); err != nil {
			t.Errorf("signature of the whole index %v: %v", whole, err)
		}
	}
}

// TestPolicyStored: an image that is here by another name, or from before there
// was a rule, does not get round the rule.
func TestPolicyStored(t *testing.T) {
	key, file := signer(t)
	f := newFake(t)
	img := smallImage(t)
	f.add("v1", img)
	ctx := context.Background()
	root := filepath.Join(t.TempDir(), "images")
	rules := []verify.Rule{
		{Pattern: f.host() + "/signed", Require: verify.BySignature, Keys: []string{file}},
		{Pattern: f.host() + "/never*", Require: verify.RefusedAlways},
	}
	s := openWith(t, func(o *Options) { o.Root = root })
	id := must[Image](t)(s.Pull(ctx, f.host()+"/signed:v1", PullOptions{})).ID
	if err := s.SetPolicy(rules); err != nil {
		t.Fatal(err)
	}
	denied := func(what string, err error) {
		t.Helper()
		if !kind.Is(err, kind.PermissionDenied) || !errors.Is(err, ErrRefused) {
			t.Errorf("%s: %v", what, err)
		}
	}
	_, err := s.Mount(ctx, MountRequest{ID: "c1", ImageID: id, Name: f.host() + "/signed:v1"})
	denied("mount of an image from before the rule", err)
	_, err = s.Mount(ctx, MountRequest{ID: "c1", ImageID: id})
	denied("mount by the id alone", err)
	_, err = s.Pull(ctx, f.host()+"/signed:v1", PullOptions{})
	denied("pull again", err)
	_, err = s.Pull(ctx, f.host()+"/never/mind:v1", PullOptions{})
	denied("pull of what is always refused", err)
	if n := len(f.asked("/never/")); n > 0 {
		t.Errorf("the registry was asked %d times for what is refused anyway", n)
	}
	// By a name that needs no signature it may run, by the other it may not.
	must[Image](t)(s.Pull(ctx, f.host()+"/free:v1", PullOptions{}))
	if err := s.Admit(id, f.host()+"/free:v1"); err != nil {
		t.Error(err)
	}
	denied("by the name with a rule", s.Admit(id, f.host()+"/signed@"+img.Digest().String()))
	if len(s.Mounts()) > 0 {
		t.Errorf("mounts %v", s.Mounts())
	}
	f.add(testimage.SignatureTag(img.Digest()), must[testimage.Image](t)(testimage.Signature(key, f.host()+"/signed", img.Digest())))
	must[Image](t)(s.Pull(ctx, f.host()+"/signed:v1", PullOptions{}))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	// Who signed it is remembered, and counts only while the key does.
	_, strange := signer(t)
	s = openWith(t, func(o *Options) { o.Root, o.Policy = root, rules })
	must[string](t)(s.Mount(ctx, MountRequest{ID: "c1", ImageID: id, Name: f.host() + "/signed:v1"}))
	rules[0].Keys = []string{strange}
	if err := s.SetPolicy(rules); err != nil {
		t.Fatal(err)
	}
	denied("by a key that does not count any more", s.Admit(id, f.host()+"/signed:v1"))
	if err := s.SetPolicy([]verify.Rule{{Pattern: "*", Require: verify.BySignature, Keys: []string{"/nonexistent"}}}); err == nil {
		t.Error("a key that does not exist was taken")
	}
	denied("the policy of before stands", s.Admit(id, f.host()+"/signed:v1"))
	if err := s.Unmount(ctx, "c1"); err != nil {
		t.Error(err)
	}
}
