package sandbox

import "path/filepath"

// podPaths are all the paths of one pod.
type podPaths struct {
	root  string // root/pods/<id>: record.json, and bundle/ of a shared PID namespace's init
	state string // state/pods/<id>: hosts, hostname, resolv.conf, shm
	ns    string // state/ns/<id>: pinned net, ipc, uts, user
}

func (m *Manager) podPaths(id string) podPaths {
	return podPaths{
		root:  filepath.Join(m.opts.Root, "pods", id),
		state: filepath.Join(m.opts.State, "pods", id),
		ns:    filepath.Join(m.opts.State, "ns", id),
	}
}

func (p podPaths) bundle() string     { return filepath.Join(p.root, "bundle") }
func (p podPaths) hosts() string      { return filepath.Join(p.state, "hosts") }
func (p podPaths) hostname() string   { return filepath.Join(p.state, "hostname") }
func (p podPaths) resolvConf() string { return filepath.Join(p.state, "resolv.conf") }
func (p podPaths) shm() string        { return filepath.Join(p.state, "shm") }

// containerPaths are the paths of one container; its root filesystem and
// stdio belong to the image store and the shim.
type containerPaths struct {
	root string // root/containers/<id>: record.json, bundle/, and restore/ until it is started
}

func (m *Manager) containerPaths(id string) containerPaths {
	return containerPaths{root: filepath.Join(m.opts.Root, "containers", id)}
}

func (c containerPaths) bundle() string { return filepath.Join(c.root, "bundle") }

// restore holds the process images that the container is to go on from.
func (c containerPaths) restore() string { return filepath.Join(c.root, "restore") }

func (m *Manager) quarantine() string { return filepath.Join(m.opts.Root, "quarantine") }
