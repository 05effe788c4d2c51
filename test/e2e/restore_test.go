package e2e

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/test/node"
)

func checkpointPod(p *node.Pod, dir string, containers ...*node.Container) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	req := &cri.CheckpointPodRequest{PodSandboxId: p.ID, OutputPath: dir}
	for _, c := range containers {
		req.ContainerIds = append(req.ContainerIds, c.ID)
	}
	_, err := p.Node.Runtime.CheckpointPod(ctx, req)
	return err
}

// folder is an empty one, as a kubelet makes it.
func folder(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "checkpoint")
	must(t, os.Mkdir(dir, 0o700))
	return dir
}

// restoreRequest asks for a pod like p under another uid.
func restoreRequest(t *testing.T, p *node.Pod, dir string, containers ...*node.Container) *cri.RestorePodRequest {
	t.Helper()
	config := proto.CloneOf(p.Config)
	config.Metadata.Uid += "-restored"
	config.LogDirectory = filepath.Join(t.TempDir(), "logs")
	must(t, os.MkdirAll(config.LogDirectory, 0o755))
	req := &cri.RestorePodRequest{CheckpointPath: dir, Config: config}
	for _, c := range containers {
		req.ContainerConfigs = append(req.ContainerConfigs, proto.CloneOf(c.Config))
	}
	return req
}

func tryRestore(n *node.Node, req *cri.RestorePodRequest) (*cri.RestorePodResponse, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return n.Runtime.RestorePod(ctx, req)
}

// restore restores a pod that is removed at the test's end.
func restore(t *testing.T, n *node.Node, req *cri.RestorePodRequest) (*node.Pod, map[string]*node.Container) {
	t.Helper()
	r, err := tryRestore(n, req)
	must(t, err)
	p := &node.Pod{Node: n, ID: r.PodSandboxId, Config: req.Config}
	t.Cleanup(func() {
		if err := p.Remove(); err != nil {
			t.Errorf("remove restored pod: %v", err)
		}
	})
	all := map[string]*node.Container{}
	for _, c := range r.RestoredContainers {
		for _, config := range req.ContainerConfigs {
			if config.Metadata.Name == c.Name {
				all[c.Name] = &node.Container{Pod: p, ID: c.ContainerId, Config: config}
			}
		}
	}
	if len(all) != len(req.ContainerConfigs) {
		t.Fatalf("restored %v", r.RestoredContainers)
	}
	return p, all
}

// TestRestorePod carries two containers over into another pod, with their
// memory, their files, their /dev/shm and what they have written; the old ones
// go on.
func TestRestorePod(t *testing.T) {
	n := checkpoints(t, binary)
	p := n.RunPod(t)
	a := p.Run(t, `echo of a > /dev/shm/a; rm -f /bin/id; echo changed > /etc/passwd2; `+counter)
	b := p.Run(t, counter)
	counts(t, a)
	counts(t, b)
	dir, was := folder(t), last(t, a)
	must(t, checkpointPod(p, dir, a, b))
	counts(t, a)
	counts(t, b)
	nothingBut(t, dir, "checkpoint.json", "containers", "shm.tar")
	nothingBut(t, filepath.Join(n.Root, "checkpoints"))
	req := restoreRequest(t, p, dir, a, b)
	r, all := restore(t, n, req)
	again, err := tryRestore(n, req)
	must(t, err)
	if again.PodSandboxId != r.ID || len(again.RestoredContainers) != 2 {
		t.Errorf("restored again as %v", again)
	}
	ra := all[a.Config.Metadata.Name]
	for _, c := range all {
		if s := c.Status(t); s.State != cri.ContainerState_CONTAINER_CREATED || s.StartedAt != 0 {
			t.Errorf("restored container is %v", s)
		}
		if pids := c.Pids(t); len(pids) > 0 {
			t.Errorf("it runs already: %v", pids)
		}
	}
	must(t, os.RemoveAll(dir)) // it is the caller's
	for _, c := range all {
		must(t, c.Start())
		counts(t, c)
	}
	first, err := strconv.Atoi(strings.Fields(ra.Log(t).Text())[0])
	if err != nil || first <= was {
		t.Errorf("the restored counter began with %d, before the checkpoint it was at %d", first, was)
	}
	if got := ra.Shell(t, "cat /kept /dev/shm/a /etc/passwd2; ls /bin/id 2>&1; cat /proc/1/comm; hostname"); !strings.HasPrefix(got, "kept\nof a\nchanged\nls: /bin/id: No such file or directory\nsh\n"+p.Config.Hostname) {
		t.Errorf("in the restored container: %q", got)
	}
	if p.IP(t) == r.IP(t) || !strings.Contains(ra.Shell(t, "ip addr"), r.IP(t)) {
		t.Errorf("the restored pod has the address %s, the old one %s", r.IP(t), p.IP(t))
	}
	if s := ra.Status(t); s.State != cri.ContainerState_CONTAINER_RUNNING || s.StartedAt == 0 {
		t.Errorf("started: %v", s)
	}
	counts(t, a)
	n.Kill()
	must(t, n.Launch())
	counts(t, ra)
	must(t, ra.Stop(0))
	if s := ra.WaitExit(t); s.ExitCode != 137 {
		t.Errorf("exit code %d", s.ExitCode)
	}
}

// TestRestoreExit: a restored container's own exit status is told.
func TestRestoreExit(t *testing.T) {
	n := checkpoints(t, binary)
	p := n.RunPod(t)
	c := p.Run(t, `trap 'echo bye; exit 5' TERM; `+counter)
	counts(t, c)
	dir := folder(t)
	must(t, checkpointPod(p, dir, c))
	_, all := restore(t, n, restoreRequest(t, p, dir, c))
	r := all[c.Config.Metadata.Name]
	must(t, r.Start())
	counts(t, r)
	must(t, r.Stop(20*time.Second))
	if s := r.WaitExit(t); s.ExitCode != 5 || !strings.HasSuffix(r.Log(t).Text(), "bye\n") {
		t.Errorf("exit code %d, log ends with %q", s.ExitCode, r.Log(t).Text())
	}
	// One that is never started is stopped and removed like any other.
	other := restoreRequest(t, p, dir, c)
	other.Config.Metadata.Attempt = 7
	_, all = restore(t, n, other)
	r = all[c.Config.Metadata.Name]
	n.Kill()
	must(t, n.Launch())
	if s := r.Status(t); s.State != cri.ContainerState_CONTAINER_CREATED {
		t.Errorf("after a restart of the daemon: %v", s)
	}
	must(t, r.Stop(0))
	if s := r.WaitExit(t); s.ExitCode != 137 {
		t.Errorf("stopped before its start: %v", s)
	}
	must(t, r.Remove())
}

// TestRestoreRefused: a checkpoint decides nothing of what its processes may
// do, and what it does not fit is refused, with nothing left.
func TestRestoreRefused(t *testing.T) {
	n := checkpoints(t, binary)
	p := n.RunPod(t)
	c := p.Run(t, counter, func(c *cri.ContainerConfig) {
		c.Linux.SecurityContext.Capabilities = &cri.Capability{AddCapabilities: []string{"SYS_ADMIN"}}
	})
	counts(t, c)
	dir := folder(t)
	must(t, checkpointPod(p, dir, c))
	for name, x := range map[string]struct {
		edit func(*cri.RestorePodRequest)
		code codes.Code
		text string
	}{
		"fewer capabilities": {func(r *cri.RestorePodRequest) { r.ContainerConfigs[0].Linux.SecurityContext.Capabilities = nil }, codes.FailedPrecondition, "capabilities"},
		"no new privileges":  {func(r *cri.RestorePodRequest) { r.ContainerConfigs[0].Linux.SecurityContext.NoNewPrivs = true }, codes.FailedPrecondition, "no_new_privileges"},
		"another user": {func(r *cri.RestorePodRequest) {
			r.ContainerConfigs[0].Linux.SecurityContext.RunAsUser = &cri.Int64Value{Value: 1000}
		}, codes.FailedPrecondition, "user"},
		"seccomp": {func(r *cri.RestorePodRequest) {
			r.ContainerConfigs[0].Linux.SecurityContext.Seccomp = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault}
		}, codes.FailedPrecondition, "seccomp"},
		"read-only root": {func(r *cri.RestorePodRequest) { r.ContainerConfigs[0].Linux.SecurityContext.ReadonlyRootfs = true }, codes.FailedPrecondition, "read-only"},
		"another mount": {func(r *cri.RestorePodRequest) {
			r.ContainerConfigs[0].Mounts = []*cri.Mount{{HostPath: "/etc", ContainerPath: "/host"}}
		}, codes.FailedPrecondition, "mounts"},
		"another command": {func(r *cri.RestorePodRequest) { r.ContainerConfigs[0].Command = []string{"/bin/true"} }, codes.FailedPrecondition, "command"},
		"another variable": {func(r *cri.RestorePodRequest) {
			r.ContainerConfigs[0].Envs = []*cri.KeyValue{{Key: "A", Value: []byte("b")}}
		}, codes.FailedPrecondition, "environment"},
		"another image": {func(r *cri.RestorePodRequest) { r.ContainerConfigs[0].Image.Image = "registry.test/nosuch:1" }, codes.NotFound, "image"},
		"another name":  {func(r *cri.RestorePodRequest) { r.ContainerConfigs[0].Metadata.Name = "x" }, codes.InvalidArgument, "no container"},
		"one too many": {func(r *cri.RestorePodRequest) {
			x := proto.CloneOf(r.ContainerConfigs[0])
			x.Metadata.Name = "x"
			r.ContainerConfigs = append(r.ContainerConfigs, x)
		}, codes.InvalidArgument, "no container"},
		"twice":           {func(r *cri.RestorePodRequest) { r.ContainerConfigs = append(r.ContainerConfigs, r.ContainerConfigs[0]) }, codes.InvalidArgument, "twice"},
		"none":            {func(r *cri.RestorePodRequest) { r.ContainerConfigs = nil }, codes.InvalidArgument, "container_configs"},
		"option":          {func(r *cri.RestorePodRequest) { r.Options = map[string]string{"tcp": "yes"} }, codes.InvalidArgument, `"tcp"`},
		"unknown handler": {func(r *cri.RestorePodRequest) { r.RuntimeHandler = "nosuch" }, codes.NotFound, "nosuch"},
		"relative path":   {func(r *cri.RestorePodRequest) { r.CheckpointPath = "x" }, codes.InvalidArgument, "checkpoint_path"},
		"no such folder":  {func(r *cri.RestorePodRequest) { r.CheckpointPath += "x" }, codes.InvalidArgument, "checkpoint"},
		"host network": {func(r *cri.RestorePodRequest) {
			r.Config.Linux.SecurityContext.NamespaceOptions.Network = cri.NamespaceMode_NODE
			r.Config.Hostname = ""
		}, codes.FailedPrecondition, "network"},
	} {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			req := restoreRequest(t, p, dir, c)
			x.edit(req)
			_, err := tryRestore(n, req)
			want(t, err, x.code, x.text)
		})
	}
	counts(t, c)
}

// TestRestoreTampered: a checkpoint that is not, byte for byte, what this node
// has written is refused before anything is made of it.
func TestRestoreTampered(t *testing.T) {
	n := checkpoints(t, binary)
	p := n.RunPod(t)
	c := p.Run(t, counter)
	counts(t, c)
	dir := folder(t)
	must(t, checkpointPod(p, dir, c))
	files, err := filepath.Glob(filepath.Join(dir, "containers", "*", "*"))
	must(t, err)
	images, err := filepath.Glob(filepath.Join(dir, "containers", "*", "checkpoint", "core-1.img"))
	must(t, err)
	for _, file := range append(append(files, images...), filepath.Join(dir, "checkpoint.json"), filepath.Join(dir, "shm.tar")) {
		if st, err := os.Lstat(file); err != nil || st.IsDir() || filepath.Base(file) == "config.dump" {
			continue
		}
		before, err := os.ReadFile(file)
		must(t, err)
		for name, change := range map[string]func() error{
			"bit": func() error {
				b := append([]byte(nil), before...)
				b[len(b)/2] ^= 1
				return os.WriteFile(file, b, 0o600)
			},
			"longer":  func() error { return os.WriteFile(file, append(append([]byte(nil), before...), 'x'), 0o600) },
			"shorter": func() error { return os.WriteFile(file, before[:len(before)-1], 0o600) },
			"gone":    func() error { return nil },
			"link":    func() error { return os.Symlink("/etc/passwd", file) },
			"fifo":    func() error { return mkfifo(file) },
		} {
			must(t, os.RemoveAll(file))
			must(t, change())
			_, err := tryRestore(n, restoreRequest(t, p, dir, c))
			if filepath.Base(file) != "checkpoint.json" && name == "longer" && err == nil {
				t.Errorf("%s of %s is taken", name, file)
			}
			if err == nil {
				t.Fatalf("%s of %s: restored", name, file)
			}
		}
		must(t, os.RemoveAll(file))
		must(t, os.WriteFile(file, before, 0o600))
	}
	// Whole again, it is restored here, and nowhere with another key.
	_, all := restore(t, n, restoreRequest(t, p, dir, c))
	must(t, all[c.Config.Metadata.Name].Start())
	counts(t, all[c.Config.Metadata.Name])
	n.Kill()
	must(t, os.WriteFile(filepath.Join(n.Root, "checkpoint.key"), make([]byte, 32), 0o600))
	must(t, n.Launch())
	other := restoreRequest(t, p, dir, c)
	other.Config.Metadata.Attempt = 3
	_, err = tryRestore(n, other)
	want(t, err, codes.FailedPrecondition, "key of this node")
}

// TestCheckpointPodRefused: nothing is written where a request is wrong.
func TestCheckpointPodRefused(t *testing.T) {
	n := checkpoints(t, binary)
	p, other := n.RunPod(t), n.RunPod(t, func(c *cri.PodSandboxConfig) { c.Metadata.Name += "-other" })
	c, strange := p.Run(t, counter), other.Run(t, counter)
	created := p.Create(t, "sleep 1000")
	dir := folder(t)
	full := folder(t)
	must(t, os.WriteFile(filepath.Join(full, "x"), nil, 0o600))
	want(t, checkpointPod(p, dir), codes.InvalidArgument, "container_ids")
	want(t, checkpointPod(p, dir, c, c), codes.InvalidArgument, "twice")
	want(t, checkpointPod(p, dir, strange), codes.FailedPrecondition, "not one of pod")
	want(t, checkpointPod(p, dir, c, created), codes.FailedPrecondition, "not running")
	want(t, checkpointPod(p, full, c), codes.InvalidArgument, "not empty")
	want(t, checkpointPod(p, dir+"x", c), codes.InvalidArgument, "no such")
	want(t, checkpointPod(p, "x", c), codes.InvalidArgument, "absolute")
	ctx, cancel := node.Context()
	defer cancel()
	_, err := n.Runtime.CheckpointPod(ctx, &cri.CheckpointPodRequest{PodSandboxId: p.ID, OutputPath: dir, ContainerIds: []string{c.ID}, Options: map[string]string{"a": "b"}})
	want(t, err, codes.InvalidArgument, `"a"`)
	must(t, other.Stop())
	want(t, checkpointPod(other, dir, strange), codes.FailedPrecondition, "not ready")
	shared := n.RunPod(t, func(c *cri.PodSandboxConfig) {
		c.Metadata.Name += "-pid"
		c.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD
	})
	want(t, checkpointPod(shared, dir, shared.Run(t, counter)), codes.FailedPrecondition, "PID")
	nothingBut(t, dir)
	counts(t, c)
}

func mkfifo(path string) error { return unix.Mkfifo(path, 0o600) }
