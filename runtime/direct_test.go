package runtime

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	mobyseccomp "github.com/moby/profiles/seccomp"
	rspec "github.com/opencontainers/runtime-spec/specs-go"
)

// counting puts a runtime in place of the real one that notes its commands and
// passes them on. The result reads them, without the global options.
func (n *node) counting(r *CreateRequest) func() []string {
	n.Helper()
	real, calls := r.Runtime.Path, filepath.Join(n.state, r.ID+".calls")
	r.Runtime.Path = filepath.Join(n.state, r.ID+".sh")
	script := "#!/bin/sh\necho \"$@\" >> " + calls + "\nexec " + real + " \"$@\"\n"
	if err := os.WriteFile(r.Runtime.Path, []byte(script), 0o755); err != nil {
		n.Fatal(err)
	}
	return func() []string {
		data, err := os.ReadFile(calls)
		if err != nil && !os.IsNotExist(err) {
			n.Fatal(err)
		}
		var list []string
		for line := range strings.Lines(string(data)) {
			_, command, _ := strings.Cut(line, "--log-format json ")
			list = append(list, strings.ReplaceAll(strings.TrimSpace(command), r.ID, "ID"))
		}
		return list
	}
}

func withSeccomp(t testing.TB) func(*rspec.Spec, *CreateRequest) {
	return func(s *rspec.Spec, _ *CreateRequest) {
		profile, err := mobyseccomp.GetDefaultProfile(s)
		if err != nil {
			t.Fatal(err)
		}
		for i, c := range profile.Syscalls { // as the product's profile
			profile.Syscalls[i].Names = slices.DeleteFunc(slices.Clone(c.Names), func(name string) bool { return name == "socketcall" })
		}
		s.Linux.Seccomp = profile
	}
}

func without(list []string, prefix string) (rest []string, found int) {
	for _, s := range list {
		if strings.HasPrefix(s, prefix) {
			found++
		} else {
			rest = append(rest, s)
		}
	}
	return rest, found
}

// An exec under the default seccomp profile needs no OCI runtime, neither
// before nor after the shim's re-execution and its death.
func TestExecDirect(t *testing.T) {
	n := newNode(t)
	req := n.container(withSeccomp(t), "sleep", "1000")
	calls := n.counting(&req)
	n.run(req)
	exec := func(when string) {
		var out, errs bytes.Buffer
		code, err := n.Exec(n.ctx, ExecRequest{ID: req.ID, Args: []string{"cat", "/proc/self/status"}, IO: IO{Stdout: &out, Stderr: &errs}})
		if err != nil || code != 0 || !strings.Contains(out.String(), "Seccomp:\t2\n") {
			t.Errorf("%s: code %d, %v, %q, %q", when, code, err, out.String(), errs.String())
		}
	}
	exec("first")
	exec("second")
	if err := n.UpgradeShim(n.ctx); err != nil {
		t.Fatal(err)
	}
	exec("after an upgrade")
	n.killShim()
	n.shimPid()
	exec("after the shim's death")
	if rest, found := without(calls(), "exec"); found > 0 || len(rest) != 2 {
		t.Errorf("the OCI runtime was called: %q", calls())
	}
}

// What needs the OCI runtime gets it.
func TestExecByRuntime(t *testing.T) {
	n := newNode(t)
	req := n.container(func(s *rspec.Spec, _ *CreateRequest) {
		s.Process.Scheduler = &rspec.Scheduler{Policy: rspec.SchedBatch}
	}, "sleep", "1000")
	calls := n.counting(&req)
	n.run(req)
	var out bytes.Buffer
	if code, err := n.Exec(n.ctx, ExecRequest{ID: req.ID, Args: []string{"echo", "x"}, IO: IO{Stdout: &out}}); err != nil || code != 0 || out.String() != "x\n" {
		t.Errorf("code %d, %v, %q", code, err, out.String())
	}
	if _, found := without(calls(), "exec"); found != 1 {
		t.Errorf("calls: %q", calls())
	}
}

// A template is kept for execs that follow, and not for ever.
func TestTemplateEnds(t *testing.T) {
	dir := t.TempDir()
	write := func(path string) {
		data := `{"process": {"cwd": "` + path + `"}, "linux": {"resources": {}, "seccomp": {"defaultAction": "SCMP_ACT_ALLOW"}}}`
		if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c := &container{record: record{Request: CreateRequest{Bundle: dir}}}
	get := func() *template {
		x, err := c.execTemplate()
		if err != nil {
			t.Fatal(err)
		}
		return x
	}
	write("/one")
	first := get()
	if first.process.Cwd != "/one" || first.filter == nil || first.refused != nil || first.linux.Seccomp != nil || first.linux.Resources != nil {
		t.Errorf("template %+v", first)
	}
	write("/two")
	if get() != first {
		t.Error("read again at once")
	}
	c.templateEnd.Reset(time.Millisecond)
	eventually(t, "end of the template", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.template == nil
	})
	if again := get(); again.process.Cwd != "/two" {
		t.Errorf("template %+v", again.process)
	}
}
