package main

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"noded.dev/noded/runtime"
	"noded.dev/noded/runtime/criu"
)

func (i *inspector) runtimes(ctx context.Context) {
	for _, name := range slices.Sorted(maps.Keys(i.cfg.Runtime.Handlers)) {
		i.runtime(ctx, runtime.Handler{Name: name, Path: findCommand(i.cfg.Runtime.Handlers[name].Path)})
	}
}

// checkpoints asks CRIU, where it is to be used.
func (i *inspector) checkpoints(ctx context.Context) {
	path := criuCommand(i.cfg)
	if path == "" {
		return
	}
	version, err := criu.Probe(ctx, path)
	if err != nil {
		i.add(levelWarn, "checkpoint", err.Error(), "docs/checkpoint.md says what checkpoints need; or take runtime.checkpoint out")
		return
	}
	name := i.cfg.Runtime.Default
	info := runtime.Probe(ctx, runtime.Handler{Name: name, Path: findCommand(i.cfg.Runtime.Handlers[name].Path)})
	if info.Usable && !info.Checkpoint {
		i.add(levelWarn, "checkpoint", fmt.Sprintf("%s was built without checkpoints", info.Path), "`make build` makes a runc with them")
		return
	}
	i.ok("checkpoint", "criu %s at %s works with this kernel", version, path)
}

// runtime tries one handler. The default one must work; another that does not
// fails only the pods that ask for it.
func (i *inspector) runtime(ctx context.Context, h runtime.Handler) {
	topic := "runtime " + h.Name
	info := runtime.Probe(ctx, h)
	switch {
	case !info.Usable:
		bad := levelWarn
		if h.Name == i.cfg.Runtime.Default {
			bad = levelFail
		}
		i.add(bad, topic, info.Problem, "install it beside noded or in PATH, or correct runtime.handlers."+h.Name+".path")
	case info.Problem != "":
		i.add(levelWarn, topic, info.Path+": "+info.Problem, "install a newer one; `make build` makes a good runc beside noded")
	case info.Version == "":
		i.add(levelWarn, topic, info.Path+" does not say its version", "")
	case info.SpecMax == "":
		i.add(levelWarn, topic, info.Version+" at "+info.Path+" cannot say its features", "a newer one can")
	default:
		i.ok(topic, "%s at %s", info.Version, info.Path)
	}
}
