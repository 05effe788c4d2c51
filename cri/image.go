package cri

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	api "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/imagestore"
	"noded.dev/noded/internal/kind"
	"noded.dev/noded/internal/userdb"
)

// imageRequest and podRequest are what the interceptor logs of requests.
type (
	imageRequest interface{ GetImage() *api.ImageSpec }
	podRequest   interface{ GetConfig() *api.PodSandboxConfig }
)

// ListImages lists all images, or the one that the filter names.
func (s *Server) ListImages(_ context.Context, req *api.ListImagesRequest) (*api.ListImagesResponse, error) {
	images, err := s.listImages(req.Filter)
	if err != nil {
		return nil, err
	}
	return &api.ListImagesResponse{Images: images}, nil
}

func (s *Server) listImages(filter *api.ImageFilter) ([]*api.Image, error) {
	if filter.GetImage().GetImage() == "" {
		var images []*api.Image
		for _, image := range s.images.List() {
			images = append(images, describe(image))
		}
		return images, nil
	}
	if err := s.checkSpec(filter.Image); err != nil {
		return nil, err
	}
	image, err := s.images.Lookup(filter.Image.Image)
	switch {
	case kind.Is(err, kind.NotFound):
		return nil, nil
	case err != nil:
		return nil, err
	}
	return []*api.Image{describe(image)}, nil
}

// ImageStatus describes one image; one that is not there is no error.
func (s *Server) ImageStatus(_ context.Context, req *api.ImageStatusRequest) (*api.ImageStatusResponse, error) {
	if err := s.checkSpec(req.Image); err != nil {
		return nil, err
	}
	image, err := s.images.Lookup(req.Image.Image)
	switch {
	case kind.Is(err, kind.NotFound):
		return &api.ImageStatusResponse{}, nil
	case err != nil:
		return nil, err
	}
	if s.images.Admit(image.ID, req.Image.Image) != nil && !byID(image, req.Image.Image) {
		// Under this name it must be pulled before it can be run: the pull looks
		// for the signature that is required now, or says why there is none.
		return &api.ImageStatusResponse{}, nil
	}
	resp := &api.ImageStatusResponse{Image: describe(image)}
	if req.Verbose {
		text, err := json.Marshal(map[string]any{
			"imageSpec": image.Config, "manifest": image.Manifest, "artifactType": image.Artifact, "pulledAt": image.PulledAt.UTC().Format(time.RFC3339),
		})
		if err != nil {
			return nil, fmt.Errorf("describe image %s: %w", image.ID, err)
		}
		resp.Info = map[string]string{"info": string(text)}
	}
	return resp, nil
}

// PullImage pulls an image and returns its id, which is also what ListImages,
// ImageStatus and ListContainers call it: the kubelet compares them.
func (s *Server) PullImage(ctx context.Context, req *api.PullImageRequest) (*api.PullImageResponse, error) {
	if err := s.checkSpec(req.Image); err != nil {
		return nil, err
	}
	image, err := s.images.Pull(ctx, req.Image.Image, imagestore.PullOptions{
		Auth: credentials(req.Auth), Namespace: req.SandboxConfig.GetMetadata().GetNamespace(),
	})
	if err != nil {
		return nil, pullError(err)
	}
	return &api.PullImageResponse{ImageRef: image.ID}, nil
}

// RemoveImage removes an image with all its tags; one that is not there is
// removed already.
func (s *Server) RemoveImage(ctx context.Context, req *api.RemoveImageRequest) (*api.RemoveImageResponse, error) {
	if err := s.checkSpec(req.Image); err != nil {
		return nil, err
	}
	if err := s.images.Remove(ctx, req.Image.Image); err != nil && !kind.Is(err, kind.NotFound) {
		return nil, err
	}
	return &api.RemoveImageResponse{}, nil
}

// ImageFsInfo measures the file systems of images and of containers' writable
// layers. Where both are one, both lists are the same: the kubelet tells one
// from two by the mount points.
func (s *Server) ImageFsInfo(ctx context.Context, _ *api.ImageFsInfoRequest) (*api.ImageFsInfoResponse, error) {
	images, err := s.images.Usage()
	if err != nil {
		return nil, err
	}
	containers, err := s.images.ContainerUsage(ctx)
	if err != nil {
		return nil, err
	}
	return &api.ImageFsInfoResponse{ImageFilesystems: usageList(images), ContainerFilesystems: usageList(containers)}, nil
}

func usageList(u imagestore.Usage) []*api.FilesystemUsage {
	return []*api.FilesystemUsage{{
		Timestamp:  time.Now().UnixNano(),
		FsId:       &api.FilesystemIdentifier{Mountpoint: u.Path},
		UsedBytes:  &api.UInt64Value{Value: u.Bytes},
		InodesUsed: &api.UInt64Value{Value: u.Inodes},
	}}
}

func byID(image imagestore.Image, name string) bool {
	return strings.HasPrefix(image.ID, name) || strings.HasPrefix(image.ID, "sha256:"+name)
}

// checkSpec refuses what names no image, or a runtime handler that is unknown.
// A known one changes nothing, and is not told back: all handlers share the
// images, and the kubelet's collector takes an image for unused that is listed
// under another handler than the containers made from it.
func (s *Server) checkSpec(spec *api.ImageSpec) error {
	if err := checkImage(spec); err != nil {
		return err
	}
	return s.checkHandler(spec.RuntimeHandler)
}

// checkHandler refuses an image for a runtime handler that is not configured.
func (s *Server) checkHandler(name string) error {
	if name == "" {
		return nil
	}
	for _, h := range s.sandboxes.Status().Handlers {
		if h.Name == name {
			return nil
		}
	}
	return kind.Errorf(kind.NotFound, "runtime handler %.128q is not configured", name)
}

func credentials(a *api.AuthConfig) *imagestore.Auth {
	if a == nil {
		return nil
	}
	auth := imagestore.Auth{
		Username: a.Username, Password: a.Password, Encoded: a.Auth, ServerAddress: a.ServerAddress,
		IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken,
	}
	if auth == (imagestore.Auth{ServerAddress: a.ServerAddress}) {
		return nil // brings nothing
	}
	return &auth
}

func describe(image imagestore.Image) *api.Image {
	d := &api.Image{
		Id:          image.ID,
		RepoTags:    image.Tags,
		RepoDigests: image.Digests,
		Size:        uint64(max(image.Size, 0)),
		Spec:        &api.ImageSpec{Image: image.ID},
		Pinned:      image.Pinned,
	}
	if uid, name := imageUser(image.Config.Config.User); name != "" {
		d.Username = name
	} else if uid >= 0 {
		d.Uid = &api.Int64Value{Value: uid}
	}
	return d
}

// imageUser is an image's USER as a numeric id, or -1, and a name. The kubelet
// refuses runAsNonRoot for uid 0 and for names, so what no container could run
// as is given as the name that it is.
func imageUser(text string) (uid int64, name string) {
	id, name, err := userdb.ImageUser(text)
	switch {
	case err != nil:
		user, _, _ := strings.Cut(text, ":")
		return -1, user
	case id != nil:
		return *id, ""
	}
	return -1, name
}
