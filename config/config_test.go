package config

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func write(t *testing.T, path, text string) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestDefaultIsValid(t *testing.T) {
	if err := Default().Validate(); err != nil {
		t.Fatal(err)
	}
	cfg, err := Load("", "")
	if err != nil || !reflect.DeepEqual(cfg, Default()) {
		t.Fatalf("Load of nothing: %+v, %v", cfg, err)
	}
}

func TestDropInsOverrideKeyByKey(t *testing.T) {
	dir := t.TempDir()
	file := write(t, dir+"/config.toml", `
root = "/a"
[network]
bin_dirs = ["/x", "/y", "/z"]
[runtime.handlers.crun]
path = "/usr/bin/crun"
`)
	write(t, dir+"/conf.d/20-b.toml", "[network]\nbin_dirs = [\"/last\"]\n")
	write(t, dir+"/conf.d/10-a.toml", "root = \"/b\"\n[network]\nbin_dirs = [\"/first\"]\nmode = \"builtin\"\n")
	write(t, dir+"/conf.d/30-off.toml.disabled", "root = \"/c\"\n")
	write(t, dir+"/conf.d/.hidden.toml", "root = \"/d\"\n")
	cfg, err := Load(file, dir+"/conf.d")
	if err != nil {
		t.Fatal(err)
	}
	want := Default()
	want.Root = "/b"
	want.Network.Mode = "builtin"
	want.Network.BinDirs = []string{"/last"}
	want.Runtime.Handlers["crun"] = Handler{Path: "/usr/bin/crun"}
	if !reflect.DeepEqual(cfg, want) {
		t.Errorf("got  %+v\nwant %+v", cfg, want)
	}
}

func TestUnknownKeys(t *testing.T) {
	dir := t.TempDir()
	file := write(t, dir+"/config.toml", `roots = "/x"
[network]
mod = "cni"
[network.builtin]
brigde = "b"
[cri]
root = "/x"
[plugins.cri]
sandbox_image = "pause"
[runtime.handlers.kata]
paht = "/usr/bin/kata"
`)
	_, err := Load(file, "")
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{
		file + `:1: unknown key "roots", did you mean "root"?`,
		file + `:3: unknown key "network.mod", did you mean "network.mode"?`,
		file + `:5: unknown key "network.builtin.brigde", did you mean "network.builtin.bridge"?`,
		file + `:7: unknown key "cri.root", did you mean "root"?`,
		file + `:8: unknown key "plugins`,
		file + `:11: unknown key "runtime.handlers.kata.paht", did you mean "runtime.handlers.kata.path"?`,
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error lacks %q:\n%v", want, err)
		}
	}
}

func TestBadFilesNameTheirPlace(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"syntax", "root = \n", "config.toml:1:"},
		{"type", "[images]\nmax_parallel = \"four\"\n", "config.toml:2:"},
		{"size", "[images]\nmin_rate = \"10KB/s\"\n", `"10KB/s" is not a size`},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Load(write(t, t.TempDir()+"/config.toml", c.text), "")
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q in it", err, c.want)
			}
		})
	}
	if _, err := Load("/dev/zero", ""); err == nil {
		t.Error("a device was read as a configuration")
	}
}

func TestValidateTellsEverything(t *testing.T) {
	cfg := Default()
	cfg.Root, cfg.State = "var", "/"+strings.Repeat("s", 100)
	cfg.Log.Level = "loud"
	cfg.Log.Format = "xml"
	cfg.CRI = CRI{Listen: "tcp://0.0.0.0:1", StreamAddress: "localhost:99999"}
	cfg.Runtime.Default = "gone"
	cfg.Runtime.CgroupDriver = "cgroupsfs"
	cfg.Runtime.CDISpecDirs = []string{"cdi"}
	cfg.Runtime.MissingHostPath = "ignore"
	cfg.Runtime.Handlers["Bad Name"] = Handler{}
	cfg.Network.Mode = "none"
	cfg.Network.ConfDir = "net.d"
	cfg.Network.BinDirs = []string{"bin"}
	cfg.Network.Builtin = Builtin{Bridge: "much-too-long-name", Subnets: []string{"10.0.0.1/16", "10.1.0.0/16", "x"}}
	cfg.Images = Images{ContainerRoot: "layers", RegistryDirs: []string{"certs.d"}, MaxParallel: 0, MinRate: -1, TokenHosts: []string{"https://auth/"}, CredentialsDir: "credentials", Verify: map[string]Verify{"team": {Require: "maybe", Keys: []string{"team.pub"}}}, Pinned: []string{"pause"}}
	err := cfg.Validate()
	if err == nil {
		t.Fatal("no error")
	}
	for _, l := range leaves(cfg) {
		if !strings.Contains(err.Error(), l.key+":") && !strings.HasPrefix(l.key, "runtime.handlers.runc") &&
			l.value.Kind() != reflect.Bool { // neither of two is bad
			t.Errorf("nothing is said about the bad value of %s:\n%v", l.key, err)
		}
	}
}

func TestValidateImages(t *testing.T) {
	for host, ok := range map[string]bool{
		"auth.example.com": true, "auth.example.com:5001": true, "[::1]:5000": true,
		"": false, "https://auth.example.com": false, "auth.example.com/token": false, "user@auth.example.com": false, "a b": false,
	} {
		cfg := Default()
		cfg.Images.TokenHosts = []string{host}
		if err := cfg.Validate(); (err == nil) != ok {
			t.Errorf("token host %q: %v, want ok %v", host, err, ok)
		}
	}
	for pattern, ok := range map[string]bool{
		"*": true, "registry.k8s.io/*": true, "docker.io/library/busybox:1.36": true, "r/a@sha256:00": true,
		"": false, "busybox": false, "registry.k8s.io/pause:3 .10": false,
	} {
		cfg := Default()
		cfg.Images.Pinned = []string{pattern}
		if err := cfg.Validate(); (err == nil) != ok {
			t.Errorf("pinned %q: %v, want ok %v", pattern, err, ok)
		}
	}
}

func TestValidateVerify(t *testing.T) {
	dir := t.TempDir()
	pemFile := func(name string, public any) string {
		der, err := x509.MarshalPKIXPublicKey(public)
		if err != nil {
			t.Fatal(err)
		}
		return write(t, dir+"/"+name, string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})))
	}
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	good := pemFile("good.pub", ec.Public())
	short := pemFile("short.pub", &rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), 1023), E: 65537})
	broken := write(t, dir+"/broken.pub", "-----BEGIN NOTHING-----")
	for _, c := range []struct {
		pattern string
		rule    Verify
		want    string // in the error; "" none
	}{
		{"*", Verify{Require: "nothing"}, ""},
		{"registry.test/team/*", Verify{Require: "signature", Keys: []string{good}}, ""},
		{"registry.test/team/*", Verify{Require: "refuse"}, ""},
		{"registry.test/team/*", Verify{Require: "signature"}, "at least one key"},
		{"registry.test/team/*", Verify{Require: "nothing", Keys: []string{good}}, "signature"},
		{"registry.test/team/*", Verify{}, "is not one of"},
		{"registry.test/team/*", Verify{Require: "signature", Keys: []string{dir + "/none.pub"}}, "no such file"},
		{"registry.test/team/*", Verify{Require: "signature", Keys: []string{broken}}, "no public key"},
		{"registry.test/team/*", Verify{Require: "signature", Keys: []string{short}}, "1024 bits"},
		{"registry.test/team/*", Verify{Require: "signature", Keys: []string{dir}}, "is not a file"},
		{"busybox", Verify{Require: "nothing"}, "can match no repository"},
	} {
		cfg := Default()
		cfg.Images.Verify = map[string]Verify{c.pattern: c.rule}
		err := cfg.Validate()
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s, %+v: %v, want %q", c.pattern, c.rule, err, c.want)
		}
	}
}

// A rule for one repository leaves the default one, and a mistake in it is named.
func TestVerifyInFiles(t *testing.T) {
	cfg, err := Load(write(t, t.TempDir()+"/c.toml", "[images.verify.\"registry.test/*\"]\nrequire = \"refuse\"\n"), "")
	if err != nil || len(cfg.Images.Verify) != 2 || cfg.Images.Verify["*"].Require != "nothing" || cfg.Images.Verify["registry.test/*"].Require != "refuse" {
		t.Errorf("%+v, %v", cfg.Images.Verify, err)
	}
	_, err = Load(write(t, t.TempDir()+"/c.toml", "[images.verify.\"registry.test/*\"]\nrequires = \"refuse\"\n"), "")
	if err == nil || !strings.Contains(err.Error(), `did you mean "images.verify.\"registry.test/*\".require"`) {
		t.Errorf("unknown key: %v", err)
	}
}

func TestValidateFolders(t *testing.T) {
	for _, c := range []struct {
		root, state string
		ok          bool
	}{
		{"/var/lib/noded", "/run/noded", true},
		{"/n", "/n", false},
		{"/n", "/n/state", false},
		{"/n/root", "/n", false},
		{"/n", "/nn", true},
		{"/", "/run/noded", false},
		{"/a,b", "/run/noded", false},
	} {
		cfg := Default()
		cfg.Root, cfg.State = c.root, c.state
		if err := cfg.Validate(); (err == nil) != c.ok {
			t.Errorf("root %s, state %s: error %v, want ok %v", c.root, c.state, err, c.ok)
		}
	}
}

func TestDumpReadsBack(t *testing.T) {
	cfg := Default()
	cfg.Images.RegistryDirs = []string{}
	cfg.Runtime.Handlers["crun"] = Handler{Path: "crun"}
	text, err := Dump(cfg)
	if err != nil {
		t.Fatal(err)
	}
	back, err := Load(write(t, t.TempDir()+"/c.toml", string(text)), "")
	if err != nil || !reflect.DeepEqual(back, cfg) {
		t.Errorf("%v\n%s\ngave %+v\nwant %+v", err, text, back, cfg)
	}
}

func TestDiff(t *testing.T) {
	before, after := Default(), Default()
	if d := Diff(before, after); d != nil {
		t.Errorf("equal configurations differ in %v", d)
	}
	after.Log.Level = "debug"
	after.Root = "/elsewhere"
	after.Images.MinRate = 0
	after.Images.Pinned = []string{"*"}
	after.Runtime.Handlers = map[string]Handler{"crun": {Path: "crun"}}
	want := []Change{
		{"images.min_rate", `"1KiB"`, `"0B"`, false},
		{"images.pinned", "[]", `["*"]`, true},
		{"log.level", `"info"`, `"debug"`, true},
		{"root", `"/var/lib/noded"`, `"/elsewhere"`, false},
		{"runtime.handlers.crun.path", "", `"crun"`, false},
		{"runtime.handlers.runc.path", `"runc"`, "", false},
	}
	if d := Diff(before, after); !reflect.DeepEqual(d, want) {
		t.Errorf("got  %+v\nwant %+v", d, want)
	}
}

func TestSizes(t *testing.T) {
	for text, want := range map[string]Size{"0B": 0, "512B": 512, "10KiB": 10240, "16 MiB": 16 << 20, "1GiB": 1 << 30, "1537KiB": 1537 << 10} {
		var s Size
		if err := s.UnmarshalText([]byte(text)); err != nil || s != want {
			t.Errorf("%s: %d, %v", text, s, err)
		}
		back, _ := s.MarshalText()
		if string(back) != strings.ReplaceAll(text, " ", "") {
			t.Errorf("%s is written as %s", text, back)
		}
	}
	for _, text := range []string{"", "B", "-1B", "1", "1.5GiB", "9999999999GiB"} {
		if err := new(Size).UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q was taken as a size", text)
		}
	}
}
