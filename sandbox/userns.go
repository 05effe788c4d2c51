package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/imagestore"
	"noded.dev/noded/internal/idmap"
	"noded.dev/noded/internal/kind"
	"noded.dev/noded/internal/namespace"
	"noded.dev/noded/runtime"
	"noded.dev/noded/spec"
)

// userNSProblem says why this node's pods cannot have user namespaces of their
// own; nil if they can, where the runtime handler can too.
func userNSProblem(images Images, root string) error {
	if err := images.Mapped(); err != nil {
		return err
	}
	if real, err := filepath.EvalSymlinks(root); err == nil {
		root = real
	}
	return idmap.Passable(root)
}

// checkUserNS refuses a pod with a user namespace where there can be none.
func (m *Manager) checkUserNS(config *cri.PodSandboxConfig, handler runtime.HandlerInfo) error {
	switch {
	case spec.UserNamespace(config) == nil:
		return nil
	case m.noUserNS != nil:
		return kind.Errorf(kind.Precondition, "user namespaces: %w", m.noUserNS)
	case !handler.UserNS:
		return kind.Errorf(kind.Precondition, "runtime handler %s (%s %s) has no user namespaces with mapped mounts", handler.Name, handler.Path, handler.Version)
	}
	return nil
}

// userNS is the pod's user namespace; nil if it has the node's.
func (p *Pod) userNS() *imagestore.UserNS {
	ids := spec.UserNamespace(p.config)
	if ids == nil {
		return nil
	}
	return &imagestore.UserNS{Path: namespace.Path(p.paths.ns, namespace.User), IDs: *ids}
}

// podRoot is the node's user and group for files that the pod's root shall own.
func (p *Pod) podRoot() (uid, gid int, err error) {
	users := p.userNS()
	if users == nil {
		return 0, 0, nil
	}
	return users.IDs.Root()
}

// makeInitRoot makes the root of the shared PID namespace's init. In a user
// namespace the runtime, which makes mount points there, is the pod's root.
func (p *Pod) makeInitRoot() (string, error) {
	root := filepath.Join(p.paths.bundle(), "rootfs")
	if err := os.MkdirAll(root, 0o755); err != nil {
		return "", err
	}
	if p.userNS() == nil {
		return root, nil
	}
	uid, gid, err := p.podRoot()
	if err != nil {
		return "", err
	}
	return root, errors.Join(
		idmap.Pass(p.m.opts.Root), idmap.Pass(filepath.Dir(p.paths.root)), idmap.PassGroup(p.paths.root, gid), idmap.PassGroup(p.paths.bundle(), gid),
		os.Chown(root, uid, gid),
	)
}

// createRequest is request for a container that is being made. The streams
// belong to its user, or it could not open /dev/stdout.
func (c *creation) createRequest() (runtime.CreateRequest, error) {
	req := c.request()
	if users := c.pod.userNS(); users != nil {
		uid, err := users.IDs.User(c.user.UID)
		if err != nil {
			return req, err
		}
		req.StdioUID = uid
	}
	return req, nil
}

// mapTopOnly tries the mounts whose files' owners are to be mapped. It is true
// for those below which something is mounted that cannot be mapped: that is
// visible as it is then.
func (c *creation) mapTopOnly(ctx context.Context, sources []string) ([]bool, error) {
	list := make([]bool, len(sources))
	for i, m := range c.config.Mounts {
		ids := spec.MountMapping(m)
		if ids == nil || m.GetImage().GetImage() != "" {
			continue // an image is mounted mapped
		}
		users, err := c.pod.openMap(*ids)
		if err == nil {
			list[i], err = tryMap(ctx, sources[i], users)
		}
		if err != nil {
			return nil, fmt.Errorf("mount %s: %w", m.ContainerPath, err)
		}
	}
	return list, nil
}

// openMap opens a user namespace with the map, usually the pod's own.
func (p *Pod) openMap(ids idmap.Mapping) (*os.File, error) {
	if users := p.userNS(); users != nil && users.IDs == ids {
		return os.Open(users.Path)
	}
	return namespace.NewUser(ids)
}

// tryMap closes users. Like hostPath it does not wait longer than ctx for a
// file system that never answers.
func tryMap(ctx context.Context, source string, users *os.File) (topOnly bool, err error) {
	type result struct {
		topOnly bool
		err     error
	}
	done := make(chan result, 1)
	go func() {
		defer users.Close()
		tree, err := idmap.Clone(source, users, true)
		top := kind.Is(err, kind.Precondition)
		if top {
			tree, err = idmap.Clone(source, users, false)
		}
		if err == nil {
			err = tree.Close()
		}
		done <- result{top, err}
	}()
	select {
	case r := <-done:
		return r.topOnly, r.err
	case <-ctx.Done():
		return false, fmt.Errorf("host path %s does not answer: %w", source, ctx.Err())
	}
}
