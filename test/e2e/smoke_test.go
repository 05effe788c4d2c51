package e2e

import "testing"

func TestSmoke(t *testing.T) {
	n := start(t)
	p := n.RunPod(t)
	if out := p.Output(t, "echo hello"); out != "hello\n" {
		t.Errorf("out %q", out)
	}
}
