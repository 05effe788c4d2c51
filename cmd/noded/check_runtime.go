package main

import (
	"context"
	"maps"
	"slices"

	"noded.dev/noded/runtime"
)

func (i *inspector) runtimes(ctx context.Context) {
	for _, name := range slices.Sorted(maps.Keys(i.cfg.Runtime.Handlers)) {
		i.runtime(ctx, runtime.Handler{Name: name, Path: findCommand(i.cfg.Runtime.Handlers[name].Path)})
	}
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
