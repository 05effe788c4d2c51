// Package node runs a real daemon for tests: in folders, with a cgroup, a
// bridge and a registry of its own, so that several may run at the same time.
// It starts, stops and kills the daemon and is a client of its CRI socket.
package node

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/test/oracle"
)

// Peer is the environment variable that names another CRI server to run the
// tests against, to prove the tests themselves. The only one known is "containerd".
const Peer = "NODED_TEST_PEER"

// Options says what kind of node to start. The zero value is a node with the
// built-in network and no registry.
type Options struct {
	Binary   string    // the daemon; see Build
	CNI      bool      // ordinary CNI plugins instead of the built-in network
	Registry *Registry // all image names lead to it
	Config   string    // more TOML, put before the tables
	DropIn   string    // a whole file of TOML above the configuration; "NODE" in it is the node's folder
	Env      []string  // more of the daemon's environment
	Cgroup   string    // parent of all pods; "" makes one
}

// Node is one daemon with its folders. Its methods are for one goroutine;
// Runtime and Images may be used by any.
type Node struct {
	Options
	Tag    string // in the name of everything that belongs to this node
	Dir    string // holds all of it
	Root   string
	State  string
	Socket string
	Bridge string
	Subnet string // IPv4

	Runtime cri.RuntimeServiceClient
	Images  cri.ImageServiceClient

	conn   *grpc.ClientConn
	server server
	daemon *exec.Cmd
	ended  chan struct{} // closed when daemon was waited for
	before *oracle.Snapshot
}

// server is what differs between CRI servers.
type server interface {
	// prepare writes the configuration into n.Dir and returns the command line.
	prepare(n *Node) ([]string, error)
	// helpers are the pids of long-lived helpers, by role.
	helpers(n *Node) map[string]int
	// passing are path prefixes of files that are removed in the server's own time.
	passing(n *Node) []string
	// forgets says that an error of Stop means that there is nothing to stop.
	forgets(err error) bool
}

// New starts a node that ends with the test and must leave nothing behind.
func New(t testing.TB, o Options) *Node {
	t.Helper()
	n, err := Start(o)
	if err != nil {
		t.Fatalf("start node: %v", err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("end of %s:\n%s", n.LogFile(), n.LogTail())
		}
		if err := n.Close(); err != nil {
			t.Errorf("close node: %v", err)
		}
	})
	return n
}

// Start starts a node and waits until it answers. The caller must Close it.
func Start(o Options) (*Node, error) {
	tag := strings.ToLower(fmt.Sprintf("%06x", rand.Uint32N(1<<24)))
	dir, err := os.MkdirTemp("", "noded-test-"+tag+"-")
	if err != nil {
		return nil, err
	}
	// A runtime looks root filesystems up as the root of a pod's user namespace.
	if err := os.Chmod(dir, 0o711); err != nil {
		return nil, err
	}
	n := &Node{
		Options: o, Tag: tag, Dir: dir, Root: filepath.Join(dir, "root"), State: filepath.Join(dir, "state"),
		Bridge: "nt" + tag, Subnet: fmt.Sprintf("10.%d.%d.0/24", 128+rand.IntN(100), rand.IntN(256)),
	}
	n.Socket = filepath.Join(n.State, "cri.sock")
	if n.Cgroup == "" {
		n.Cgroup = "/noded-test-" + tag
	}
	if os.Getenv(Peer) == "containerd" {
		n.server = containerd{}
	} else {
		n.server = noded{}
	}
	if n.before, err = oracle.Take(n.whole()); err != nil {
		return nil, err
	}
	if err := errors.Join(makeCgroup(n.Cgroup), n.dial()); err != nil {
		return nil, errors.Join(err, n.Close())
	}
	if err := n.Launch(); err != nil {
		return nil, errors.Join(err, fmt.Errorf("%s", n.LogTail()), n.Close())
	}
	return n, nil
}

// Launch starts the daemon, which must not be running, and waits until it answers.
func (n *Node) Launch() error {
	if err := n.Begin(); err != nil {
		return err
	}
	return n.Ready(2 * time.Minute)
}

// Begin starts the daemon and does not wait.
func (n *Node) Begin() error {
	args, err := n.server.prepare(n)
	if err != nil {
		return err
	}
	log, err := os.OpenFile(n.LogFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	n.daemon = exec.Command(args[0], args[1:]...)
	n.daemon.Env = append(os.Environ(), append([]string{n.mark()}, n.Env...)...)
	n.daemon.Stdout, n.daemon.Stderr = log, log
	n.daemon.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a ^C of the tests is not the daemon's
	if err := n.daemon.Start(); err != nil {
		return err
	}
	n.ended = make(chan struct{})
	go func(c *exec.Cmd, ended chan struct{}) {
		c.Wait() // the status is in c.ProcessState, read by Wait's callers
		close(ended)
	}(n.daemon, n.ended)
	return nil
}

// Ready waits until the daemon answers and says that pods can run.
func (n *Node) Ready(limit time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	go func() { // a daemon that has ended will never answer
		select {
		case <-n.ended:
			cancel()
		case <-ctx.Done():
		}
	}()
	for {
		s, err := n.Runtime.Status(ctx, &cri.StatusRequest{}, grpc.WaitForReady(true))
		if err == nil && ready(s.Status) {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("daemon is not ready: %v: %w", s.GetStatus().GetConditions(), errors.Join(err, ctx.Err()))
		}
		time.Sleep(10 * time.Millisecond) // conditions have no event
	}
}

func ready(s *cri.RuntimeStatus) bool {
	for _, c := range s.GetConditions() {
		if !c.Status && (c.Type == "RuntimeReady" || c.Type == "NetworkReady") {
			return false
		}
	}
	return s != nil
}

// Kill ends the daemon with SIGKILL and waits for it.
func (n *Node) Kill() {
	n.daemon.Process.Kill()
	<-n.ended
}

// Terminate ends the daemon with SIGTERM and returns how long that took. It
// kills the daemon and returns an error if it takes longer than ten seconds.
func (n *Node) Terminate() (time.Duration, error) {
	begin := time.Now()
	n.daemon.Process.Signal(syscall.SIGTERM)
	select {
	case <-n.ended:
		if code := n.daemon.ProcessState.ExitCode(); code != 0 {
			return time.Since(begin), fmt.Errorf("daemon ended with %v", n.daemon.ProcessState)
		}
		return time.Since(begin), nil
	case <-time.After(10 * time.Second):
		n.Kill()
		return time.Since(begin), errors.New("daemon did not end by SIGTERM within 10 s")
	}
}

// Ended is closed when the daemon has ended.
func (n *Node) Ended() <-chan struct{} { return n.ended }

// Pid is the daemon's.
func (n *Node) Pid() int { return n.daemon.Process.Pid }

// ShimPid is the shim's, 0 if it does not run.
func (n *Node) ShimPid() int { return n.server.helpers(n)["shim"] }

// LogFile is where the daemon's output goes.
func (n *Node) LogFile() string { return filepath.Join(n.Dir, "daemon.log") }

// LogTail is the end of the daemon's output.
func (n *Node) LogTail() string {
	data, err := os.ReadFile(n.LogFile())
	if err != nil {
		return err.Error()
	}
	return string(data[max(0, len(data)-8<<10):])
}

// mark is what this node's processes have in their environment.
func (n *Node) mark() string { return "NODED_TEST_NODE=" + n.Tag }

// Scope is what belongs to this node, for the oracle. The daemon's and the
// shim's descriptors are counted in it.
func (n *Node) Scope() oracle.Scope {
	s := n.whole()
	s.Files = []string{n.Root, n.State}
	s.Depth = 5
	s.Ignore = n.server.passing(n)
	s.Roles = func() map[string]int {
		roles := n.server.helpers(n)
		roles["daemon"] = n.Pid()
		return roles
	}
	return s
}

// whole is what must be gone when the node is.
func (n *Node) whole() oracle.Scope {
	return oracle.Scope{
		Paths: []string{n.Dir}, Cgroups: []string{n.Cgroup}, Env: n.mark(),
		Links: []string{n.Bridge}, Rules: []string{n.Bridge, n.Subnet, n.Tag},
	}
}
