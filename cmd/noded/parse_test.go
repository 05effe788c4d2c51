package main

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestParsePort(t *testing.T) {
	for text, want := range map[string]*cri.PortMapping{
		"8080:80":               {HostPort: 8080, ContainerPort: 80},
		"53:5353/udp":           {HostPort: 53, ContainerPort: 5353, Protocol: cri.Protocol_UDP},
		"127.0.0.1:1:65535/tcp": {HostIp: "127.0.0.1", HostPort: 1, ContainerPort: 65535},
		"[::1]:80:80/sctp":      {HostIp: "::1", HostPort: 80, ContainerPort: 80, Protocol: cri.Protocol_SCTP},
	} {
		got, err := parsePort(text)
		if err != nil || got.String() != want.String() {
			t.Errorf("%s: %v, %v, want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "80", "0:80", "80:0", "80:65536", "-1:80", "a:b", "host:80:80", "80:80/icmp", ":80", "1.2.3.4:80"} {
		if got, err := parsePort(text); err == nil {
			t.Errorf("%q was taken as %v", text, got)
		}
	}
}

func TestParseMounts(t *testing.T) {
	mounts, err := parseMounts([]string{"/a:/b", "/c:/d:ro", "/e:/f:rw"})
	if err != nil || len(mounts) != 3 || mounts[0].GetReadonly() || !mounts[1].GetReadonly() || mounts[2].GetReadonly() {
		t.Errorf("%v, %v", mounts, err)
	}
	for _, text := range []string{"/a", "a:/b", "/a:b", "/a:/b:rx", "/a:/b:ro:x"} {
		if _, err := parseMounts([]string{text}); err == nil {
			t.Errorf("%q was taken", text)
		}
	}
}

func TestRunResources(t *testing.T) {
	r, err := runOptions{memory: "64MiB", cpus: 0.5}.resources()
	if err != nil || r.GetMemoryLimitInBytes() != 64<<20 || r.GetCpuQuota() != 50_000 || r.GetCpuPeriod() != 100_000 {
		t.Errorf("%v, %v", r, err)
	}
	for _, o := range []runOptions{{memory: "64 megs"}, {cpus: -1}, {cpus: 0.001}} {
		if r, err := o.resources(); err == nil {
			t.Errorf("%+v was taken as %v", o, r)
		}
	}
}

// The error stream's content, as runtimes send it.
func TestParseStatus(t *testing.T) {
	for _, c := range []struct {
		report, problem string
		code            int
	}{
		{"", "", 0},
		{`{"metadata":{},"status":"Success"}`, "", 0},
		{`{"status":"Failure","reason":"NonZeroExitCode","message":"command terminated with non-zero exit code","details":{"causes":[{"reason":"ExitCode","message":"42"}]}}`, "", 42},
		{`{"status":"Failure","reason":"InternalError","message":"no such \u001b[31mcontainer"}`, "no such ?[31mcontainer", 0},
		{`{"status":"Failure","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"many"}]}}`, `the runtime reported exit status "many"`, 0},
		{"plain words", "plain words", 0},
	} {
		code, err := parseStatus([]byte(c.report))
		text := ""
		if err != nil {
			text = err.Error()
		}
		if code != c.code || text != c.problem {
			t.Errorf("%s: %d, %q, want %d, %q", c.report, code, text, c.code, c.problem)
		}
	}
}

func TestExplain(t *testing.T) {
	const listen = "unix:///run/x.sock"
	for _, c := range []struct {
		err  error
		want string
	}{
		{fmt.Errorf("stop pod abc: %w", status.Error(codes.Aborted, "kill: it hangs")), "stop pod abc: kill: it hangs"},
		{errors.Join(errors.New("one"), fmt.Errorf("two: %w", status.Error(codes.NotFound, "gone"))), "one; two: gone"},
		{status.Error(codes.Unimplemented, "no events"), "no events; this runtime cannot do it"},
		{status.Error(codes.Unavailable, "dial unix /run/x.sock: connect: no such file or directory"),
			"nothing serves unix:///run/x.sock: start the daemon with `noded serve`, or name its socket with --listen"},
		{status.Error(codes.Unavailable, "dial unix /run/x.sock: connect: permission denied"), "no permission to use unix:///run/x.sock: run this as root"},
	} {
		if got := explain(c.err, listen); got != c.want {
			t.Errorf("got  %q\nwant %q", got, c.want)
		}
	}
}

func TestTexts(t *testing.T) {
	for n, want := range map[uint64]string{0: "0 B", 999: "999 B", 1000: "1.00 kB", 9994: "9.99 kB", 9996: "10.0 kB", 123_456: "123 kB", 999_999: "1.00 MB", 4_200_000_000: "4.20 GB"} {
		if got := bytesText(n); got != want {
			t.Errorf("%d bytes: %q, want %q", n, got, want)
		}
	}
	now := time.Unix(1_000_000, 0)
	for before, want := range map[time.Duration]string{0: "0s", 59 * time.Second: "59s", 90 * time.Second: "1m", 150 * time.Minute: "2h30m", 72 * time.Hour: "3d", -time.Hour: "0s"} {
		if got := age(now.Add(-before).UnixNano(), now); got != want {
			t.Errorf("%s ago: %q, want %q", before, got, want)
		}
	}
	if got := printable("a\x1b[2Jb\nc\u009bd é"); got != "a?[2Jb?c?d é" {
		t.Errorf("printable: %q", got)
	}
	for name, want := range map[string][2]string{
		"a/b:1": {"a/b", "1"}, "host:5000/a": {"host:5000/a", "<none>"}, "host:5000/a:x": {"host:5000/a", "x"}, "a@sha256:00": {"a", "<none>"},
	} {
		if repository, tag := splitTag(name); [2]string{repository, tag} != want {
			t.Errorf("%s: %s, %s", name, repository, tag)
		}
	}
}
