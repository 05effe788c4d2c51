package runtime

import (
	"path/filepath"
	"strings"

	"noded.dev/noded/internal/kind"
)

// stateDir is Options.StateDir with the files in it that are this package's:
//
//	shim.sock              the shim listens here, 0600
//	exits/<id>.json        how a container ended, until Delete
//	shim/lock              held by the one living shim
//	shim/shim.log          what the shim has to say, and its stack if it crashes
//	shim/streams           table of the log streams (package containerlog)
//	shim/<id>/record.json  the container as created
//	shim/<id>/stdin, stdout, stderr           FIFOs
//	shim/<id>/stdout.spool, stderr.spool      output on its way into the log
//	shim/<id>/pid, runtime.log, tty.sock, ...  of the last OCI runtime command
type stateDir string

func (d stateDir) socket() string              { return filepath.Join(string(d), "shim.sock") }
func (d stateDir) shim() string                { return filepath.Join(string(d), "shim") }
func (d stateDir) lock() string                { return filepath.Join(d.shim(), "lock") }
func (d stateDir) shimLog() string             { return filepath.Join(d.shim(), "shim.log") }
func (d stateDir) table() string               { return filepath.Join(d.shim(), "streams") }
func (d stateDir) container(id string) string  { return filepath.Join(d.shim(), id) }
func (d stateDir) exits() string               { return filepath.Join(string(d), "exits") }
func (d stateDir) exitRecord(id string) string { return filepath.Join(d.exits(), id+".json") }

// checkID keeps an id inside its folder. The core makes ids of hexadecimal
// digits; this only has to be safe.
func checkID(id string) error {
	if id == "" || len(id) > 128 || id[0] == '.' || strings.ContainsAny(id, "/\x00") {
		return kind.Errorf(kind.Invalid, "container id %.140q is not a file name", id)
	}
	switch id {
	case "lock", "shim.log", "streams":
		return kind.Errorf(kind.Invalid, "container id %q is reserved", id)
	}
	return nil
}
