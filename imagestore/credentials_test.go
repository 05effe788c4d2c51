package imagestore

import (
	"context"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"noded.dev/noded/imagestore/registry"
	"noded.dev/noded/internal/kind"
)

// dockerConfig is a config.json with one password for one host.
func dockerConfig(host, password string) string {
	return fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, host, base64.StdEncoding.EncodeToString([]byte("me:"+password)))
}

func writeFiles(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestNamespaceCredentials: the request's credentials come first, then the
// namespace's, then the node's.
func TestNamespaceCredentials(t *testing.T) {
	f := newFake(t)
	f.add("v1", smallImage(t))
	f.before = needBasic
	good, bad := dockerConfig(f.host(), secret), dockerConfig(f.host(), "wrong")
	dir := writeFiles(t, map[string]string{
		"ns/file.json": good, "ns/folder/config.json": good, "ns/wrong.json": bad, "ns/broken.json": "{" + secret,
		"ns/other.json": dockerConfig("other.example", "x"), "ns/half.json": fmt.Sprintf(`{"auths":{%q:{"auth":"!%s"},"x":{"auth":"bWU6eA=="}}}`, f.host(), secret),
		"ns/mounted/..data/config.json": good, "outside.json": good,
	})
	for link, to := range map[string]string{"ns/mounted/config.json": "..data/config.json", "ns/escape.json": "../outside.json"} {
		if err := os.Symlink(to, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name, namespace, node string
		auth                  *Auth
		kind                  kind.Kind
		text                  string // in the error
	}{
		{"own file", "file", "", nil, -1, ""},
		{"own folder", "folder", "", nil, -1, ""},
		{"mounted secret", "mounted", "", nil, -1, ""},
		{"no file", "none", "", nil, kind.Unauthenticated, ""},
		{"no namespace", "", "", nil, kind.Unauthenticated, ""},
		{"before the node's", "file", bad, nil, -1, ""},
		{"instead of the node's", "wrong", good, nil, kind.Unauthenticated, ""},
		{"after the request's", "wrong", bad, &Auth{Username: "me", Password: secret}, -1, ""},
		{"for another registry, then the node's", "other", good, nil, -1, ""},
		{"broken", "broken", "", nil, kind.Unauthenticated, "broken.json: it is not valid JSON"},
		{"broken, then the node's", "broken", good, nil, -1, ""},
		{"broken entry", "half", "", nil, kind.Unauthenticated, "half.json, entry"},
		{"path", "../outside", "", nil, kind.Unauthenticated, ""},
		{"symlink out of the folder", "escape", "", nil, kind.Unauthenticated, "escape"},
		{"node's is broken", "none", "{" + secret, nil, kind.Unauthenticated, "config.json: it is not valid JSON"},
	} {
		node := writeFiles(t, map[string]string{"config.json": c.node})
		if c.node == "" {
			node = t.TempDir()
		}
		s := openWith(t, func(o *Options) {
			o.NamespaceDir, o.DockerConfig = filepath.Join(dir, "ns"), filepath.Join(node, "config.json")
		})
		_, err := s.Pull(context.Background(), f.host()+"/a:v1", PullOptions{Auth: c.auth, Namespace: c.namespace})
		if c.kind == -1 && err != nil || c.kind != -1 && !kind.Is(err, c.kind) {
			t.Errorf("%s: %v", c.name, err)
		}
		if err != nil && (strings.Contains(err.Error(), secret) || !strings.Contains(err.Error(), c.text)) {
			t.Errorf("%s: the error tells the secret or too little: %v", c.name, err)
		}
		grepStore(t, s.opts.Root, secret)
	}
}

// TestBrokenCredentials: files that cannot be read cost nothing where no
// credentials are asked for.
func TestBrokenCredentials(t *testing.T) {
	f := newFake(t)
	f.add("v1", smallImage(t))
	dir := writeFiles(t, map[string]string{"config.json": "nonsense", "ns/team.json": "nonsense"})
	s := openWith(t, func(o *Options) {
		o.DockerConfig, o.NamespaceDir = filepath.Join(dir, "config.json"), filepath.Join(dir, "ns")
	})
	if _, err := s.Pull(context.Background(), f.host()+"/a:v1", PullOptions{Namespace: "team"}); err != nil {
		t.Error(err)
	}
}

// TestNamespacesShareNothing: a pull with a namespace's credentials is not
// joined by a pull of another namespace.
func TestNamespacesShareNothing(t *testing.T) {
	f := newFake(t)
	f.add("v1", smallImage(t))
	dir := writeFiles(t, map[string]string{"a.json": dockerConfig(f.host(), secret)})
	s := openWith(t, func(o *Options) { o.NamespaceDir = dir })
	keys := map[string]bool{}
	for _, namespace := range []string{"a", "b", "c", ""} {
		ref := must[registry.Reference](t)(registry.ParseReference(f.host() + "/a:v1"))
		p, err := s.join(context.Background(), ref, nil, namespace)
		if err != nil {
			t.Fatal(err)
		}
		keys[p.key] = true
		<-p.done
		s.leave(p)
	}
	if len(keys) != 2 {
		t.Errorf("keys %v: one for the namespace with credentials and one for all others", keys)
	}
}
