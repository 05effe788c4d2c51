package main

import (
	"context"
	"fmt"
	"maps"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// runtimeFloors are the oldest versions without known ways out of a container:
// for each release line the first good one; later lines are good.
var runtimeFloors = map[string][][3]int{
	"runc": {{1, 3, 6}, {1, 4, 3}, {1, 5, 0}},
	"crun": {{1, 30, 1}},
}

func (i *inspector) runtimes(ctx context.Context) {
	for _, name := range slices.Sorted(maps.Keys(i.cfg.Runtime.Handlers)) {
		i.runtime(ctx, name, findCommand(i.cfg.Runtime.Handlers[name].Path))
	}
}

// runtime tries one handler. The default one must work; another that does not
// fails only the pods that ask for it.
func (i *inspector) runtime(ctx context.Context, name, path string) {
	bad := levelWarn
	if name == i.cfg.Runtime.Default {
		bad = levelFail
	}
	topic := "runtime " + name
	if _, err := exec.LookPath(path); err != nil {
		i.add(bad, topic, path+" is not there", "install it beside noded or in PATH, or correct runtime.handlers."+name+".path")
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	if err != nil {
		i.add(bad, topic, fmt.Sprintf("%s --version: %v", path, err), "see whether it runs on this machine at all")
		return
	}
	program, version, ok := parseRuntimeVersion(string(out))
	if !ok {
		i.add(levelWarn, topic, fmt.Sprintf("%s does not say its version", path), "")
		return
	}
	if floor := belowFloor(program, version); floor != "" {
		i.add(levelWarn, topic, fmt.Sprintf("%s is %s %s, which has known security flaws", path, program, version), "install "+program+" "+floor+"; `make build` makes a good runc beside noded")
		return
	}
	if err := exec.CommandContext(ctx, path, "features").Run(); err != nil {
		i.add(levelWarn, topic, fmt.Sprintf("%s %s at %s cannot say its features", program, version, path), "a newer one can")
		return
	}
	i.ok(topic, "%s %s at %s", program, version, path)
}

var runtimeVersion = regexp.MustCompile(`^(\S+) version v?(\d+\.\d+(?:\.\d+)?)`)

// parseRuntimeVersion reads the first line, "runc version 1.5.2-rc.1".
func parseRuntimeVersion(text string) (program, version string, ok bool) {
	m := runtimeVersion.FindStringSubmatch(text)
	if m == nil {
		return "", "", false
	}
	return m[1], m[2], true
}

// belowFloor says which version to have at least; "" if this one is good or
// its program is unknown.
func belowFloor(program, version string) string {
	floors := runtimeFloors[program]
	var v [3]int
	for i, part := range strings.Split(version, ".") {
		v[i], _ = strconv.Atoi(part) // digits only, by the pattern
	}
	for _, floor := range floors {
		if v[0] == floor[0] && v[1] == floor[1] && v[2] >= floor[2] {
			return ""
		}
	}
	if len(floors) == 0 {
		return ""
	}
	last := floors[len(floors)-1]
	if v[0] > last[0] || v[0] == last[0] && v[1] > last[1] {
		return ""
	}
	return fmt.Sprintf("%d.%d.%d or later", last[0], last[1], last[2])
}
