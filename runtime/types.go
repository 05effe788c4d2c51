// Package runtime drives OCI runtimes (runc, crun, any OCI command line)
// through the node's one shim, which is the parent of every container: it
// holds their stdio, writes their logs, keeps their exit statuses and runs
// execs. The package knows nothing of images, networks or the CRI.
package runtime

import (
	"io"
	"time"
)

// CreateRequest asks for one container. Its bundle is ready: config.json
// written, root filesystem mounted.
type CreateRequest struct {
	ID         string
	Runtime    Handler // as recorded with the container, not as configured today
	Bundle     string  // folder with config.json
	LogPath    string  // CRI log file; "" keeps no log and discards the output
	Terminal   bool    // one pty instead of three pipes
	Stdin      bool    // keep a stdin that attach can write to; otherwise /dev/null
	StdinOnce  bool    // close that stdin when the first attach that used it ends
	StdioUID   uint32  // the node's id of the process's user, whom the streams belong to in a user namespace
	CgroupsDir string  // the container's cgroup as in the OCI spec, for execs and kills
	Restore    Restore `json:",omitzero"` // go on from a checkpoint, without Start
}

// Handler is an OCI runtime as a configuration names it.
type Handler struct {
	Name string // the RuntimeClass handler: "runc"
	Path string // absolute path of the command
	Root string // the runtime's own state folder (--root)

	SystemdCgroup bool // pass --systemd-cgroup
}

// HandlerInfo is a Handler with what its `features` command said.
type HandlerInfo struct {
	Handler
	Version    string // "1.5.2"; "" where it could not be asked
	SpecMax    string // newest OCI spec version it takes; "" unknown
	Problem    string // why it cannot be used or is below the security floor; "" fine
	Usable     bool   // false: creating with it fails
	RRO        bool   // recursive read-only mounts
	Checkpoint bool   // checkpoint and restore by CRIU
	UserNS     bool   // user namespaces with idmapped mounts
	MountFlags map[string]bool
}

// Process names a process so that a recycled pid is not mistaken for it.
type Process struct {
	Pid       int
	StartTime uint64 // clock ticks after boot, proc_pid_stat(5) field 22
}

// Exit is how a container's init ended.
type Exit struct {
	ID   string
	Code int // 0-255; 128+n for signal n; 255 with Lost
	At   time.Time
	Lost bool // the status could not be collected (both noded processes were dead)
}

// State is what the shim knows of a container.
type State struct {
	ID      string
	Process Process
	Exit    *Exit // nil while it runs (or is created)
}

// Size is a terminal's size in character cells.
type Size struct{ Width, Height uint16 }

// IO is one session's standard streams; nil members are not connected.
// With a terminal there is no Stderr.
type IO struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Terminal       bool
	Resize         <-chan Size
}

// ExecRequest runs one more process in a container, with the security settings
// of the container's first process.
type ExecRequest struct {
	ID   string // the container
	Args []string
	IO   IO
}
