package cni

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"noded.dev/noded/cni/internal/nettest"
	"noded.dev/noded/internal/kind"
)

// fake answers ADD, notes each verb with its container id, and takes its time.
const fake = `echo "$CNI_COMMAND $CNI_CONTAINERID" >> "$(dirname "$0")/verbs"
cat > "$(dirname "$0")/stdin.$CNI_COMMAND"
[ $CNI_COMMAND = STATUS ] && [ -e "$(dirname "$0")/sick" ] && { echo '{"code":50,"msg":"agent is down"}'; exit 1; }
[ $CNI_COMMAND = ADD ] && { sleep 0.1; echo '{"cniVersion":"1.1.0","ips":[{"address":"10.1.2.3/24"}]}'; }
exit 0`

func newFake(t testing.TB) (*node, func() []string) {
	t.Helper()
	n := newNode(t)
	n.plugin(t, "fake", fake)
	n.conf(t, "10.conflist", `{"cniVersion":"1.1.0","name":"n","plugins":[{"type":"fake"}]}`)
	return n, func() []string {
		data, err := os.ReadFile(filepath.Join(n.BinDirs[0], "verbs"))
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		var list []string
		for _, v := range strings.Split(strings.TrimSpace(string(data)), "\n") {
			if !strings.HasPrefix(v, "STATUS") && v != "" {
				list = append(list, v)
			}
		}
		return list
	}
}

func TestStatusVerb(t *testing.T) {
	n, _ := newFake(t)
	sick := filepath.Join(n.BinDirs[0], "sick")
	if err := os.WriteFile(sick, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	nets := n.open(t)
	if err := nets.Ready(); !kind.Is(err, kind.Precondition) || !strings.Contains(err.Error(), "agent is down") {
		t.Fatalf("ready: %v, want the plugin's words", err)
	}
	if err := os.Remove(sick); err != nil {
		t.Fatal(err)
	}
	ok := false
	for begin := time.Now(); !ok && time.Since(begin) < 5*time.Second; time.Sleep(20 * time.Millisecond) {
		ok = nets.Ready() == nil // each question makes the next answer newer
	}
	if !ok {
		t.Errorf("still %v", nets.Ready())
	}
}

func TestGC(t *testing.T) {
	nettest.NeedRoot(t)
	n, verbs := newFake(t)
	nets := n.open(t)
	for _, id := range []string{"keep", "drop", "lost", "damaged"} {
		mustAdd(t, nets, pod(id, nettest.Pod(t)))
	}
	if err := nets.GC(t.Context(), nil); err != nil { // all were added by this very process
		t.Fatal(err)
	}
	if got := strings.Join(verbs(), ","); strings.Contains(got, "DEL") {
		t.Fatalf("GC deleted pods that were just added: %s", got)
	}
	records := filepath.Join(n.CacheDir, "pods")
	for _, step := range []error{
		os.Remove(filepath.Join(records, "lost.json")),
		os.WriteFile(filepath.Join(records, "damaged.json"), []byte("{"), 0o600),
		os.WriteFile(filepath.Join(records, ".tmp-a"), []byte("{"), 0o600),
	} {
		if step != nil {
			t.Fatal(step)
		}
	}
	nets = n.open(t)
	mustAdd(t, nets, pod("new", nettest.Pod(t)))
	before := len(verbs())
	if err := nets.GC(t.Context(), []string{"keep"}); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(verbs()[before:], ","); got != "DEL damaged,DEL drop,DEL lost,GC" {
		t.Errorf("GC called %q", got)
	}
	told, err := os.ReadFile(filepath.Join(n.BinDirs[0], "stdin.GC"))
	if err != nil || !strings.Contains(string(told), `"containerID":"keep"`) || !strings.Contains(string(told), `"containerID":"new"`) || strings.Contains(string(told), "drop") {
		t.Errorf("GC was told %s (%v)", told, err)
	}
	if left := n.cached(t); len(left) != 4 { // record and result of "keep" and "new"
		t.Errorf("cached: %v", left)
	}
}

// TestAddAfterCrash finds a pod whose ADD was cut off.
func TestAddAfterCrash(t *testing.T) {
	nettest.NeedRoot(t)
	n, verbs := newFake(t)
	nets := n.open(t)
	p := pod("p", nettest.Pod(t))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	added := make(chan error, 1)
	go func() { _, err := nets.Add(ctx, p); added <- err }()
	for len(verbs()) == 0 { // the plugin says that it was called in a file
		time.Sleep(time.Millisecond)
	}
	cancel()
	if err := <-added; !kind.Is(err, kind.Canceled) {
		t.Fatalf("slow ADD: %v", err)
	}
	nets = n.open(t)
	mustAdd(t, nets, p)
	if got := strings.Join(verbs(), ","); got != "ADD p,DEL p,ADD p" {
		t.Errorf("called %s, want DEL between the ADDs", got)
	}
	p.NetNS = nettest.Pod(t) // the namespace was made anew: the connection is void
	mustAdd(t, nets, p)
	if got := strings.Join(verbs(), ","); got != "ADD p,DEL p,ADD p,DEL p,ADD p" {
		t.Errorf("called %s for a new namespace", got)
	}
}

func TestConcurrency(t *testing.T) {
	nettest.NeedRoot(t)
	n, verbs := newFake(t)
	n.MaxConcurrent = 2
	nets := n.open(t)
	ns := nettest.Pod(t)
	begin := time.Now()
	var wg sync.WaitGroup
	for i := range 6 {
		for range 2 { // and each twice: the second finds it done
			wg.Go(func() {
				if _, err := nets.Add(t.Context(), pod(fmt.Sprint("p", i), ns)); err != nil {
					t.Error(err)
				}
			})
		}
	}
	wg.Wait()
	if got := verbs(); len(got) != 6 {
		t.Errorf("called %v, want 6 ADDs", got)
	}
	if took := time.Since(begin); took < 280*time.Millisecond {
		t.Errorf("6 ADDs of 0.1 s took %v with two at once", took)
	}
	if len(nets.locks.held) > 0 {
		t.Errorf("locks are left: %v", nets.locks.held)
	}
}

// TestPolling uses up this user's inotify instances first.
func TestPolling(t *testing.T) {
	var fds []int
	defer func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}()
	for {
		fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
		if err != nil {
			break
		}
		if fds = append(fds, fd); len(fds) == 4096 {
			t.Skip("no limit of inotify instances")
		}
	}
	n := newNode(t)
	nets := n.open(t)
	n.conf(t, "10.conf", `{"name":"n","type":"fake"}`)
	ok := false
	for begin := time.Now(); !ok && time.Since(begin) < pollInterval+2*time.Second; time.Sleep(10 * time.Millisecond) {
		_, err := nets.backend.(*plugins).network() // which does not ask for a look, as Ready does
		ok = err == nil
	}
	if !ok {
		t.Error("without inotify the new configuration is not seen")
	}
}

func TestOpenRefuses(t *testing.T) {
	for _, o := range []Options{
		{Mode: "host", CacheDir: t.TempDir()}, {Mode: ModeCNI, CacheDir: t.TempDir()}, {Mode: ModeBuiltin},
		{Mode: ModeBuiltin, CacheDir: t.TempDir(), Builtin: BuiltinOptions{Bridge: "/"}},
	} {
		if _, err := Open(t.Context(), o); !kind.Is(err, kind.Invalid) {
			t.Errorf("%+v: %v, want kind Invalid", o, err)
		}
	}
	n, _ := newFake(t)
	nets := n.open(t)
	for _, p := range []Pod{{ID: ""}, {ID: "../x"}, {ID: "a/b"}, {ID: "a", Name: "a;b"}, {ID: strings.Repeat("a", 129)}} {
		if _, err := nets.Add(t.Context(), p); !kind.Is(err, kind.Invalid) {
			t.Errorf("pod %+v: %v, want kind Invalid", p, err)
		}
	}
	for _, bad := range [][]string{{"x"}, {"10.0.0.0"}, make17()} {
		if err := nets.SetPodCIDR(bad); !kind.Is(err, kind.Invalid) {
			t.Errorf("range %v: %v, want kind Invalid", bad, err)
		}
	}
}

func make17() (list []string) {
	for i := range 17 {
		list = append(list, fmt.Sprintf("10.%d.0.0/24", i))
	}
	return list
}

func TestBadConfigurations(t *testing.T) {
	canary := filepath.Join(t.TempDir(), "canary")
	for name, text := range map[string]string{
		"up": `{"name":"n","type":"../canary"}`, "absolute": `{"name":"n","type":"` + canary + `"}`, "spaces": `{"name":"n","type":"a b"}`,
		"ipam": `{"name":"n","type":"bridge","ipam":{"type":"../../canary"}}`, "name": `{"name":"../n","type":"bridge"}`,
		"no type": `{"name":"n"}`, "not json": `x`, "null": `null`, "array": `[]`, "future": `{"cniVersion":"9.0.0","name":"n","type":"bridge"}`,
		"version": `{"cniVersion":"one","name":"n","type":"bridge"}`, "long": `{"name":"n","type":"bridge","x":"` + strings.Repeat("x", maxConfSize) + `"}`,
	} {
		for _, file := range []string{"10.conf", "10.conflist"} {
			n := newNode(t)
			if file == "10.conflist" {
				text = `{"name":"n","plugins":[` + text + `]}`
			}
			n.conf(t, file, text)
			nets := n.open(t)
			if file == "10.conf" || (name != "name" && name != "future" && name != "version") { // a list has its own
				if err := nets.Ready(); !kind.Is(err, kind.Precondition) || !strings.Contains(err.Error(), file) {
					t.Errorf("%s in %s: %v, want kind Precondition and the file", name, file, err)
				}
			}
		}
	}
	n := newNode(t)
	if err := unix.Mkfifo(filepath.Join(n.ConfDir, "10.conf"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := n.open(t).Ready(); err == nil || !strings.Contains(err.Error(), "regular") {
		t.Errorf("a FIFO: %v", err)
	}
}

func TestBuiltinMode(t *testing.T) {
	nettest.NeedRoot(t)
	n := newNode(t)
	n.Mode, n.Builtin.Bridge = ModeBuiltin, "ndmode0"
	nets := n.open(t)
	p := pod("p", nettest.Pod(t))
	p.PortMappings = []PortMapping{{HostPort: 8800, ContainerPort: 80, Protocol: "tcp"}}
	r := mustAdd(t, nets, p)
	nettest.Serve(t, p.NetNS, ":80")
	if _, err := nettest.Ask("", "tcp", "127.0.0.1:8800"); err != nil {
		t.Error(err)
	}
	if err := nets.Check(t.Context(), p); err != nil {
		t.Error(err)
	}
	if _, err := nets.Add(t.Context(), Pod{ID: "q", NetNS: nettest.Pod(t), PortMappings: p.PortMappings}); !kind.Is(err, kind.Exists) {
		t.Errorf("taken port: %v, want kind Exists", err)
	}
	if err := nets.Teardown(t.Context()); !kind.Is(err, kind.Precondition) {
		t.Errorf("teardown with a pod: %v", err)
	}
	if err := nets.Close(); err != nil {
		t.Fatal(err)
	}
	nets = n.open(t)
	if again := mustAdd(t, nets, p); again.IPs[0] != r.IPs[0] {
		t.Errorf("after a restart %v, before %v", again, r)
	}
	if err := nets.SetPodCIDR([]string{"10.92.0.0/24"}); err != nil {
		t.Fatal(err)
	}
	nets.Close()
	nets = n.open(t)
	if q := mustAdd(t, nets, pod("q", nettest.Pod(t))); len(q.IPs) != 1 || !strings.HasPrefix(q.IPs[0].String(), "10.92.0.") {
		t.Errorf("%v is not of the kubelet's range", q)
	}
	nets.Close()
	nets = n.open(t)
	if err := nets.GC(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if left := n.cached(t); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if err := nets.Teardown(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestInspect(t *testing.T) {
	n, _ := newFake(t)
	problems := func() string {
		var texts []string
		for _, f := range Inspect(t.Context(), n.Options) {
			if f.Problem {
				texts = append(texts, f.Text)
			}
		}
		return strings.Join(texts, "; ")
	}
	n.plugin(t, "fake", `[ $CNI_COMMAND = VERSION ] && echo '{"cniVersion":"1.1.0","supportedVersions":["1.0.0","1.1.0"]}'; exit 0`)
	if p := problems(); p != "" {
		t.Errorf("all well: %s", p)
	}
	n.conf(t, "10.conflist", `{"cniVersion":"0.4.0","name":"n","plugins":[{"type":"fake","ipam":{"type":"nosuch"}}]}`)
	if p := problems(); !strings.Contains(p, "nosuch") || !strings.Contains(p, "0.4.0") {
		t.Errorf("problems: %s", p)
	}
	n.conf(t, "10.conflist", `{`)
	if p := problems(); !strings.Contains(p, "10.conflist") {
		t.Errorf("problems: %s", p)
	}
}

func benchmark(b *testing.B, n *node) {
	nettest.NeedRoot(b)
	nets := n.open(b)
	ns := nettest.Pod(b)
	var add time.Duration
	for b.Loop() {
		begin := time.Now()
		if _, err := nets.Add(b.Context(), pod("p", ns)); err != nil {
			b.Fatal(err)
		}
		add += time.Since(begin)
		if err := nets.Del(b.Context(), pod("p", ns)); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(add.Microseconds())/1000/float64(b.N), "ms/add")
}

func BenchmarkPlugins(b *testing.B) {
	n := newNode(b)
	n.conf(b, "10.conflist", n.bridged("cnibench0", 79))
	benchmark(b, n)
}

func BenchmarkBuiltin(b *testing.B) {
	n := newNode(b)
	n.Mode, n.Builtin.Bridge = ModeBuiltin, "ndbench0"
	benchmark(b, n)
}
