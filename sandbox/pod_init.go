package sandbox

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"

	"noded.dev/noded/internal/atomicfile"
	"noded.dev/noded/internal/kind"
	"noded.dev/noded/internal/steps"
	"noded.dev/noded/runtime"
	"noded.dev/noded/spec"
)

// ensureInit returns the pid of the process that holds the pod's shared PID
// namespace, starting it for the first container that lives there. It runs
// under its own key, so that containers created side by side share one.
func (p *Pod) ensureInit(ctx context.Context) (int, error) {
	_, err := p.m.flights.do(ctx, "init "+p.id, startLimit, func(ctx context.Context, at func(string)) (string, error) {
		if err := acquire(ctx, p.initOp); err != nil {
			return "", err
		}
		defer func() { <-p.initOp }()
		if err := p.precondition(); err != nil {
			return "", err // stopped meanwhile: an init started now would have no end
		}
		if p.record().Init.Pid != 0 {
			return "", nil
		}
		return "", p.startInit(ctx, at)
	})
	if err != nil {
		return 0, err
	}
	return p.record().Init.Pid, nil
}

func (p *Pod) startInit(ctx context.Context, at func(string)) error {
	var process runtime.Process
	return steps.Run(ctx, "start init", at,
		steps.Step{Name: "record owed", Do: func(context.Context) error {
			return p.update(func(r *podRecord) { r.InitOwe, p.initEnded = true, false })
		}},
		steps.Step{Name: "write bundle", Do: p.writeInitBundle},
		steps.Step{Name: "create in runtime", Do: func(ctx context.Context) (err error) {
			// A start that was cut off may have left one.
			if err := p.m.runtime.Delete(ctx, p.initRequest()); err != nil {
				return err
			}
			process, err = p.m.runtime.Create(ctx, p.initRequest())
			return err
		}},
		steps.Step{Name: "start", Do: func(ctx context.Context) error { return p.m.runtime.Start(ctx, p.id) }},
		steps.Step{Name: "record", Do: func(context.Context) error {
			ended := false
			err := p.update(func(r *podRecord) {
				if ended = p.initEnded; !ended {
					r.Init = process
				}
			})
			if ended {
				return kind.Errorf(kind.Aborted, "the init has ended at once")
			}
			return err
		}},
	)
}

func (p *Pod) writeInitBundle(context.Context) error {
	rootfs, err := p.makeInitRoot()
	if err != nil {
		return err
	}
	cgroupPath, err := p.initCgroup()
	if err != nil {
		return err
	}
	in := spec.Input{ID: p.id, PodID: p.id, Pod: p.config, Cgroup: cgroupPath, Facts: p.m.opts.Facts}
	in.Paths = p.joined()
	in.Paths.RootFS, in.Paths.Self = rootfs, p.m.opts.InitBinary
	s, err := spec.Init(in)
	if err != nil {
		return err
	}
	b, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("encode spec: %w", err)
	}
	return atomicfile.Write(filepath.Join(p.paths.bundle(), "config.json"), b, 0o600)
}

func (p *Pod) initCgroup() (string, error) {
	return p.m.cgroups.OCIPath(p.record().Cgroup, p.id, p.m.opts.SystemdCgroup)
}

func (p *Pod) initRequest() runtime.CreateRequest {
	rec := p.record()
	req := runtime.CreateRequest{ID: p.id, Runtime: rec.Handler, Bundle: p.paths.bundle()}
	if path, err := p.initCgroup(); err == nil {
		req.CgroupsDir = p.m.cgroups.Dir(path)
	}
	return req
}

// stopInit ends the shared PID namespace, and with it everything inside.
func (p *Pod) stopInit(ctx context.Context) error {
	if err := acquire(ctx, p.initOp); err != nil {
		return fmt.Errorf("its start is under way: %w", err)
	}
	defer func() { <-p.initOp }()
	if !p.record().InitOwe {
		return nil
	}
	req := p.initRequest()
	if err := p.m.cgroups.Kill(ctx, req.CgroupsDir); err != nil {
		return err
	}
	if err := p.m.runtime.Delete(ctx, req); err != nil {
		return err
	}
	if err := p.m.cgroups.Remove(ctx, req.CgroupsDir); err != nil {
		return err
	}
	if err := p.update(func(r *podRecord) { r.InitOwe, r.Init = false, runtime.Process{} }); err != nil {
		p.log.WithError(err).Warn("init is stopped without a saved record")
	}
	return nil
}

// initExited takes a pod out of service whose init ended by itself: the kernel
// has killed everything in its PID namespace.
func (p *Pod) initExited(exit runtime.Exit) {
	p.mu.Lock()
	p.initEnded = true
	// Without a pid its start is under way, and fails by initEnded.
	expected := p.rec.State != podReady || p.rec.Init.Pid == 0
	p.mu.Unlock()
	if expected {
		return
	}
	if err := p.markStopped(); err != nil {
		p.log.WithError(err).Warn("stopped without a saved record")
	}
	p.log.WithField("exit_code", exit.Code).Error("the init of the shared PID namespace has ended, the pod is stopped")
}

// precondition says that a pod must be ready for what was asked.
func (p *Pod) precondition() error {
	if v := p.view.Load(); v.state != podReady {
		return kind.Errorf(kind.Precondition, "pod %s (%s) is %s, not ready", p.id, p.name(), v.state)
	}
	return nil
}
