package runtime

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	rspec "github.com/opencontainers/runtime-spec/specs-go"

	"noded.dev/noded/runtime/nsexec"
	"noded.dev/noded/runtime/nsexec/seccomp"
)

// templateKept is how long a template is kept after its last use. Probes come
// more often; a container without any should cost no memory for them.
const templateKept = time.Minute

// template is what all execs of a container have in common. To make one takes
// longer than an exec.
type template struct {
	process *rspec.Process
	linux   *rspec.Linux    // without what execs do not need
	filter  *seccomp.Filter // nil: the container has none
	refused error           // why execs need the OCI runtime; nil: they do not, as far as this tells
	told    sync.Once       // the log knows that
}

// execTemplate returns the container's template; callers do not change it.
func (c *container) execTemplate() (*template, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.template != nil && c.templateEnd.Reset(templateKept) {
		return c.template, nil
	}
	t, err := readTemplate(filepath.Join(c.record.Request.Bundle, "config.json"))
	if err != nil {
		return nil, err
	}
	if c.deleting {
		return t, nil
	}
	c.template = t
	c.templateEnd = time.AfterFunc(templateKept, func() { c.dropTemplate(t) })
	return t, nil
}

// dropTemplate forgets t, unless there is a newer one.
func (c *container) dropTemplate(t *template) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.template == t {
		c.template = nil
	}
}

func readTemplate(path string) (*template, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read container specification: %w", err)
	}
	var spec struct {
		Process *rspec.Process
		Linux   *rspec.Linux
	}
	if err := json.Unmarshal(data, &spec); err != nil {
		return nil, fmt.Errorf("decode container specification: %w", err)
	}
	if spec.Process == nil {
		return nil, fmt.Errorf("decode container specification: %s has no process", filepath.Base(path))
	}
	t := &template{process: spec.Process, linux: spec.Linux}
	t.process.CommandLine = ""
	if l := t.linux; l != nil {
		if l.Seccomp != nil {
			t.filter, t.refused = nsexec.Compile(l.Seccomp)
		}
		l.Seccomp, l.Resources, l.Devices, l.MaskedPaths, l.ReadonlyPaths = nil, nil, nil, nil, nil
	}
	return t, nil
}
