package runtime

import (
	"errors"

	rspec "github.com/opencontainers/runtime-spec/specs-go"

	"noded.dev/noded/internal/kind"
)

// The daemon and the shim talk over StateDir/shim.sock. Each call is a
// connection of its own: one request frame, one reply frame, for sessions more
// frames, and descriptors beside them (package wire).
//
//	op       descriptors ->              <- frames (descriptors)
//	hello                                reply{Version, Build, Pid}
//	watch                                event{Put}(named) ... event{Exit} event{Drop} ... until one side ends
//	create                               reply{Process}
//	start, signal, delete, update, reopen   reply
//	list                                 reply{States}
//	exec     stdin?, stdout?, stderr?    reply{Process}(pidfd, pty?), then at its end reply{Code}
//	                                     the client closing first kills the process and what it started
//	attach   stdout?, stderr?            reply(stdin?, pty?), then at its end reply
//	                                     <- -> the client may send request{Op: "stdin-closed"} in between
//	checkpoint                           reply; the client closing first makes it give up
//	freeze                               reply, and after the client has closed its half, or all, reply{}
//	upgrade  binary                      reply, and the connections of op watch end
//
// V is the protocol's version, now 1. Members are only ever added, so an old
// shim serves a new daemon; an op it does not know is answered with the kind
// Unimplemented.
const protocolVersion = 1

type request struct {
	V         int
	Op        string
	ID        string                `json:",omitempty"`
	TimeoutMS int64                 `json:",omitempty"` // limit of OCI runtime commands
	Create    *CreateRequest        `json:",omitempty"`
	Restore   *Restore              `json:",omitempty"` // checkpoint: where to
	IDs       []string              `json:",omitempty"` // freeze
	Signal    int                   `json:",omitempty"`
	Resources *rspec.LinuxResources `json:",omitempty"`
	Args      []string              `json:",omitempty"` // exec: the command; upgrade: the shim's own
	Stdin     bool                  `json:",omitempty"` // exec, attach: which streams there are
	Stdout    bool                  `json:",omitempty"`
	Stderr    bool                  `json:",omitempty"`
	Terminal  bool                  `json:",omitempty"`
}

type reply struct {
	V        int
	Error    *wireError `json:",omitempty"`
	Version  string     `json:",omitempty"`
	Build    string     `json:",omitempty"` // of the shim's program, see buildID
	Routines int        `json:",omitempty"` // hello: goroutines of the shim, for diagnosis
	Pid      int        `json:",omitempty"`
	Process  *Process   `json:",omitempty"`
	States   []State    `json:",omitempty"`
	Code     int        `json:",omitempty"`
	Names    []string   `json:",omitempty"` // of the descriptors beside it
}

// event is what a watch connection carries.
type event struct {
	Put    []string `json:",omitempty"` // descriptors for the daemon to keep: "<container>/<name>"
	Drop   []string `json:",omitempty"` // descriptors to close
	Exit   *Exit    `json:",omitempty"`
	Synced bool     `json:",omitempty"` // all that there was at the beginning has been sent
}

// wireError is an error on its way from the shim to the daemon.
type wireError struct {
	Kind    kind.Kind
	Message string
	Code    int  `json:",omitempty"` // of a StartError
	Retry   bool `json:",omitempty"` // nothing was done; try again at once
}

func toWire(err error) *wireError {
	if err == nil {
		return nil
	}
	w := &wireError{Kind: kind.Of(err), Message: err.Error()}
	w.Retry = err == errUpgrading
	var s *StartError
	if errors.As(err, &s) {
		w.Code = s.Code
	}
	return w
}

func fromWire(w *wireError) error {
	if w == nil {
		return nil
	}
	err := errors.New(w.Message)
	if w.Code != 0 {
		return kind.Wrap(w.Kind, &StartError{Code: w.Code, Err: err})
	}
	return kind.Wrap(w.Kind, err)
}

// StartError says that a container's or exec's command could not be executed.
// Code is what a shell would report, and the kubelet expects as exit code: 127
// not found, 126 not executable, 128 anything else.
type StartError struct {
	Code int
	Err  error
}

func (e *StartError) Error() string { return e.Err.Error() }
func (e *StartError) Unwrap() error { return e.Err }
