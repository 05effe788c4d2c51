package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/test/node"
	"noded.dev/noded/test/testimage"
)

// newSigner makes a key and the file of its public half.
func newSigner(t *testing.T) (*ecdsa.PrivateKey, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	must(t, err)
	file := filepath.Join(t.TempDir(), "key.pub")
	must(t, os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o600))
	return key, file
}

// wantUnsigned checks that a pull failed as the kubelet shows an image whose
// signature is missing.
func wantUnsigned(t *testing.T, err error) {
	t.Helper()
	wantCode(t, err, codes.Unknown)
	if err == nil || !strings.Contains(err.Error(), "desc = SignatureValidationFailed: ") {
		t.Errorf("error %v", err)
	}
}

// TestImageSignature pulls and runs images of a repository that wants a
// signature, with a real one in a real registry.
func TestImageSignature(t *testing.T) {
	skipOnPeer(t, "it has no rules of its own")
	key, file := newSigner(t)
	stranger, _ := newSigner(t)
	img, err := testimage.New(&ocispec.ImageConfig{Env: []string{"PATH=/bin"}}, layer(t, shell(t)...))
	must(t, err)
	must(t, testimage.Push(registry.Host, "team/app", "1", img))
	must(t, testimage.Push(registry.Host, "free/app", "1", img))
	rule := fmt.Sprintf("[images.verify.\"registry.test/team/*\"]\nrequire = \"signature\"\nkeys = [%q]\n", file)
	n := configured(t, rule)
	layers := func() int {
		entries, err := os.ReadDir(filepath.Join(n.Root, "images/layers"))
		must(t, err)
		return len(entries)
	}
	sign := func(k *ecdsa.PrivateKey, repository string) {
		signature, err := testimage.Signature(k, repository, img.Digest())
		must(t, err)
		must(t, testimage.Push(registry.Host, "team/app", testimage.SignatureTag(img.Digest()), signature))
	}
	_, err = n.Pull("registry.test/team/app:1")
	wantUnsigned(t, err)
	sign(stranger, "registry.test/team/app")
	_, err = n.Pull("registry.test/team/app:1")
	wantUnsigned(t, err)
	sign(key, "registry.test/other/app")
	_, err = n.Pull("registry.test/team/app:1")
	wantUnsigned(t, err)
	if layers() > 0 || imageStatus(t, n, img.ID()) != nil {
		t.Error("something of a refused image is stored")
	}
	// The same image by a name without a rule is no way round it.
	_, err = n.Pull("registry.test/free/app:1")
	must(t, err)
	_, err = n.Pull("registry.test/team/app:1")
	wantUnsigned(t, err)
	sign(key, "registry.test/team/app")
	id, err := n.Pull("registry.test/team/app:1")
	must(t, err)
	p := n.RunPod(t)
	c := p.Run(t, "sleep 1000", func(c *cri.ContainerConfig) {
		c.Image = &cri.ImageSpec{Image: id, UserSpecifiedImage: "registry.test/team/app:1"}
	})
	must(t, c.Remove())
}

// TestImageSignatureBundle: a signature as an artifact that refers to the image,
// listed under a tag by a registry without a call for that.
func TestImageSignatureBundle(t *testing.T) {
	skipOnPeer(t, "it has no rules of its own")
	key, file := newSigner(t)
	img, err := testimage.New(nil, layer(t, testimage.Entry{Name: "file", Body: "bundle"}))
	must(t, err)
	must(t, testimage.Push(registry.Host, "bundled", "1", img))
	n := configured(t, fmt.Sprintf("[images.verify.\"registry.test/*\"]\nrequire = \"signature\"\nkeys = [%q]\n", file))
	_, err = n.Pull("registry.test/bundled:1")
	wantUnsigned(t, err)
	bundle, err := testimage.Bundle(key, img, testimage.SignPredicate)
	must(t, err)
	must(t, testimage.Push(registry.Host, "bundled", bundle.Digest().String(), bundle))
	list, err := testimage.Referrers(bundle)
	must(t, err)
	must(t, testimage.PushManifest(registry.Host, "bundled", testimage.ReferrersTag(img.Digest()), ocispec.MediaTypeImageIndex, list))
	_, err = n.Pull("registry.test/bundled:1")
	must(t, err)
}

// TestImageRules: rules come into force by a reload, also for images that are
// here already; a rule without its key does not.
func TestImageRules(t *testing.T) {
	skipOnPeer(t, "it has no rules of its own")
	_, file := newSigner(t)
	n := configured(t, "")
	id, err := n.Pull("registry.test/busybox:1")
	must(t, err)
	p := n.RunPod(t)
	create := func(name string) error {
		config := node.ContainerConfig("c", "true")
		config.Image = &cri.ImageSpec{Image: id, UserSpecifiedImage: name}
		c, err := p.TryCreate(config)
		if err == nil {
			must(t, c.Remove())
		}
		return err
	}
	must(t, create("registry.test/busybox:1"))
	signed := fmt.Sprintf("[images.verify.\"registry.test/*\"]\nrequire = \"signature\"\nkeys = [%q]\n", file)
	refused := "[images.verify.\"*\"]\nrequire = \"refuse\"\n"
	for _, rules := range []string{signed, refused} {
		hangUp(t, n, rules, "changed key is in force")
		for _, name := range []string{"registry.test/busybox:1", ""} {
			wantCode(t, create(name), codes.PermissionDenied)
		}
		// By its name it is as if it were not here, so that the kubelet pulls and
		// tells why not; by its id it can be looked at and removed.
		if imageStatus(t, n, "registry.test/busybox:1") != nil || imageStatus(t, n, id) == nil {
			t.Error("status by name or by id")
		}
		_, err = n.Pull("registry.test/busybox:1")
		wantUnsigned(t, err)
	}
	hangUp(t, n, strings.ReplaceAll(signed, file, "/nonexistent.pub"), "configuration is not reloaded")
	wantCode(t, create("registry.test/busybox:1"), codes.PermissionDenied)
	out, err := exec.Command(binary, "config", "validate", "--config", filepath.Join(n.Dir, "config.toml")).CombinedOutput()
	if err == nil || !strings.Contains(string(out), `images.verify."registry.test/*".keys: stat /nonexistent.pub`) {
		t.Errorf("validate: %v\n%s", err, out)
	}
	hangUp(t, n, "", "changed key is in force")
	must(t, create("registry.test/busybox:1"))
	removeImage(t, n, "registry.test/busybox:1")
}
