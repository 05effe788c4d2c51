package pidfd

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
)

// Process is a process as /proc shows it.
type Process struct {
	Pid, Parent, Session int
	Start                uint64 // clock ticks after boot
	Zombie               bool   // it has ended; its parent has not collected the status
}

// Read reads proc_pid_stat(5). The command name in it is the process's to
// choose, so fields are counted from the last parenthesis.
func Read(pid int) (Process, error) {
	p := Process{Pid: pid}
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return p, fmt.Errorf("read status of process: %w", err)
	}
	f := bytes.Fields(data[bytes.LastIndexByte(data, ')')+1:])
	if len(f) < 20 {
		return p, fmt.Errorf("status of process %d is malformed", pid)
	}
	p.Zombie = f[0][0] == 'Z' || f[0][0] == 'X'
	p.Parent, _ = strconv.Atoi(string(f[1]))
	p.Session, _ = strconv.Atoi(string(f[3]))
	p.Start, err = strconv.ParseUint(string(f[19]), 10, 64)
	return p, err
}

// All lists the processes that there are, by pid. One that ends meanwhile may
// be in it or not.
func All() (map[int]Process, error) {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	all := make(map[int]Process, len(names))
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil {
			if p, err := Read(pid); err == nil {
				all[pid] = p
			}
		}
	}
	return all, nil
}
