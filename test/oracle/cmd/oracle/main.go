// Command oracle prints what a piece of work left behind on this machine:
//
//	oracle snapshot > before.json
//	…
//	oracle diff before.json       # exit status 1 and one line for each difference
//
// With -path, -cgroup, -link and -rule (each may be repeated) only what belongs to them.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"strings"

	"noded.dev/noded/test/oracle"
)

type list []string

func (l *list) String() string     { return strings.Join(*l, ",") }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }

func main() {
	var scope oracle.Scope
	flag.Var((*list)(&scope.Paths), "path", "folder of the daemon under test")
	flag.Var((*list)(&scope.Files), "files", "folder to list")
	flag.Var((*list)(&scope.Cgroups), "cgroup", "cgroup path prefix")
	flag.Var((*list)(&scope.Links), "link", "network device name prefix")
	flag.Var((*list)(&scope.Rules), "rule", "text in packet filter rules")
	flag.Parse()
	clean, err := run(scope, flag.Args())
	if err != nil {
		fmt.Fprintln(os.Stderr, "oracle:", err)
		os.Exit(2)
	}
	if !clean {
		os.Exit(1)
	}
}

func run(scope oracle.Scope, args []string) (clean bool, err error) {
	now, err := oracle.Take(scope)
	if err != nil {
		return false, err
	}
	switch {
	case len(args) == 1 && args[0] == "snapshot":
		return true, json.NewEncoder(os.Stdout).Encode(now)
	case len(args) == 2 && args[0] == "diff":
		data, err := os.ReadFile(args[1])
		if err != nil {
			return false, err
		}
		var before oracle.Snapshot
		if err := json.Unmarshal(data, &before); err != nil {
			return false, fmt.Errorf("read %s: %w", args[1], err)
		}
		lines := oracle.Diff(&before, now)
		for _, line := range lines {
			fmt.Println(line)
		}
		return len(lines) == 0, nil
	}
	return false, fmt.Errorf("want: oracle [flags] snapshot | diff FILE")
}
