package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/test/node"
)

// batchBytes is what a message of a streamed list has at most, if it has more
// than one item.
const batchBytes = 1 << 20

// readList reads a streamed list to its end, and checks its messages.
func readList[R, T any](t *testing.T, stream grpc.ServerStreamingClient[R], err error, items func(*R) []T) []T {
	t.Helper()
	var list []T
	for err == nil {
		var m *R
		if m, err = stream.Recv(); err != nil {
			break
		}
		part := items(m)
		if n := proto.Size(any(m).(proto.Message)); len(part) == 0 || len(part) > 1 && n > batchBytes {
			t.Errorf("a message of %d items has %d bytes", len(part), n)
		}
		list = append(list, part...)
	}
	if !errors.Is(err, io.EOF) {
		t.Fatalf("the stream ends with %v", err)
	}
	return list
}

func streamContainers(t *testing.T, n *node.Node, filter *cri.ContainerFilter) []*cri.Container {
	t.Helper()
	ctx, cancel := node.Context()
	defer cancel()
	stream, err := n.Runtime.StreamContainers(ctx, &cri.StreamContainersRequest{Filter: filter})
	return readList(t, stream, err, (*cri.StreamContainersResponse).GetContainers)
}

func sameMessages[T proto.Message](a, b []T) bool {
	return slices.EqualFunc(a, b, func(x, y T) bool { return proto.Equal(x, y) })
}

// TestStreamsAreLists compares each stream with its list, unfiltered and
// filtered.
func TestStreamsAreLists(t *testing.T) {
	skipOnPeer(t, "it is older than this")
	n := start(t)
	ctx, cancel := node.Context()
	defer cancel()
	p, other := n.RunPod(t), n.RunPod(t)
	c := p.Run(t, "sleep 1000")
	other.Run(t, "exit 0").WaitExit(t)
	for _, filter := range []*cri.ContainerFilter{nil, {PodSandboxId: p.ID}, {Id: c.ID[:13]}, {LabelSelector: c.Config.Labels},
		{State: &cri.ContainerStateValue{State: cri.ContainerState_CONTAINER_EXITED}}, {Id: strings.Repeat("f", 64)}} {
		if got, want := streamContainers(t, n, filter), containers(t, n, filter); !sameMessages(got, want) {
			t.Errorf("containers with %v: %v, want %v", filter, got, want)
		}
	}
	for _, filter := range []*cri.PodSandboxFilter{nil, {Id: p.ID}, {LabelSelector: p.Config.Labels}, {Id: strings.Repeat("f", 64)},
		{State: &cri.PodSandboxStateValue{State: cri.PodSandboxState_SANDBOX_NOTREADY}}} {
		want, err := n.Runtime.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{Filter: filter})
		must(t, err)
		stream, err := n.Runtime.StreamPodSandboxes(ctx, &cri.StreamPodSandboxesRequest{Filter: filter})
		if got := readList(t, stream, err, (*cri.StreamPodSandboxesResponse).GetPodSandboxes); !sameMessages(got, want.Items) {
			t.Errorf("pods with %v: %v, want %v", filter, got, want.Items)
		}
	}
	for _, filter := range []*cri.ImageFilter{nil, {Image: &cri.ImageSpec{Image: webImage}}, {Image: &cri.ImageSpec{Image: "registry.test/no-such:1"}}} {
		want, err := n.Images.ListImages(ctx, &cri.ListImagesRequest{Filter: filter})
		must(t, err)
		stream, err := n.Images.StreamImages(ctx, &cri.StreamImagesRequest{Filter: filter})
		if got := readList(t, stream, err, (*cri.StreamImagesResponse).GetImages); !sameMessages(got, want.Images) {
			t.Errorf("images with %v: %v, want %v", filter, got, want.Images)
		}
	}
	stats, err := n.Runtime.StreamContainerStats(ctx, &cri.StreamContainerStatsRequest{Filter: &cri.ContainerStatsFilter{PodSandboxId: p.ID}})
	if got := readList(t, stats, err, (*cri.StreamContainerStatsResponse).GetContainerStats); len(got) != 1 || got[0].GetAttributes().GetId() != c.ID || got[0].Cpu == nil {
		t.Errorf("container stats: %v", got)
	}
	podStats, err := n.Runtime.StreamPodSandboxStats(ctx, &cri.StreamPodSandboxStatsRequest{Filter: &cri.PodSandboxStatsFilter{Id: p.ID}})
	if got := readList(t, podStats, err, (*cri.StreamPodSandboxStatsResponse).GetPodSandboxStats); len(got) != 1 || got[0].GetAttributes().GetId() != p.ID || len(got[0].GetLinux().GetContainers()) != 1 {
		t.Errorf("pod stats: %v", got)
	}
}

// TestFiveThousandContainers gives a daemon the records of 5,000 exited
// containers with long annotations: too much for one message, and nothing for
// the stream and the command line.
func TestFiveThousandContainers(t *testing.T) {
	skipOnPeer(t, "the records are noded's")
	n := own(t, binary)
	p := n.RunPod(t)
	c := p.Run(t, "exit 0")
	c.WaitExit(t)
	must(t, p.Stop())
	_, err := n.Terminate()
	must(t, err)
	const more = 5000
	long := strings.Repeat("x", 4<<10)
	for i := range more {
		cloneRecord(t, filepath.Join(n.Root, "containers"), c.ID, i, long)
	}
	must(t, n.Launch())

	ctx, cancel := node.Context()
	defer cancel()
	_, err = n.Runtime.ListContainers(ctx, &cri.ListContainersRequest{})
	wantCode(t, err, codes.ResourceExhausted)
	if !strings.Contains(err.Error(), "StreamContainers") || !strings.Contains(err.Error(), "16777216 of a message (max_message)") {
		t.Errorf("the list answers %v, which names neither the limit nor the stream", err)
	}
	list := streamContainers(t, n, nil)
	seen := map[string]bool{}
	for _, item := range list {
		if seen[item.Id] || item.Id != c.ID && item.Annotations["long"] != long {
			t.Fatalf("container %s is there twice or without its annotation", item.Id)
		}
		seen[item.Id] = true
	}
	if len(seen) != more+1 {
		t.Errorf("%d containers, want %d", len(seen), more+1)
	}
	filter := &cri.ContainerFilter{Id: "0000"} // a tenth of the ids
	if got, want := streamContainers(t, n, filter), containers(t, n, filter); len(got) == 0 || !sameMessages(got, want) {
		t.Errorf("with a filter: %d containers in the stream, %d in the list", len(got), len(want))
	}
	out, err := exec.Command(n.Binary, "--listen", "unix://"+n.Socket, "ps", "-a", "-q").Output()
	if err != nil || strings.Count(string(out), "\n") != more+1 {
		t.Errorf("noded ps -a -q: %d lines, %v", strings.Count(string(out), "\n"), err)
	}
}

// cloneRecord writes the record of a container like another that has exited.
func cloneRecord(t *testing.T, dir, id string, i int, long string) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, id, "record.json"))
	must(t, err)
	var record map[string]any
	must(t, json.Unmarshal(data, &record))
	config := record["Config"].(map[string]any)
	name := fmt.Sprintf("clone-%d", i)
	config["metadata"] = map[string]any{"name": name}
	config["annotations"] = map[string]any{"long": long}
	own := fmt.Sprintf("%04d%060d", i%10, i)
	record["ID"], record["RuntimeGone"] = own, true
	data, err = json.Marshal(record)
	must(t, err)
	must(t, os.Mkdir(filepath.Join(dir, own), 0o700))
	must(t, os.WriteFile(filepath.Join(dir, own, "record.json"), data, 0o600))
}
