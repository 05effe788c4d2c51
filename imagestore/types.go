// Package imagestore keeps images: it pulls them from OCI registries into
// layers that are stored once, unpacked, by diff id, assembles root
// filesystems from them, and frees what nothing uses any more.
package imagestore

import (
	"io"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"noded.dev/noded/internal/idmap"
)

// Image is one stored, verified image. Values are shared and never changed.
type Image struct {
	ID       string        // digest of its config: "sha256:…"; what the CRI calls image_ref; of an artifact the manifest's
	Tags     []string      // "docker.io/library/busybox:latest", sorted
	Digests  []string      // "docker.io/library/busybox@sha256:…", sorted
	Size     int64         // bytes of its unpacked layers plus config and manifest, > 0
	Config   ocispec.Image // parsed config
	Manifest string        // digest of the manifest it came by
	Artifact string        // type of an OCI artifact, which can be mounted but not run; "" for an image
	Pinned   bool          // never garbage collected by the kubelet
	PulledAt time.Time
}

// Auth is what a pull request brings; at most one form is used, in this order.
type Auth struct {
	Username, Password string
	Encoded            string // base64 of "user:password" (the CRI's `auth`)
	ServerAddress      string // registry these are for; "" any
	IdentityToken      string // refresh token
	RegistryToken      string // bearer token, used as it is
}

// PullOptions tunes one pull.
type PullOptions struct {
	Auth      *Auth          // nil: the namespace's credentials, the node's, then anonymous
	Namespace string         // of the pod that the image is for; "" none
	Progress  func(Progress) // nil: none; called at most ten times a second
}

// Progress is how far a pull has come.
type Progress struct {
	Reference string
	Host      string // the registry host in use
	Done      int64  // compressed bytes received, cached layers counted whole
	Total     int64  // compressed bytes of all layers; 0 until the manifest is read
	Layers    int
	Ready     int    // layers verified and durable
	Status    string // "resolving", "pulling", "done", or an error's text
	Started   time.Time
}

// Usage is space taken, measured and not estimated.
type Usage struct {
	Path   string // mount point or folder it was measured at
	Bytes  uint64
	Inodes uint64
}

// MountRequest asks for a container's root filesystem.
type MountRequest struct {
	ID       string // container id: names the writable layer
	ImageID  string // Image.ID
	Name     string // what the user called the image, for the policy; "" not known
	ReadOnly bool   // no writable layer content will be kept

	// UserNS, if set, is the user namespace that the container lives in. The
	// root filesystem shows the image's owners as ids inside, and what the
	// container writes belongs to the node's ids for those.
	UserNS *UserNS

	Diff io.Reader // what the writable layer has at first, as Diff writes it; nil nothing
}

// UserNS is a pod's user namespace.
type UserNS struct {
	Path string // where it is pinned
	IDs  idmap.Mapping
}
