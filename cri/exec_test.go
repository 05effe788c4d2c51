package cri

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	api "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/cri/stream"
	"noded.dev/noded/sandbox"
)

func TestExecSync(t *testing.T) {
	e := newEdge(t)
	e.sandboxes.exec = func(ctx context.Context, _ string, cmd []string, st sandbox.IO) (int, error) {
		switch cmd[0] {
		case "sleep":
			<-ctx.Done()
			return 0, ctx.Err()
		case "late":
			<-ctx.Done()
			return 137, nil // it ended by itself while the time ran out
		case "missing":
			return 127, nil
		case "broken":
			return 0, errors.New("shim is gone")
		}
		io.WriteString(st.Stdout, "out")
		io.WriteString(st.Stderr, "err")
		return 3, nil
	}
	for _, c := range []struct {
		cmd     []string
		timeout int64
		code    codes.Code
		exit    int32
	}{
		{[]string{"echo"}, 0, codes.OK, 3},
		{[]string{"echo"}, 1 << 62, codes.OK, 3},
		{[]string{"missing"}, 10, codes.OK, 127},
		{[]string{"late"}, 1, codes.OK, 137},
		{[]string{"sleep"}, 1, codes.DeadlineExceeded, 0},
		{[]string{"broken"}, 1, codes.Internal, 0},
		{[]string{"echo"}, -1, codes.InvalidArgument, 0},
		{nil, 0, codes.InvalidArgument, 0},
		{[]string{"a", "b\x00c"}, 0, codes.InvalidArgument, 0},
		{[]string{strings.Repeat("a", 3<<20)}, 0, codes.InvalidArgument, 0},
	} {
		resp, err := e.runtime.ExecSync(t.Context(), &api.ExecSyncRequest{ContainerId: "c1", Cmd: c.cmd, Timeout: c.timeout})
		if status.Code(err) != c.code || resp.GetExitCode() != c.exit {
			t.Errorf("%.20q, timeout %d: %v, %v; want %v and exit code %d", c.cmd, c.timeout, resp, err, c.code, c.exit)
		}
		if c.exit == 3 && (string(resp.Stdout) != "out" || string(resp.Stderr) != "err") {
			t.Errorf("output %q, %q", resp.Stdout, resp.Stderr)
		}
	}
	if n := e.server.execs.running.Load(); n != 0 {
		t.Errorf("%d commands still count as running", n)
	}
}

// flood writes far more than can be returned, and fails if it is ever stopped.
func flood(st sandbox.IO, size int) error {
	chunk := bytes.Repeat([]byte("y\n"), 16<<10)
	for written := 0; written < size; written += len(chunk) {
		for _, w := range []io.Writer{st.Stdout, st.Stderr} {
			if n, err := w.Write(chunk); n != len(chunk) || err != nil {
				return errors.New("output was refused")
			}
		}
	}
	return nil
}

func TestFlood(t *testing.T) {
	e := newEdge(t)
	e.sandboxes.exec = func(_ context.Context, _ string, _ []string, st sandbox.IO) (int, error) {
		return 5, flood(st, 64<<20)
	}
	resp, err := e.runtime.ExecSync(t.Context(), &api.ExecSyncRequest{ContainerId: "c1", Cmd: []string{"yes"}})
	if err != nil {
		t.Fatal(err)
	}
	if n := len(resp.Stdout) + len(resp.Stderr); n != maxOutput || resp.ExitCode != 5 || proto.Size(resp) > maxMessage {
		t.Errorf("%d bytes, exit code %d", n, resp.ExitCode)
	}

	// Many at once share what one may have.
	var wg sync.WaitGroup
	for range 32 {
		wg.Go(func() {
			resp, err := e.runtime.ExecSync(t.Context(), &api.ExecSyncRequest{ContainerId: "c1", Cmd: []string{"yes"}})
			if err != nil || len(resp.Stdout)+len(resp.Stderr) < ownOutput {
				t.Errorf("%d bytes, %v", len(resp.GetStdout())+len(resp.GetStderr()), err)
			}
		})
	}
	wg.Wait()
	if n := e.server.execs.shared.Load(); n != 0 {
		t.Errorf("%d shared bytes are not given back", n)
	}
}

func TestFloodMemory(t *testing.T) {
	limits := newExecLimits()
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var outputs []*output
	for range 32 {
		o, err := limits.begin()
		if err != nil {
			t.Fatal(err)
		}
		if err := flood(sandbox.IO{Stdout: &o.stdout, Stderr: &o.stderr}, 32<<20); err != nil {
			t.Fatal(err)
		}
		outputs = append(outputs, o)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 40<<20 {
		t.Errorf("32 floods keep %d MiB", grown>>20)
	}
	for _, o := range outputs {
		o.release()
		o.stdout.Write([]byte("too late"))
	}
	if limits.shared.Load() != 0 || limits.running.Load() != 0 {
		t.Errorf("not given back: %d bytes, %d places", limits.shared.Load(), limits.running.Load())
	}
}

func TestExecSlots(t *testing.T) {
	limits := newExecLimits()
	for range maxExecs {
		if _, err := limits.begin(); err != nil {
			t.Fatal(err)
		}
	}
	_, err := limits.begin()
	if st := toStatus(t.Context(), err, nil); st.Code() != codes.ResourceExhausted {
		t.Errorf("got %v", err)
	}
}

func TestStreamURLs(t *testing.T) {
	e := newEdge(t)
	e.sandboxes.attachConfig = &api.ContainerConfig{}
	ctx := t.Context()
	exec := func(r *api.ExecRequest) (string, error) {
		resp, err := e.runtime.Exec(ctx, r)
		return resp.GetUrl(), err
	}
	attach := func(r *api.AttachRequest) (string, error) {
		resp, err := e.runtime.Attach(ctx, r)
		return resp.GetUrl(), err
	}
	forward := func(ports ...int32) (string, error) {
		resp, err := e.runtime.PortForward(ctx, &api.PortForwardRequest{PodSandboxId: "p1", Port: ports})
		return resp.GetUrl(), err
	}
	cmd := []string{"sh"}
	for name, c := range map[string]struct {
		call func() (string, error)
		want codes.Code
	}{
		"exec":             {func() (string, error) { return exec(&api.ExecRequest{ContainerId: "c1", Cmd: cmd, Stdout: true}) }, codes.OK},
		"exec, no streams": {func() (string, error) { return exec(&api.ExecRequest{ContainerId: "c1", Cmd: cmd}) }, codes.InvalidArgument},
		"exec, no command": {func() (string, error) { return exec(&api.ExecRequest{ContainerId: "c1", Stdout: true}) }, codes.InvalidArgument},
		"exec, tty and stderr": {func() (string, error) {
			return exec(&api.ExecRequest{ContainerId: "c1", Cmd: cmd, Tty: true, Stdout: true, Stderr: true})
		}, codes.InvalidArgument},
		"attach":             {func() (string, error) { return attach(&api.AttachRequest{ContainerId: "c1", Stdin: true}) }, codes.OK},
		"attach, no streams": {func() (string, error) { return attach(&api.AttachRequest{ContainerId: "c1"}) }, codes.InvalidArgument},
		"forward":            {func() (string, error) { return forward() }, codes.OK},
		"forward, ports":     {func() (string, error) { return forward(1, 65535) }, codes.OK},
		"forward, port 0":    {func() (string, error) { return forward(0) }, codes.InvalidArgument},
		"forward, 65536":     {func() (string, error) { return forward(65536) }, codes.InvalidArgument},
	} {
		url, err := c.call()
		if status.Code(err) != c.want || (c.want == codes.OK) != strings.HasPrefix(url, "http://127.0.0.1:") {
			t.Errorf("%s: %q, %v; want %v", name, url, err, c.want)
		}
	}
}

// TestURLExpectsUpgrade checks that a plain request is refused and uses the
// token up.
func TestURLExpectsUpgrade(t *testing.T) {
	e := newEdge(t)
	resp, err := e.runtime.Exec(t.Context(), &api.ExecRequest{ContainerId: "c1", Cmd: []string{"sh"}, Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []int{http.StatusBadRequest, http.StatusNotFound} {
		r, err := http.Get(resp.Url)
		if err != nil {
			t.Fatal(err)
		}
		r.Body.Close()
		if r.StatusCode != want {
			t.Errorf("got %s, want %d", r.Status, want)
		}
	}
}

// TestSessionIO checks that nothing is left of a session that takes no sizes.
func TestSessionIO(t *testing.T) {
	before := runtime.NumGoroutine()
	for range 100 {
		sizes := make(chan stream.Size, 1)
		sizes <- stream.Size{Width: 80, Height: 24}
		_, stop := sessionIO(stream.Streams{Terminal: true, Resize: sizes})
		stop()
	}
	if n := runtime.NumGoroutine(); n > before {
		t.Errorf("%d goroutines, %d before", n, before)
	}
	sizes := make(chan stream.Size, 1)
	st, stop := sessionIO(stream.Streams{Terminal: true, Resize: sizes})
	defer stop()
	sizes <- stream.Size{Width: 80, Height: 24}
	select {
	case got := <-st.Resize:
		if got != (sandbox.Size{Width: 80, Height: 24}) {
			t.Errorf("got %v", got)
		}
	case <-time.After(5 * time.Second):
		t.Error("no size arrives")
	}
	close(sizes)
	if _, ok := <-st.Resize; ok {
		t.Error("sizes go on after the client's end")
	}
}
