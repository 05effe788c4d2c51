package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// maxReply is far above what a full node's lists need; gRPC's own default of
// 4 MiB is not enough for some hundred pods.
const maxReply = 256 << 20

// client talks to a CRI runtime, noded or another.
type client struct {
	cri.RuntimeServiceClient
	images cri.ImageServiceClient
	conn   *grpc.ClientConn
}

func (a *app) connect() (*client, error) {
	conn, err := grpc.NewClient(a.listen,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithUnaryInterceptor(withDeadline),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxReply)))
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", a.listen, err)
	}
	return &client{cri.NewRuntimeServiceClient(conn), cri.NewImageServiceClient(conn), conn}, nil
}

// callLimit is what a call may take: the kubelet's own limit for making a pod
// (twice its runtime-request-timeout of two minutes).
const callLimit = 4 * time.Minute

// withDeadline bounds every call but a pull, which may take as long as it
// makes progress, and a stop, whose grace period the user chose.
func withDeadline(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	switch req.(type) {
	case *cri.PullImageRequest, *cri.StopContainerRequest:
	default:
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, callLimit)
		defer cancel()
	}
	return invoke(ctx, method, req, reply, cc, opts...)
}

// withClient runs f with a connection.
func (a *app) withClient(f func(*client) error) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	return errors.Join(f(c), c.conn.Close())
}

// runLabel marks pods that `noded run` made: a pod with one container, which
// stop and rm treat as one thing.
const runLabel = "noded.dev/run"

// errNotFound is a name that nothing has.
type errNotFound struct{ what, name string }

func (e errNotFound) Error() string { return fmt.Sprintf("no %s %q", e.what, e.name) }

// findContainer finds a container as people name them: its name, the start of
// its id, or pod/name. Of several with the same name (the attempts of a
// restarting container), the one that runs counts, then the newest.
func (c *client) findContainer(ctx context.Context, name string) (*cri.Container, error) {
	containers, err := c.listContainers(ctx, nil)
	if err != nil {
		return nil, err
	}
	pods, err := c.podNames(ctx)
	if err != nil {
		return nil, err
	}
	return pickContainer(containers, pods, name)
}

func pickContainer(containers []*cri.Container, pods map[string]string, name string) (*cri.Container, error) {
	var byName, byID []*cri.Container
	for _, ctr := range containers {
		switch own := ctr.GetMetadata().GetName(); {
		case ctr.GetId() == name:
			return ctr, nil
		case own == name, pods[ctr.GetPodSandboxId()]+"/"+own == name:
			byName = append(byName, ctr)
		case strings.HasPrefix(ctr.GetId(), name):
			byID = append(byID, ctr)
		}
	}
	found := newestOfEachPod(byName)
	if len(found) == 0 {
		found = byID
	}
	switch len(found) {
	case 0:
		return nil, errNotFound{"container", name}
	case 1:
		return found[0], nil
	}
	var options []string
	for _, ctr := range found {
		options = append(options, fmt.Sprintf("%s (%s/%s)", shortID(ctr.GetId()), pods[ctr.GetPodSandboxId()], ctr.GetMetadata().GetName()))
	}
	return nil, fmt.Errorf("%q is not one container: it can be %s; say pod/container or an id", name, strings.Join(options, ", "))
}

// newestOfEachPod keeps, per pod, the running container or else the newest.
func newestOfEachPod(list []*cri.Container) []*cri.Container {
	slices.SortFunc(list, func(a, b *cri.Container) int {
		running := func(c *cri.Container) int {
			if c.GetState() == cri.ContainerState_CONTAINER_RUNNING {
				return 0
			}
			return 1
		}
		return cmp.Or(cmp.Compare(running(a), running(b)), cmp.Compare(b.GetCreatedAt(), a.GetCreatedAt()))
	})
	seen := map[string]bool{}
	return slices.DeleteFunc(list, func(c *cri.Container) bool {
		again := seen[c.GetPodSandboxId()]
		seen[c.GetPodSandboxId()] = true
		return again
	})
}

// findPod finds a pod by name, namespace/name or the start of its id.
func (c *client) findPod(ctx context.Context, name string) (*cri.PodSandbox, error) {
	pods, err := c.listPods(ctx)
	if err != nil {
		return nil, err
	}
	return pickPod(pods, name)
}

func pickPod(pods []*cri.PodSandbox, name string) (*cri.PodSandbox, error) {
	var byName, byID []*cri.PodSandbox
	for _, p := range pods {
		switch m := p.GetMetadata(); {
		case p.GetId() == name:
			return p, nil
		case m.GetName() == name, m.GetNamespace()+"/"+m.GetName() == name:
			byName = append(byName, p)
		case strings.HasPrefix(p.GetId(), name):
			byID = append(byID, p)
		}
	}
	found := byName
	if len(found) == 0 {
		found = byID
	}
	switch len(found) {
	case 0:
		return nil, errNotFound{"pod", name}
	case 1:
		return found[0], nil
	}
	var options []string
	for _, p := range found {
		options = append(options, fmt.Sprintf("%s (%s/%s)", shortID(p.GetId()), p.GetMetadata().GetNamespace(), p.GetMetadata().GetName()))
	}
	return nil, fmt.Errorf("%q is not one pod: it can be %s; say namespace/pod or an id", name, strings.Join(options, ", "))
}

// target is what stop and rm act on: a container, or a pod with all it has.
type target struct {
	container *cri.Container // nil: the pod
	pod       *cri.PodSandbox
}

// find looks for a container first and for a pod then. The container of a pod
// that `noded run` made stands for its pod.
func (c *client) find(ctx context.Context, name string) (target, error) {
	pods, err := c.listPods(ctx)
	if err != nil {
		return target{}, err
	}
	containers, err := c.listContainers(ctx, nil)
	if err != nil {
		return target{}, err
	}
	ctr, err := pickContainer(containers, namesOf(pods), name)
	var missing errNotFound
	if errors.As(err, &missing) {
		pod, err := pickPod(pods, name)
		if errors.As(err, &missing) {
			return target{}, errNotFound{"container or pod", name}
		}
		return target{pod: pod}, err
	}
	if err != nil {
		return target{}, err
	}
	i := slices.IndexFunc(pods, func(p *cri.PodSandbox) bool { return p.GetId() == ctr.GetPodSandboxId() })
	if i < 0 {
		return target{container: ctr}, nil
	}
	if pods[i].GetLabels()[runLabel] != "" {
		return target{pod: pods[i]}, nil
	}
	return target{container: ctr, pod: pods[i]}, nil
}

// podNames maps pod ids to names.
func (c *client) podNames(ctx context.Context) (map[string]string, error) {
	pods, err := c.listPods(ctx)
	return namesOf(pods), err
}

func namesOf(pods []*cri.PodSandbox) map[string]string {
	names := map[string]string{}
	for _, p := range pods {
		names[p.GetId()] = p.GetMetadata().GetName()
	}
	return names
}
