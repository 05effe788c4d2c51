package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"noded.dev/noded/test/node"
)

// cli runs command lines in this process against a real daemon.
type cli struct {
	socket, logs string
}

type result struct {
	code     int
	out, err string
}

func (c cli) run(t *testing.T, stdin io.Reader, args ...string) result {
	t.Helper()
	t.Setenv("NODED_LOG_DIR", c.logs)
	var out, errOut bytes.Buffer
	code := execute(append([]string{"--listen", c.socket}, args...), stdin, &out, &errOut)
	return result{code, out.String(), errOut.String()}
}

// must fails the test unless the command ends with code and prints text.
func (c cli) must(t *testing.T, code int, text string, args ...string) string {
	t.Helper()
	r := c.run(t, nil, args...)
	if r.code != code || !strings.Contains(r.out+r.err, text) {
		t.Fatalf("noded %s: exit %d, want %d; want %q in\n%s%s", strings.Join(args, " "), r.code, code, text, r.out, r.err)
	}
	return r.out
}

func startCLI(t *testing.T) (c cli, image string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("a daemon needs root")
	}
	binary, err := node.Build(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	registry, err := node.StartRegistry(nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { registry.Close() })
	files, err := node.Busybox(node.File{Name: "www/index.html", Body: "a page\n"})
	if err != nil {
		t.Fatal(err)
	}
	config := v1.ImageConfig{Env: []string{"PATH=/bin"}, Cmd: []string{"/bin/httpd", "-f", "-v", "-p", "80", "-h", "/www"}}
	if _, err := registry.Push("cli/web:1", config, files); err != nil {
		t.Fatal(err)
	}
	n := node.New(t, node.Options{Binary: binary, Registry: registry})
	return cli{"unix://" + n.Socket, filepath.Join(t.TempDir(), "logs")}, registry.Host + "/cli/web:1"
}

// TestCommandLine goes through a pod's life with the commands people use.
func TestCommandLine(t *testing.T) {
	c, image := startCLI(t)
	c.must(t, 0, "sha256:", "pull", image)
	c.must(t, 0, "cli/web", "images")
	port, err := node.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	c.must(t, 0, "", "run", "-d", "--name", "web", "-p", fmt.Sprintf("%d:80", port), image)
	c.must(t, 0, "running", "ps")
	c.must(t, 0, "ready", "pods")
	if page := get(t, fmt.Sprintf("http://127.0.0.1:%d/", port)); page != "a page\n" {
		t.Errorf("the page is %q", page)
	}
	c.must(t, 0, "response:200", "logs", "web")
	c.must(t, 1, `there is a pod "web" already`, "run", "--name", "web", image)
	c.must(t, 0, `"kind": "container"`, "inspect", "web")
	c.must(t, 0, "web", "stats")
	c.must(t, 0, "daemon: noded", "version")
	c.must(t, 1, "stop it first", "rm", "web")
	c.must(t, 0, "web", "stop", "-t", "0s", "web")
	c.must(t, 0, "exited", "ps", "-a")
	c.must(t, 0, "web", "rm", "web")
	c.must(t, 1, `no container or pod "web"`, "rm", "web")
	c.must(t, 0, "", "rmi", image)
	if entries, err := os.ReadDir(c.logs); err != nil || len(entries) > 0 {
		t.Errorf("logs are left: %v, %v", entries, err)
	}
}

func TestCommandLineExitStatus(t *testing.T) {
	c, image := startCLI(t)
	c.must(t, 7, "", "run", "--rm", image, "sh", "-c", "exit 7")
	c.must(t, 127, "nosuch", "run", "--rm", image, "nosuch")
	c.must(t, 137, "memory limit", "run", "--rm", "--memory", "16MiB", image, "sh", "-c", "x=$(yes | head -c 100000000)")
	// Everything that is written is seen, on the right stream, however soon it ends.
	r := c.run(t, nil, "run", "--rm", image, "sh", "-c", "echo out; echo err >&2; echo -n end")
	if r.code != 0 || r.out != "out\nend" || !strings.HasSuffix(r.err, "err\n") {
		t.Errorf("%+v", r)
	}
	r = c.run(t, strings.NewReader("from here\n"), "run", "--rm", "-i", image, "sh", "-c", "cat; exit 3")
	if r.code != 3 || r.out != "from here\n" {
		t.Errorf("stdin of run: %+v", r)
	}
	c.must(t, 0, "", "run", "-d", "--name", "box", image)
	defer c.must(t, 0, "box", "rm", "-f", "box")
	c.must(t, 42, "", "exec", "box", "sh", "-c", "exit 42")
	c.must(t, 127, "", "exec", "box", "nosuch")
	c.must(t, 126, "", "exec", "box", "/www/index.html")
	r = c.run(t, strings.NewReader("piped\n"), "exec", "-i", "box", "cat")
	if r.code != 0 || r.out != "piped\n" {
		t.Errorf("stdin of exec: %+v", r)
	}
	c.must(t, 1, "needs a terminal", "exec", "-it", "box", "sh")
}

// TestFollowLogs: logs -f ends with the container and has all of its lines.
func TestFollowLogs(t *testing.T) {
	c, image := startCLI(t)
	c.must(t, 0, "", "run", "-d", "--name", "count", image, "sh", "-c", "for i in $(seq 30); do echo line $i; sleep 0.02; done")
	defer c.must(t, 0, "count", "rm", "-f", "count")
	begin := time.Now()
	out := c.must(t, 0, "line 30\n", "logs", "-f", "count")
	if lines := strings.Count(out, "\n"); lines != 30 {
		t.Errorf("%d lines of 30 after %s", lines, time.Since(begin))
	}
	if last := c.must(t, 0, "", "logs", "-n", "2", "count"); last != "line 29\nline 30\n" {
		t.Errorf("the last two lines are %q", last)
	}
}

func get(t *testing.T, url string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil && ctx.Err() == nil {
			time.Sleep(20 * time.Millisecond) // the server in the pod may not listen yet
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		page, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return string(page)
	}
}
