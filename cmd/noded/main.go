// Command noded is a node runtime: the CRI daemon, the shim that is the parent
// of the containers, the first process of shared pid namespaces, the helper
// that looks up host paths, and the command line.
package main

import (
	"fmt"
	"os"

	"noded.dev/noded/internal/hostpath"
)

// version is set by the linker (see the Makefile).
var version = "0.1.0-dev"

// main picks the role before anything of the command line is built: the init
// of a pod and the shim live as long as their containers and should hold
// nothing they do not need.
func main() {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "init":
			os.Exit(initRole())
		case "hostpath":
			if err := hostpath.Serve(os.Stdin, os.Stdout); err != nil {
				fmt.Fprintln(os.Stderr, "noded hostpath:", err)
				os.Exit(1)
			}
			return
		case "shim":
			if err := shim(os.Args[2:]); err != nil {
				fmt.Fprintln(os.Stderr, "noded shim:", err)
				os.Exit(1)
			}
			return
		}
	}
	os.Exit(execute(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}
