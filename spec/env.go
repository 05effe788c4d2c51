package spec

import (
	"strings"
	"unicode/utf8"

	rspec "github.com/opencontainers/runtime-spec/specs-go"

	"noded.dev/noded/internal/kind"
)

const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// environment is an ordered set of variables; setting one again replaces it
// where it stands.
type environment struct {
	list  []string
	index map[string]int
}

func (e *environment) set(key, value string) {
	if e.index == nil {
		e.index = map[string]int{}
	}
	if i, ok := e.index[key]; ok {
		e.list[i] = key + "=" + value
		return
	}
	e.index[key] = len(e.list)
	e.list = append(e.list, key+"="+value)
}

func (e *environment) get(key string) (string, bool) {
	i, ok := e.index[key]
	if !ok {
		return "", false
	}
	return e.list[i][len(key)+1:], true
}

// applyEnv sets defaults, then the image's variables, then the request's.
func applyEnv(in *Input, s *rspec.Spec) error {
	var env environment
	env.set("PATH", defaultPath)
	if name := Hostname(in.Pod, in.PodID, in.Facts.Hostname); name != "" {
		env.set("HOSTNAME", name)
	}
	if in.Container.GetTty() {
		env.set("TERM", "xterm")
	}
	for _, entry := range in.Image.Env {
		key, value, ok := imageVariable(entry)
		// A damaged HOME is refused below rather than dropped: the user's own
		// home directory would hide that the image is hostile.
		if ok || key == "HOME" {
			env.set(key, value)
		}
	}
	for _, kv := range in.Container.GetEnvs() {
		env.set(kv.GetKey(), string(kv.GetValue()))
	}
	if _, ok := env.get("HOME"); !ok {
		home := in.User.Home
		if home == "" {
			home = "/"
		}
		env.set("HOME", home)
	}
	home, _ := env.get("HOME")
	if err := checkText("HOME", home, maxPath); err != nil {
		return err
	}
	s.Process.Env = env.list
	return nil
}

// imageVariable splits an image's variable. One without "=" must not be kept:
// it would name a variable of noded's own environment in some runtimes.
func imageVariable(entry string) (key, value string, ok bool) {
	key, value, found := strings.Cut(entry, "=")
	ok = found && key != "" && strings.IndexByte(entry, 0) < 0 && utf8.ValidString(entry)
	return key, value, ok
}

func imageEnvWarning(in *Input) string {
	for _, entry := range in.Image.Env {
		if _, _, ok := imageVariable(entry); !ok {
			return "malformed environment variables of the image are dropped"
		}
	}
	return ""
}

// checkVariable refuses a request's variable that no process could receive.
func checkVariable(key string, value []byte) error {
	if key == "" || strings.ContainsAny(key, "=\x00") || !utf8.ValidString(key) {
		return kind.Errorf(kind.Invalid, "environment variable name %q", clip(key))
	}
	if len(key)+len(value) > maxArgString {
		return tooLong("environment variable "+clip(key), len(key)+len(value), maxArgString)
	}
	if strings.IndexByte(string(value), 0) >= 0 {
		return kind.Errorf(kind.Invalid, "environment variable %s has a NUL byte", clip(key))
	}
	// An OCI spec is JSON, which would replace such bytes silently.
	if !utf8.Valid(value) {
		return kind.Errorf(kind.Invalid, "environment variable %s is not valid UTF-8, which an OCI spec cannot carry", clip(key))
	}
	return nil
}
