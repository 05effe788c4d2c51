// Package oomlog finds out of the kernel's log which processes were killed for
// want of memory, and whose limit was reached.
package oomlog

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// device is the kernel's log, a record for each read; see the kernel's
// Documentation/ABI/testing/dev-kmsg.
const device = "/dev/kmsg"

// Bounds of one search: the log of a node is some ten thousand records at most.
const (
	maxRecord  = 8 << 10 // the kernel's own, LOG_LINE_MAX and PRINTKRB_RECORD_MAX are below
	maxRecords = 1 << 17
	maxTime    = 200 * time.Millisecond
)

// Kill is one process that the kernel killed.
type Kill struct {
	Name  string // of the command, as the process set it: hostile
	Pid   int    // as the initial PID namespace counts
	Task  string // cgroup of the process
	Limit string // cgroup whose limit was reached; "" if the whole node was out of memory
}

// Find returns the kills, oldest first, of processes in a cgroup with name in
// its path. name is a container's id, so it occurs nowhere else. It waits for
// nothing; an error means that the log cannot be read.
func Find(name string) ([]Kill, error) {
	fd, err := unix.Open(device, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: device, Err: err}
	}
	defer unix.Close(fd)
	var kills []Kill
	buf := make([]byte, maxRecord)
	end := time.Now().Add(maxTime)
	for range maxRecords {
		n, err := unix.Read(fd, buf)
		switch {
		case errors.Is(err, unix.EAGAIN): // all read
			return kills, nil
		case errors.Is(err, unix.EPIPE), errors.Is(err, unix.EINTR):
			continue // records were overwritten meanwhile; the next read goes on after them
		case err != nil:
			return kills, fmt.Errorf("read %s: %w", device, err)
		}
		if k, ok := parse(string(buf[:n])); ok && strings.Contains(k.Task, "/"+name) {
			kills = append(kills, k)
		}
		if time.Now().After(end) {
			break
		}
	}
	return kills, nil
}

// parse reads the one record of each kill that has all figures:
//
//	6,902,5078,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=x,mems_allowed=0,oom_memcg=/a,task_memcg=/a/b,task=tail,pid=7,uid=0
//
// The command's name is the container's to choose and may hold commas; what
// comes after it is looked for from the end.
func parse(record string) (Kill, bool) {
	_, text, _ := strings.Cut(record, ";")
	text, _, _ = strings.Cut(text, "\n") // further lines are a dictionary
	if !strings.HasPrefix(text, "oom-kill:constraint=") {
		return Kill{}, false
	}
	head, rest, ok := strings.Cut(text, ",task_memcg=")
	if !ok {
		return Kill{}, false
	}
	k := Kill{}
	if _, limit, ok := strings.Cut(head, ",oom_memcg="); ok {
		k.Limit = limit
	}
	k.Task, rest, ok = strings.Cut(rest, ",task=")
	uid := strings.LastIndex(rest, ",uid=")
	if !ok || uid < 0 {
		return Kill{}, false
	}
	pid := strings.LastIndex(rest[:uid], ",pid=")
	if pid < 0 {
		return Kill{}, false
	}
	k.Name = rest[:pid]
	var err error
	k.Pid, err = strconv.Atoi(rest[pid+len(",pid=") : uid])
	return k, err == nil
}
