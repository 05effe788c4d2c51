package sandbox

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/internal/kind"
	"noded.dev/noded/runtime"
)

// Every state in which a crash can leave a container, against everything that
// the shim can know of it.
func TestRecoverContainer(t *testing.T) {
	const gone = -1 // no longer listed, and nothing left of it
	created, running, exited := cri.ContainerState_CONTAINER_CREATED, cri.ContainerState_CONTAINER_RUNNING, cri.ContainerState_CONTAINER_EXITED
	for _, c := range []struct {
		state  containerState
		shim   string // "alive", "ended" or "unknown"
		reboot bool
		want   cri.ContainerState
		code   int32
	}{
		{state: stateCreating, shim: "unknown", want: gone},
		{state: stateCreating, shim: "alive", want: gone},
		{state: stateCreating, shim: "ended", want: gone},
		{state: stateCreated, shim: "alive", want: created},
		{state: stateCreated, shim: "ended", want: exited, code: 7},
		{state: stateCreated, shim: "unknown", want: exited, code: 255},
		{state: stateStarting, shim: "alive", want: running},
		{state: stateStarting, shim: "ended", want: exited, code: 7},
		{state: stateStarting, shim: "unknown", want: exited, code: 255},
		{state: stateRunning, shim: "alive", want: running},
		{state: stateRunning, shim: "ended", want: exited, code: 7},
		{state: stateRunning, shim: "unknown", want: exited, code: 255},
		{state: stateRunning, shim: "unknown", reboot: true, want: exited, code: 255},
		{state: stateCreated, shim: "unknown", reboot: true, want: exited, code: 255},
		{state: stateExited, shim: "unknown", want: exited, code: 3},
		{state: stateExited, shim: "ended", want: exited, code: 3},
		{state: stateRemoving, shim: "ended", want: gone},
		{state: stateRemoving, shim: "unknown", want: gone},
	} {
		t.Run(string(c.state)+" "+c.shim, func(t *testing.T) {
			n := newNode(t)
			pod := n.mustRun(t, "p")
			id := n.mustCreate(t, pod, "c")
			err := n.containers[id].note(func(r *containerRecord) {
				r.State = c.state
				if c.state == stateExited {
					r.ExitCode, r.FinishedAt = 3, time.Now()
				}
			})
			if err != nil {
				t.Fatal(err)
			}
			n.close()
			switch c.shim {
			case "ended":
				n.runtime.held[id].Exit = &runtime.Exit{ID: id, Code: 7, At: time.Now()}
			case "unknown":
				delete(n.runtime.held, id)
			}
			if c.reboot {
				n.opts.BootID = "boot-2"
			}
			n.open(t)
			list := n.ListContainers(nil)
			if c.want == gone {
				if len(list) != 0 {
					t.Errorf("listed: %v", list)
				}
			} else if s, err := n.ContainerStatus(id, false); err != nil || s.Status.State != c.want || s.Status.ExitCode != c.code {
				t.Errorf("got %v, %v; want %v with code %d", s, err, c.want, c.code)
			}
			if err := n.RemovePod(t.Context(), pod); err != nil {
				t.Error(err)
			}
			n.nothingLeft(t)
		})
	}
}

func TestRecoverPod(t *testing.T) {
	ready, notReady := cri.PodSandboxState_SANDBOX_READY, cri.PodSandboxState_SANDBOX_NOTREADY
	for _, c := range []struct {
		state  podState
		reboot bool
		listed bool
		want   cri.PodSandboxState
	}{
		{state: podCreating},
		{state: podRemoving},
		{state: podReady, listed: true, want: ready},
		{state: podReady, reboot: true, listed: true, want: notReady},
		{state: podStopped, listed: true, want: notReady},
	} {
		t.Run(string(c.state), func(t *testing.T) {
			n := newNode(t)
			id := n.mustRun(t, "p")
			if err := n.pods[id].update(func(r *podRecord) { r.State = c.state }); err != nil {
				t.Fatal(err)
			}
			n.close()
			if c.reboot {
				n.opts.BootID = "boot-2"
			}
			n.open(t)
			list := n.ListPods(nil)
			if !c.listed {
				if len(list) != 0 {
					t.Errorf("listed: %v", list)
				}
				n.nothingLeft(t)
				return
			}
			if len(list) != 1 || list[0].State != c.want {
				t.Errorf("listed: %v, want %v", list, c.want)
			}
		})
	}
}

// What a dead daemon left in the shim and the image store without a record
// does not stay.
func TestRecoverOwnerless(t *testing.T) {
	n := newNode(t)
	pod := n.mustRun(t, "p")
	n.close()
	stranger := newID()
	n.runtime.held[stranger] = &runtime.State{ID: stranger}
	n.images.mounted[stranger] = true
	n.open(t)
	if len(n.runtime.held)+len(n.images.mounted) != 0 {
		t.Errorf("left: %v %v", n.runtime.held, n.images.mounted)
	}
	if len(n.network.kept) != 1 || n.network.kept[0] != pod {
		t.Errorf("networks of %v were kept, want of %s", n.network.kept, pod)
	}
}

// A pod whose removal fails stays listed, and the next try finishes.
func TestRemoveIsRetried(t *testing.T) {
	n := newNode(t)
	pod := n.mustRun(t, "p")
	if err := n.pods[pod].update(func(r *podRecord) { r.NetworkOwe = true }); err != nil {
		t.Fatal(err)
	}
	n.network.del = errors.New("plugin is missing")
	if err := n.RemovePod(t.Context(), pod); !errors.Is(err, n.network.del) {
		t.Errorf("got %v", err)
	}
	if list := n.ListPods(nil); len(list) != 1 || list[0].State != cri.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("listed: %v", list)
	}
	n.network.del = nil
	if err := n.RemovePod(t.Context(), pod); err != nil {
		t.Error(err)
	}
	n.nothingLeft(t)
}

// A stop that was cut off is finished, since nobody would repeat it.
func TestRecoverStoppedPodIsReleased(t *testing.T) {
	for _, boot := range []string{"boot-1", "boot-2"} {
		n := newNode(t)
		pod := n.mustRun(t, "p")
		err := n.pods[pod].update(func(r *podRecord) {
			r.NetworkOwe = true
			if boot == "boot-1" {
				r.State = podStopped
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		n.network.connected[pod] = true
		n.close()
		n.opts.BootID = boot
		n.open(t)
		n.settled()
		if len(n.network.connected) != 0 {
			t.Errorf("%s: the stopped pod is still connected", boot)
		}
	}
}

// A start that was cut off and is refused now leaves nothing that is called
// running; while nobody can be asked, nothing is killed.
func TestRecoverRefusedStart(t *testing.T) {
	for name, c := range map[string]struct {
		err   error
		want  cri.ContainerState
		lives bool
	}{
		"refused":    {errors.New("boom"), cri.ContainerState_CONTAINER_EXITED, false},
		"bad":        {&runtime.StartError{Code: 127, Err: errors.New("not found")}, cri.ContainerState_CONTAINER_EXITED, false},
		"no answer":  {kind.Errorf(kind.Unavailable, "shim"), cri.ContainerState_CONTAINER_CREATED, true},
		"it started": {nil, cri.ContainerState_CONTAINER_RUNNING, true},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			id := n.mustCreate(t, n.mustRun(t, "p"), "c")
			if err := n.containers[id].note(func(r *containerRecord) { r.State = stateStarting }); err != nil {
				t.Fatal(err)
			}
			n.close()
			n.runtime.start = func(context.Context, string) error { return c.err }
			n.open(t)
			if s := n.state(t, id); s != c.want {
				t.Errorf("it is %v, want %v", s, c.want)
			}
			n.settled()
			if lives := n.runtime.lives(id); lives != c.lives {
				t.Errorf("it lives: %v, want %v", lives, c.lives)
			}
		})
	}
}

// A record without content, as a power cut can leave one, is no record.
func TestRecoverEmptyRecord(t *testing.T) {
	n := newNode(t)
	id := n.mustRun(t, "p")
	n.close()
	if err := os.WriteFile(filepath.Join(n.opts.Root, "pods", id, recordFile), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	n.open(t)
	n.nothingLeft(t)
	if _, err := os.Stat(filepath.Join(n.opts.Root, "quarantine")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("something was set aside: %v", err)
	}
}

// What cannot be destroyed at once does not keep noded from serving.
func TestRecoverDoesNotWaitForEver(t *testing.T) {
	n := newNode(t)
	pod := n.mustRun(t, "p")
	id := n.mustCreate(t, pod, "c")
	if err := n.containers[id].note(func(r *containerRecord) { r.State = stateRemoving }); err != nil {
		t.Fatal(err)
	}
	n.close()
	release := make(chan struct{})
	n.images.unmount = func(string) error {
		<-release
		return nil
	}
	opened := make(chan struct{})
	go func() {
		n.open(t)
		close(opened)
	}()
	select {
	case <-opened:
	case <-time.After(10 * tidyLimit):
		t.Fatal("noded does not serve")
	}
	if list := n.ListContainers(nil); len(list) != 0 {
		t.Errorf("listed: %v", list)
	}
	close(release)
	if err := n.RemovePod(t.Context(), pod); err != nil {
		t.Error(err)
	}
	n.nothingLeft(t)
}
