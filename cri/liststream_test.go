package cri

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	api "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/imagestore"
)

// sized is a container whose encoding has about n bytes.
func sized(id string, n int) *api.Container {
	return &api.Container{Id: id, Annotations: map[string]string{"a": strings.Repeat("x", n)}}
}

func TestBatches(t *testing.T) {
	for name, c := range map[string]struct {
		sizes []int
		parts []int // items of each part
	}{
		"empty":               {nil, nil},
		"one":                 {[]int{10}, []int{1}},
		"many small":          {slices.Repeat([]int{100}, 1000), []int{1000}},
		"large one first":     {[]int{2 * batchBytes, 10, 10}, []int{1, 2}},
		"large one last":      {[]int{10, 10, 2 * batchBytes}, []int{2, 1}},
		"only large ones":     {[]int{batchBytes, batchBytes, batchBytes}, []int{1, 1, 1}},
		"two halves and more": {[]int{batchBytes/2 - 100, batchBytes/2 - 100, 300}, []int{2, 1}},
	} {
		var items []*api.Container
		for i, n := range c.sizes {
			items = append(items, sized(fmt.Sprint(i), n))
		}
		var parts []int
		var joined []*api.Container
		for _, part := range batches(items) {
			parts = append(parts, len(part))
			joined = append(joined, part...)
			if n := proto.Size(&api.StreamContainersResponse{Containers: part}); len(part) > 1 && n > batchBytes {
				t.Errorf("%s: a message of %d items has %d bytes", name, len(part), n)
			}
		}
		if !slices.Equal(parts, c.parts) || !slices.Equal(joined, items) {
			t.Errorf("%s: parts of %d items, want %d; the order kept: %v", name, parts, c.parts, slices.Equal(joined, items))
		}
	}
}

// collect reads a stream to its end; it returns the items of each message.
func collect[R any](t *testing.T, stream grpc.ServerStreamingClient[R], err error) []*R {
	t.Helper()
	var messages []*R
	for err == nil {
		var m *R
		if m, err = stream.Recv(); err == nil {
			messages = append(messages, m)
		}
	}
	if !errors.Is(err, io.EOF) {
		t.Fatalf("stream ended with %v", err)
	}
	return messages
}

func limited(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// Five thousand containers with long annotations are too much for one message,
// which the unary call says, and nothing for the stream.
func TestListBeyondTheLimit(t *testing.T) {
	e := newEdge(t)
	for i := range 5000 {
		e.sandboxes.containers = append(e.sandboxes.containers, sized(fmt.Sprintf("%064d", i), 4<<10))
	}
	_, err := e.runtime.ListContainers(limited(t), &api.ListContainersRequest{})
	if status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "StreamContainers") || !strings.Contains(err.Error(), "16777216 of a message (max_message)") {
		t.Fatalf("unary list: %v, want ResourceExhausted that names the limit and the stream", err)
	}
	stream, err := e.runtime.StreamContainers(limited(t), &api.StreamContainersRequest{})
	var got []*api.Container
	messages := collect(t, stream, err)
	for _, m := range messages {
		if n := proto.Size(m); n > batchBytes {
			t.Errorf("a message has %d bytes", n)
		}
		got = append(got, m.Containers...)
	}
	if len(got) != 5000 || len(messages) < 20 {
		t.Fatalf("%d containers in %d messages", len(got), len(messages))
	}
	for i, c := range got {
		if c.Id != e.sandboxes.containers[i].Id {
			t.Fatalf("container %d is %s", i, c.Id)
		}
	}
}

// Every stream hands on its filter and gives what its list gives.
func TestListStreams(t *testing.T) {
	e := newEdge(t)
	e.images.images = map[string]imagestore.Image{"one": {ID: "sha256:1"}, "two": {ID: "sha256:2"}}
	e.sandboxes.pods = []*api.PodSandbox{{Id: "p1"}, {Id: "p2"}}
	e.sandboxes.stats = []*api.ContainerStats{{Attributes: &api.ContainerAttributes{Id: "c1"}}}
	e.sandboxes.podStats = []*api.PodSandboxStats{{Attributes: &api.PodSandboxAttributes{Id: "p1"}}}

	pods, err := e.runtime.StreamPodSandboxes(limited(t), &api.StreamPodSandboxesRequest{Filter: &api.PodSandboxFilter{Id: "f1"}})
	if got := collect(t, pods, err); len(got) != 1 || len(got[0].PodSandboxes) != 2 || got[0].PodSandboxes[1].Id != "p2" {
		t.Errorf("pods: %v", got)
	}
	containers, err := e.runtime.StreamContainers(limited(t), &api.StreamContainersRequest{Filter: &api.ContainerFilter{PodSandboxId: "f2"}})
	if got := collect(t, containers, err); len(got) != 0 {
		t.Errorf("an empty list is a stream of %d messages", len(got))
	}
	stats, err := e.runtime.StreamContainerStats(limited(t), &api.StreamContainerStatsRequest{Filter: &api.ContainerStatsFilter{Id: "f3"}})
	if got := collect(t, stats, err); len(got) != 1 || got[0].ContainerStats[0].Attributes.Id != "c1" {
		t.Errorf("container stats: %v", got)
	}
	podStats, err := e.runtime.StreamPodSandboxStats(limited(t), &api.StreamPodSandboxStatsRequest{Filter: &api.PodSandboxStatsFilter{Id: "f4"}})
	if got := collect(t, podStats, err); len(got) != 1 || got[0].PodSandboxStats[0].Attributes.Id != "p1" {
		t.Errorf("pod stats: %v", got)
	}
	if got := e.sandboxes.called(); !slices.Equal(got, []string{"f1", "f2", "f3", "f4"}) {
		t.Errorf("filters: %q", got)
	}
	images, err := e.image.StreamImages(limited(t), &api.StreamImagesRequest{})
	if got := collect(t, images, err); len(got) != 1 || len(got[0].Images) != 2 {
		t.Errorf("images: %v", got)
	}
	one, err := e.image.StreamImages(limited(t), &api.StreamImagesRequest{Filter: &api.ImageFilter{Image: &api.ImageSpec{Image: "two"}}})
	if got := collect(t, one, err); len(got) != 1 || len(got[0].Images) != 1 || got[0].Images[0].Id != "sha256:2" {
		t.Errorf("filtered images: %v", got)
	}
	none, err := e.image.StreamImages(limited(t), &api.StreamImagesRequest{Filter: &api.ImageFilter{Image: &api.ImageSpec{Image: "three"}}})
	if got := collect(t, none, err); len(got) != 0 {
		t.Errorf("unknown image: %v", got)
	}
	bad, err := e.image.StreamImages(limited(t), &api.StreamImagesRequest{Filter: &api.ImageFilter{Image: &api.ImageSpec{Image: "BAD REF"}}})
	if err == nil {
		_, err = bad.Recv()
	}
	if status.Code(err) != codes.InvalidArgument {
		t.Errorf("malformed filter: %v", err)
	}
}

// What no message can carry is an error that names the limit, never left out.
func TestListStreamOfAGiant(t *testing.T) {
	e := newEdge(t)
	e.sandboxes.containers = []*api.Container{sized("small", 10), sized("giant", maxMessage)}
	stream, err := e.runtime.StreamContainers(limited(t), &api.StreamContainersRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if m, err := stream.Recv(); err != nil || m.Containers[0].Id != "small" {
		t.Fatalf("first message: %v, %v", m, err)
	}
	if _, err := stream.Recv(); status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "max_message") {
		t.Errorf("%v, want ResourceExhausted that names the limit", err)
	}
}

// A client that has stopped reading holds up neither the end of its call nor
// that of the server.
func TestStalledListStream(t *testing.T) {
	e := newEdge(t)
	for i := range 20 {
		e.sandboxes.containers = append(e.sandboxes.containers, sized(fmt.Sprint(i), batchBytes-200))
	}
	ctx, cancel := context.WithCancel(limited(t))
	for _, ctx := range []context.Context{ctx, limited(t)} {
		stream, err := e.runtime.StreamContainers(ctx, &api.StreamContainersRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	if c := <-e.calls; c.Method != "StreamContainers" || c.Code != "Canceled" {
		t.Errorf("cancelled call: %+v", c)
	}
	closed := make(chan struct{})
	go func() { e.server.Close(); close(closed) }()
	select {
	case <-closed:
	case <-time.After(10 * time.Second):
		t.Fatal("Close waits for a client that does not read")
	}
	if c := <-e.calls; c.Method != "StreamContainers" || c.Code != "Unavailable" {
		t.Errorf("call when the server closes: %+v", c)
	}
}
