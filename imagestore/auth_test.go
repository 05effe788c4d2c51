package imagestore

import (
	"context"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"noded.dev/noded/internal/kind"
	"noded.dev/noded/test/testimage"
)

// secret is the canary: it may be on the wire to the right host, and nowhere else.
const secret = "canary-9f8e7d6c5b4a3f2e1d"

func smallImage(t testing.TB) testimage.Image {
	t.Helper()
	return image(t, must[testimage.Layer](t)(testimage.NewLayer(testimage.Gzip, testimage.Entry{Name: "f", Body: "x"})))
}

func carriesSecret(r *http.Request) bool {
	all := fmt.Sprint(r.URL, r.Header, r.Form)
	for _, h := range r.Header.Values("Authorization") {
		if b, ok := strings.CutPrefix(h, "Basic "); ok {
			plain, _ := base64.StdEncoding.DecodeString(b)
			all += string(plain)
		}
	}
	return strings.Contains(all, secret)
}

func needBasic(w http.ResponseWriter, r *http.Request) bool {
	if user, password, _ := r.BasicAuth(); user == "me" && password == secret {
		return false
	}
	w.Header().Set("WWW-Authenticate", `Basic realm="x, y=\"z\""`)
	http.Error(w, `{"errors":[{"code":"UNAUTHORIZED","message":"`+secret+`"}]}`, http.StatusUnauthorized)
	return true
}

func TestBasicAuth(t *testing.T) {
	f := newFake(t)
	f.add("v1", smallImage(t))
	f.before = needBasic
	ref := f.host() + "/a:v1"
	config := filepath.Join(t.TempDir(), "config.json")
	if err := os.WriteFile(config, fmt.Appendf(nil, `{"auths":{"http://%s/v1/":{"auth":%q}},"credsStore":"evil"}`, f.host(), base64.StdEncoding.EncodeToString([]byte("me:"+secret))), 0o600); err != nil {
		t.Fatal(err)
	}
	cases := []struct {
		name   string
		config string
		auth   *Auth
		kind   kind.Kind
	}{
		{"none", "", nil, kind.Unauthenticated},
		{"user and password", "", &Auth{Username: "me", Password: secret}, -1},
		{"encoded", "", &Auth{Encoded: base64.StdEncoding.EncodeToString([]byte("me:" + secret))}, -1},
		{"for this server", "", &Auth{Username: "me", Password: secret, ServerAddress: "http://" + f.host() + "/v2/"}, -1},
		{"for another server", "", &Auth{Username: "me", Password: secret, ServerAddress: "other.example"}, kind.Unauthenticated},
		{"wrong", "", &Auth{Username: "me", Password: secret + "x"}, kind.Unauthenticated},
		{"line break", "", &Auth{Username: "me", Password: secret + "\r\nX: y"}, kind.Invalid},
		{"not base64", "", &Auth{Encoded: "!" + secret}, kind.Invalid},
		{"from config.json", config, nil, -1},
		{"missing config.json", config + "x", nil, kind.Unauthenticated},
	}
	for _, c := range cases {
		s := openWith(t, func(o *Options) { o.DockerConfig = c.config })
		_, err := s.Pull(context.Background(), ref, PullOptions{Auth: c.auth})
		if c.kind == -1 && err != nil || c.kind != -1 && !kind.Is(err, c.kind) {
			t.Errorf("%s: %v", c.name, err)
		}
		if err != nil && strings.Contains(err.Error(), secret) {
			t.Errorf("%s: the error tells the secret: %v", c.name, err)
		}
		if c.kind == -1 {
			grepStore(t, s.opts.Root, secret)
		}
	}
}

// grepStore looks for text in all files of a store.
func grepStore(t *testing.T, root, text string) {
	t.Helper()
	filepath.WalkDir(root, func(p string, e os.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			if data, _ := os.ReadFile(p); strings.Contains(string(data), text) {
				t.Errorf("%s holds the secret", p)
			}
		}
		return err
	})
}

// tokenServer gives a token for the right credentials.
func tokenServer(t *testing.T) *httptest.Server {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.ParseForm()
		user, password, _ := r.BasicAuth()
		switch {
		case r.Method == http.MethodPost && r.Form.Get("refresh_token") == secret && r.Form.Get("grant_type") == "refresh_token",
			user == "me" && password == secret:
		default:
			http.Error(w, secret, http.StatusUnauthorized)
			return
		}
		if r.Form.Get("service") != "svc" || r.Form.Get("scope") != "repository:a:pull" {
			http.Error(w, "scope", http.StatusBadRequest)
			return
		}
		fmt.Fprint(w, `{"access_token":"good-token"}`)
	}))
	t.Cleanup(srv.Close)
	return srv
}

func needToken(realm string) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Authorization") == "Bearer good-token" {
			return false
		}
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm=%q,service="svc",scope="repository:a:pull"`, realm))
		w.WriteHeader(http.StatusUnauthorized)
		return true
	}
}

func TestTokenAuth(t *testing.T) {
	f, tokens := newFake(t), tokenServer(t)
	f.add("v1", smallImage(t))
	f.before = needToken(tokens.URL + "/token")
	for name, c := range map[string]struct {
		auth *Auth
		kind kind.Kind
	}{
		"password":       {&Auth{Username: "me", Password: secret}, -1},
		"identity token": {&Auth{IdentityToken: secret}, -1},
		"registry token": {&Auth{RegistryToken: "good-token"}, -1},
		"wrong password": {&Auth{Username: "me", Password: "no"}, kind.Unauthenticated},
		"wrong token":    {&Auth{RegistryToken: secret}, kind.Unauthenticated},
		"nothing":        {nil, kind.Unauthenticated},
	} {
		s := openWith(t, nil)
		_, err := s.Pull(context.Background(), f.host()+"/a:v1", PullOptions{Auth: c.auth})
		if c.kind == -1 && err != nil || c.kind != -1 && !kind.Is(err, c.kind) {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && strings.Contains(err.Error(), secret) {
			t.Errorf("%s: the error tells the secret: %v", name, err)
		}
	}
}

// TestEvilRealms: a registry names token servers that must not get a request
// with credentials, or none at all.
func TestEvilRealms(t *testing.T) {
	var hits []*http.Request
	evil := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.ParseForm()
		hits = append(hits, r)
		fmt.Fprint(w, `{"token":"good-token"}`)
	})
	evilPlain := httptest.NewServer(evil)
	defer evilPlain.Close()
	evilTLS := httptest.NewTLSServer(evil)
	defer evilTLS.Close()
	reg := unstartedFake()
	reg.Server = httptest.NewTLSServer(reg)
	defer reg.Close()
	reg.add("v1", smallImage(t))
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: reg.Certificate().Raw})
	// The registry's name is not local; it is reached here all the same.
	dirs := hostsDir(t, "reg.example", fmt.Sprintf("server = %q\nca = \"ca.pem\"\n", reg.URL))
	if err := os.WriteFile(filepath.Join(dirs, "reg.example", "ca.pem"), ca, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, realm := range []string{
		evilPlain.URL, "http://" + reg.host() + "/token", "file:///etc/passwd", "https://user:pw@" + reg.host() + "/t", "https:///x", "",
		"https://elsewhere.example/token", evilTLS.URL, "http://169.254.169.254/latest",
	} {
		reg.before = needToken(realm)
		s := openWith(t, func(o *Options) { o.RegistryDirs = []string{dirs} })
		_, err := s.Pull(context.Background(), "reg.example/a:v1", PullOptions{Auth: &Auth{Username: "me", Password: secret}})
		if err == nil {
			t.Errorf("realm %q: pull succeeded", realm)
		}
		if realm != evilTLS.URL && !kind.Is(err, kind.Unauthenticated) { // that one's certificate is not trusted: out of reach
			t.Errorf("realm %q: kind %v: %v", realm, kind.Of(err), err)
		}
	}
	for _, r := range hits {
		t.Errorf("evil server got %s %s", r.Method, r.URL)
	}
	// Configured as a token host it is asked, and is only not there.
	reg.before = needToken("https://elsewhere.example/token")
	s := openWith(t, func(o *Options) { o.RegistryDirs, o.TokenHosts = []string{dirs}, []string{"Elsewhere.example"} })
	_, err := s.Pull(context.Background(), "reg.example/a:v1", PullOptions{Auth: &Auth{Username: "me", Password: secret}})
	if !kind.Is(err, kind.Unavailable) {
		t.Errorf("configured token host: kind %v: %v", kind.Of(err), err)
	}
}

// TestRedirects: blobs may come from elsewhere, credentials go nowhere else.
func TestRedirects(t *testing.T) {
	img := smallImage(t)
	blob := digest.FromBytes(img.Layers[0].Blob)
	elsewhere := newFake(t)
	elsewhere.add("v1", img)
	f := newFake(t)
	f.add("v1", img)
	var to string
	f.before = func(w http.ResponseWriter, r *http.Request) bool {
		if strings.HasPrefix(r.URL.Path, "/back/") {
			f.serve(w, r)
			return true
		}
		if needBasic(w, r) {
			return true
		}
		if strings.HasSuffix(r.URL.Path, blob.Encoded()) {
			w.Header().Set("Location", to)
			w.WriteHeader(http.StatusTemporaryRedirect)
			return true
		}
		return false
	}
	pull := func() error {
		s := openWith(t, nil)
		_, err := s.Pull(context.Background(), f.host()+"/a:v1", PullOptions{Auth: &Auth{Username: "me", Password: secret}})
		return err
	}
	to = elsewhere.URL + "/blobs/" + blob.String() + "?signature=abc"
	if err := pull(); err != nil {
		t.Error(err)
	}
	// There and back: what once left the host is not trusted again.
	elsewhere.before = func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("Location", f.URL+"/back/blobs/"+blob.String())
		w.Header().Set("Set-Cookie", "a=b")
		w.WriteHeader(http.StatusFound)
		return true
	}
	if err := pull(); err != nil {
		t.Error(err)
	}
	for _, r := range append(elsewhere.asked(""), f.asked("/back/")...) {
		if carriesSecret(r) || r.Header.Get("Cookie") != "" || r.Header.Get("Authorization") != "" {
			t.Errorf("%s got credentials: %v", r.URL, r.Header)
		}
	}
	// One that asks for credentials itself gets none.
	elsewhere.before = needBasic
	if err := pull(); !kind.Is(err, kind.Unauthenticated) {
		t.Errorf("redirect to 401: %v", err)
	}
	elsewhere.before = func(w http.ResponseWriter, r *http.Request) bool {
		http.Redirect(w, r, r.URL.Path, http.StatusFound)
		return true
	}
	before := len(elsewhere.asked(""))
	if err := pull(); !kind.Is(err, kind.Unavailable) || !strings.Contains(err.Error(), "redirects = 5") {
		t.Errorf("endless redirects: %v", err)
	}
	if n := len(elsewhere.asked("")) - before; n > 6 {
		t.Errorf("%d redirects followed", n)
	}
	for _, r := range elsewhere.asked("") {
		if carriesSecret(r) {
			t.Errorf("%s got credentials", r.URL)
		}
	}
}

func TestTLSAndDowngrade(t *testing.T) {
	img := smallImage(t)
	plain := newFake(t)
	plain.add("v1", img)
	f := unstartedFake()
	f.Server = httptest.NewTLSServer(f)
	defer f.Close()
	f.add("v1", img)
	pull := func(hosts string) error {
		dirs := hostsDir(t, "reg.example", hosts)
		ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: f.Certificate().Raw})
		if err := os.WriteFile(filepath.Join(dirs, "reg.example", "ca.pem"), ca, 0o600); err != nil {
			t.Fatal(err)
		}
		s := openWith(t, func(o *Options) { o.RegistryDirs = []string{dirs} })
		_, err := s.Pull(context.Background(), "reg.example/a:v1", PullOptions{})
		return err
	}
	server := fmt.Sprintf("server = %q\n", f.URL)
	if err := pull(server); !kind.Is(err, kind.Unavailable) || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("unknown authority: %v", err)
	}
	if err := pull(server + "ca = \"ca.pem\"\n"); err != nil {
		t.Errorf("ca: %v", err)
	}
	if err := pull(server + "skip_verify = true\n"); err != nil {
		t.Errorf("skip_verify: %v", err)
	}
	if err := pull(server + "skip_verify = \"yes\"\n"); !kind.Is(err, kind.Precondition) {
		t.Errorf("bad configuration: %v", err)
	}
	f.before = func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/blobs/") {
			return false
		}
		http.Redirect(w, r, plain.URL+r.URL.Path, http.StatusFound)
		return true
	}
	if err := pull(server + "ca = \"ca.pem\"\n"); err == nil || !strings.Contains(err.Error(), "from https to plain http") {
		t.Errorf("downgrade: %v", err)
	}
	if len(plain.asked("")) != 0 {
		t.Error("the plain host was asked")
	}
}
