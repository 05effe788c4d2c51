package runtime

import (
	"bytes"
	"fmt"
	"os"
	"testing"
	"time"
)

// BenchmarkLog is a container that prints 256 MiB in lines of 100 bytes.
func BenchmarkLog(b *testing.B) {
	n := newNode(b)
	const size = 256 << 20
	b.SetBytes(size)
	for b.Loop() {
		req := n.shell(fmt.Sprintf("yes %099d | head -c 1000000 > /tmp/f; i=0; while test $i -lt %d; do i=$((i+1)); cat /tmp/f; done", 0, size/1000000))
		req.LogPath = "/var/tmp/noded-bench-" + req.ID
		n.run(req)
		if e := n.exit(req.ID); e.Code != 0 {
			b.Fatal(e)
		}
		if err := n.Delete(n.ctx, req); err != nil {
			b.Error(err)
		}
		os.Remove(req.LogPath)
	}
	b.ReportMetric(float64(anon(b, n.shimPid())), "shim-bytes")
}

func BenchmarkExec(b *testing.B) {
	n := newNode(b)
	req := n.shell("sleep 1000")
	n.run(req)
	for b.Loop() {
		var out bytes.Buffer
		if code, err := n.Exec(n.ctx, ExecRequest{ID: req.ID, Args: []string{"/bin/true"}, IO: IO{Stdout: &out, Stderr: &out}}); code != 0 || err != nil {
			b.Fatal(code, err)
		}
	}
}

// BenchmarkHeld is the shim's memory for each of many idle containers.
func BenchmarkHeld(b *testing.B) {
	n := newNode(b)
	const count = 50
	n.shimPid()
	first := n.shell("sleep 1000")
	n.run(first)
	time.Sleep(time.Second) // let the start's memory settle
	before := anon(b, n.shimPid())
	for range count {
		n.run(n.shell("sleep 1000"))
	}
	for b.Loop() {
		time.Sleep(time.Millisecond)
	}
	b.ReportMetric(float64(anon(b, n.shimPid())-before)/count, "bytes/container")
	b.ReportMetric(float64(anon(b, n.shimPid())), "shim-bytes")
}
