package nsexec

import (
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestFirst(t *testing.T) {
	c := start(t, nil)
	out := c.mustHere(c.process("cat", "/proc/self/status"))
	t.Log(out)
	if !strings.Contains(out, "cat") {
		t.Error(out)
	}
	_, err := c.here(c.process("nonesuch"))
	if !errors.Is(err, unix.ENOENT) {
		t.Error(err)
	}
	t.Log(err)
}
