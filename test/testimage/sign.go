package testimage

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// SignatureTag is where cosign keeps the signatures of a digest.
func SignatureTag(d digest.Digest) string { return ReferrersTag(d) + ".sig" }

// ReferrersTag is where clients keep the list of what refers to a digest, with
// registries that have no call for it.
func ReferrersTag(d digest.Digest) string { return strings.Replace(d.String(), ":", "-", 1) }

// Signature is an image that holds a signature as cosign writes it: a layer
// with the text that names the image, and the signature in an annotation.
func Signature(key *ecdsa.PrivateKey, repository string, d digest.Digest) (Image, error) {
	payload := fmt.Appendf(nil, `{"critical":{"identity":{"docker-reference":%q},"image":{"docker-manifest-digest":%q},"type":"cosign container image signature"},"optional":null}`, repository, d)
	value, err := sign(key, payload)
	if err != nil {
		return Image{}, err
	}
	const mediaType = "application/vnd.dev.cosign.simplesigning.v1+json"
	config := fmt.Appendf(nil, `{"architecture":"","os":"","config":{},"rootfs":{"type":"layers","diff_ids":[%q]}}`, digest.FromBytes(payload))
	return manifestOf(ocispec.Manifest{
		Config: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromBytes(config), Size: int64(len(config))},
		Layers: []ocispec.Descriptor{{
			MediaType: mediaType, Digest: digest.FromBytes(payload), Size: int64(len(payload)),
			Annotations: map[string]string{"dev.cosignproject.cosign/signature": base64.StdEncoding.EncodeToString(value)},
		}},
	}, config, payload)
}

// BundleType is the media type of sigstore bundles.
const BundleType = "application/vnd.dev.sigstore.bundle.v0.3+json"

// SignPredicate is the type of statement that a signature is.
const SignPredicate = "https://sigstore.dev/cosign/sign/v1"

// Bundle is an artifact that refers to an image of the given digest and size
// and holds a sigstore bundle: a signed statement about the image.
func Bundle(key *ecdsa.PrivateKey, of Image, predicate string) (Image, error) {
	const payloadType = "application/vnd.in-toto+json"
	statement := fmt.Sprintf(`{"_type":"https://in-toto.io/Statement/v1","subject":[{"digest":{"sha256":%q}}],"predicateType":%q,"predicate":{}}`, of.Digest().Encoded(), predicate)
	value, err := sign(key, fmt.Appendf(nil, "DSSEv1 %d %s %d %s", len(payloadType), payloadType, len(statement), statement))
	if err != nil {
		return Image{}, err
	}
	bundle := fmt.Appendf(nil, `{"mediaType":%q,"verificationMaterial":{"publicKey":{"hint":"x"}},"dsseEnvelope":{"payload":%q,"payloadType":%q,"signatures":[{"sig":%q}]}}`,
		BundleType, base64.StdEncoding.EncodeToString([]byte(statement)), payloadType, base64.StdEncoding.EncodeToString(value))
	subject := of.Descriptor()
	subject.Platform = nil
	return manifestOf(ocispec.Manifest{
		ArtifactType: BundleType, Config: ocispec.DescriptorEmptyJSON, Subject: &subject,
		Layers: []ocispec.Descriptor{{MediaType: BundleType, Digest: digest.FromBytes(bundle), Size: int64(len(bundle))}},
	}, []byte("{}"), bundle)
}

// Referrers is the index of what refers to an image.
func Referrers(bundles ...Image) ([]byte, error) {
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	for _, b := range bundles {
		index.Manifests = append(index.Manifests, ocispec.Descriptor{
			MediaType: b.MediaType, Digest: b.Digest(), Size: int64(len(b.Manifest)), ArtifactType: BundleType,
		})
	}
	return json.Marshal(index)
}

func manifestOf(m ocispec.Manifest, config, blob []byte) (Image, error) {
	m.SchemaVersion, m.MediaType = 2, ocispec.MediaTypeImageManifest
	data, err := json.Marshal(m)
	return Image{Manifest: data, MediaType: m.MediaType, Config: config, Layers: []Layer{{Blob: blob}}}, err
}

func sign(key *ecdsa.PrivateKey, text []byte) ([]byte, error) {
	sum := sha256.Sum256(text)
	return ecdsa.SignASN1(rand.Reader, key, sum[:])
}
