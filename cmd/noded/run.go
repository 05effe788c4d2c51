package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/internal/steps"
)

// runOptions are the flags of run.
type runOptions struct {
	image   string
	command []string

	name               string
	remove, detach     bool
	stdin, tty         bool
	ports, env, mounts []string
	hostNetwork        bool
	workdir, handler   string
	memory             string
	cpus               float64
	logDir             string
}

func runCommand(a *app) *cobra.Command {
	var o runOptions
	cmd := &cobra.Command{
		Use:   "run [flags] IMAGE [COMMAND...]",
		Short: "Run a pod with one container; its exit status is this command's",
		Args:  needArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.image, o.command = args[0], args[1:]
			return a.withClient(func(c *client) error { return a.run(cmd.Context(), c, o) })
		},
	}
	f := cmd.Flags()
	f.SetInterspersed(false) // flags after IMAGE are the command's
	f.StringVar(&o.name, "name", "", "name of the pod and its container; one is made up otherwise")
	f.BoolVar(&o.remove, "rm", false, "remove the pod when the command has ended")
	f.BoolVarP(&o.detach, "detach", "d", false, "print the container's id and do not wait")
	f.BoolVarP(&o.stdin, "interactive", "i", false, "pass standard input on")
	f.BoolVarP(&o.tty, "tty", "t", false, "with a terminal")
	f.StringArrayVarP(&o.ports, "publish", "p", nil, "[hostIP:]hostPort:containerPort[/tcp|udp|sctp]")
	f.StringArrayVarP(&o.env, "env", "e", nil, "NAME=value, or NAME to take it from here")
	f.StringArrayVarP(&o.mounts, "volume", "v", nil, "/host/path:/container/path[:ro]")
	f.BoolVar(&o.hostNetwork, "host-network", false, "use the host's network")
	f.StringVarP(&o.workdir, "workdir", "w", "", "working directory in the container")
	f.StringVar(&o.handler, "runtime", "", "runtime handler; the default one otherwise")
	f.StringVar(&o.memory, "memory", "", "memory limit, as 64MiB")
	f.Float64Var(&o.cpus, "cpus", 0, "CPU limit, as 0.5")
	f.StringVar(&o.logDir, "log-dir", envOr("NODED_LOG_DIR", "/var/log/noded"), "folder of the logs of pods made by run; also NODED_LOG_DIR")
	return cmd
}

func envOr(name, otherwise string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return otherwise
}

// cleanUpTime bounds what undoes a pod after an error or an interrupt.
const cleanUpTime = time.Minute

func (a *app) run(ctx context.Context, c *client, o runOptions) (err error) {
	if o.detach && (o.stdin || o.tty || o.remove) {
		return usageError{errors.New("--detach goes with none of -i, -t and --rm")}
	}
	uid, err := randomID()
	if err != nil {
		return err
	}
	if o.name == "" {
		o.name = "run-" + uid[:8]
	}
	podConfig, err := o.pod(uid)
	if err != nil {
		return usageError{err}
	}
	ctrConfig, err := o.container()
	if err != nil {
		return usageError{err}
	}
	if err := c.nameIsFree(ctx, o.name); err != nil {
		return err
	}
	if _, err := a.ensureImage(ctx, c, o.image); err != nil {
		return err
	}
	started := false
	p, err := c.makePod(ctx, podConfig, ctrConfig, o.handler)
	defer func() {
		if o.remove || !started {
			err = errors.Join(err, c.undo(ctx, p))
		}
	}()
	if err != nil {
		return err
	}
	if err := c.startContainer(ctx, p.container); err != nil {
		return a.startFailed(ctx, c, p.container, err)
	}
	started = true
	if o.detach {
		_, err := fmt.Fprintln(a.out, p.container)
		return err
	}
	// From here on an interrupt stops the container and does not end this program.
	return a.foreground(context.WithoutCancel(ctx), c, p, o)
}

// runPod is a pod as run made it.
type runPod struct {
	pod       *cri.PodSandbox // nil: there is none yet
	container string          // "": there is none yet
}

// nameIsFree refuses a second pod of run with the same name: stop and rm would
// not know which is meant. (The runtime itself tells them apart by their uids.)
func (c *client) nameIsFree(ctx context.Context, name string) error {
	pods, err := c.listPods(ctx)
	for _, p := range pods {
		if p.GetLabels()[runLabel] != "" && p.GetMetadata().GetName() == name {
			return fmt.Errorf("there is a pod %q already: remove it with `noded rm -f %s`, or choose another --name", name, name)
		}
	}
	return err
}

func (c *client) makePod(ctx context.Context, pod *cri.PodSandboxConfig, ctr *cri.ContainerConfig, handler string) (runPod, error) {
	// The kubelet makes this folder for its pods; here this program is the kubelet.
	if err := os.MkdirAll(pod.GetLogDirectory(), 0o755); err != nil {
		return runPod{}, fmt.Errorf("make log folder: %w", err)
	}
	p := runPod{pod: &cri.PodSandbox{Metadata: pod.GetMetadata(), Labels: pod.GetLabels(), Annotations: pod.GetAnnotations()}}
	made, err := c.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: pod, RuntimeHandler: handler})
	if err != nil {
		return p, fmt.Errorf("run pod: %w", err)
	}
	p.pod.Id = made.GetPodSandboxId()
	created, err := c.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: p.pod.GetId(), Config: ctr, SandboxConfig: pod})
	if err != nil {
		return p, fmt.Errorf("create container: %w", err)
	}
	p.container = created.GetContainerId()
	return p, nil
}

func (c *client) startContainer(ctx context.Context, id string) error {
	if _, err := c.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: id}); err != nil {
		return fmt.Errorf("start container: %w", err)
	}
	return nil
}

// startFailed gives a command that cannot be executed the exit status that
// shells give it: 127 where there is none, 126 where it is no program.
func (a *app) startFailed(ctx context.Context, c *client, id string, err error) error {
	reply, statusErr := c.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: id})
	if code := reply.GetStatus().GetExitCode(); statusErr == nil && (code == 126 || code == 127) {
		fmt.Fprintln(a.err, "noded:", explain(err, a.listen))
		return exitCode(code)
	}
	return err
}

// undo removes what there is of a pod, also when ctx has ended.
func (c *client) undo(ctx context.Context, p runPod) error {
	if p.pod == nil {
		return nil
	}
	ctx, cancel := steps.CleanUp(ctx, cleanUpTime)
	defer cancel()
	if p.pod.GetId() == "" {
		return removeLogs(runLogDir(p.pod))
	}
	return c.removePod(ctx, p.pod, true)
}

// foreground connects a started container to this program's stdio and returns
// its exit status. An interrupt stops the container, a second one at once.
func (a *app) foreground(ctx context.Context, c *client, p runPod, o runOptions) error {
	reply, err := c.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: p.container})
	if err != nil {
		return fmt.Errorf("ask for container: %w", err)
	}
	stopForwarding := c.stopOnSignal(ctx, p.container)
	defer stopForwarding()
	log := &logFollower{path: reply.GetStatus().GetLogPath(), printer: &logPrinter{out: a.out, err: a.err}}
	if o.tty {
		err = a.attachTerminal(ctx, c, p.container, o.stdin, log)
	} else {
		err = a.followOutput(ctx, c, p.container, o.stdin, log)
	}
	if err != nil {
		return err
	}
	watch := c.watchExits(ctx)
	defer watch.close()
	status, err := c.waitExit(ctx, watch, p.container)
	if err != nil {
		return err
	}
	if status.GetReason() == "OOMKilled" {
		fmt.Fprintln(a.err, "noded: the container was killed because it reached its memory limit")
	}
	return exitStatus(int(status.GetExitCode()), nil)
}

// followOutput prints the log until the container ends: unlike attaching, it
// misses nothing that was written before. Only stdin needs an attach.
func (a *app) followOutput(ctx context.Context, c *client, id string, stdin bool, log *logFollower) error {
	watch := c.watchExits(ctx)
	defer watch.close()
	ended := c.closedAtExit(ctx, watch, id)
	if stdin {
		reply, err := c.Attach(ctx, &cri.AttachRequest{ContainerId: id, Stdin: true})
		if err == nil {
			s := &session{url: reply.GetUrl(), stdin: a.in}
			// Its end is the container's, which the log follower sees as well.
			go func() { _, _ = s.run(ctx) }()
		} else if !c.hasEnded(ctx, id) {
			return fmt.Errorf("attach stdin: %w", err)
		}
	}
	return log.read(ctx, -1, ended)
}

// attachTerminal connects this terminal with the container's. What a container
// wrote before there was a connection is in its log, which is shown if it ended
// so soon that nothing came over the connection.
func (a *app) attachTerminal(ctx context.Context, c *client, id string, stdin bool, log *logFollower) error {
	watch := c.watchExits(ctx)
	defer watch.close()
	out := &countingWriter{w: a.out}
	reply, err := c.Attach(ctx, &cri.AttachRequest{ContainerId: id, Stdin: stdin, Stdout: true, Tty: true})
	if err == nil {
		s := &session{url: reply.GetUrl(), stdout: out}
		if stdin {
			s.stdin = a.in
		}
		err = withTerminal(ctx, a.in, func(sizes <-chan windowSize) error {
			s.sizes = sizes
			_, err := s.run(ctx)
			return err
		})
	}
	if err != nil && !c.hasEnded(ctx, id) {
		return fmt.Errorf("attach terminal: %w", err)
	}
	if out.n > 0 {
		return nil
	}
	if _, err := c.waitExit(ctx, watch, id); err != nil {
		return err
	}
	return log.read(ctx, -1, nil)
}

type countingWriter struct {
	w io.Writer
	n int
}

func (c *countingWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += n
	return n, err
}

func (c *client) hasEnded(ctx context.Context, id string) bool {
	reply, err := c.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: id})
	return err == nil && reply.GetStatus().GetState() == cri.ContainerState_CONTAINER_EXITED
}

// stopOnSignal stops the container at SIGINT or SIGTERM, with ten seconds of
// grace, and with none at the second.
func (c *client) stopOnSignal(ctx context.Context, id string) (end func()) {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		var stops []chan struct{}
		for _, grace := range []time.Duration{10 * time.Second, 0} {
			select {
			case <-ctx.Done():
			case <-signals:
				stopped := make(chan struct{})
				stops = append(stops, stopped)
				go func() {
					defer close(stopped)
					// The exit that follows is what the caller waits for.
					_ = c.stopContainer(ctx, id, grace)
				}()
			}
		}
		for _, stopped := range stops {
			<-stopped
		}
	}()
	return func() {
		signal.Stop(signals)
		cancel()
		<-ended
	}
}

func randomID() (string, error) {
	var b [16]byte
	if _, err := rand.Read(b[:]); err != nil {
		return "", fmt.Errorf("make a pod uid: %w", err)
	}
	return hex.EncodeToString(b[:]), nil
}

// runLogDir is the log folder of a pod that `noded run` made; "" for others.
func runLogDir(pod *cri.PodSandbox) string {
	dir := pod.GetAnnotations()[runLogAnnotation]
	if pod.GetLabels()[runLabel] == "" || !filepath.IsAbs(dir) {
		return ""
	}
	return filepath.Clean(dir)
}
