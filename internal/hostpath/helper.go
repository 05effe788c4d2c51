package hostpath

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"noded.dev/noded/internal/kind"
)

// question is what a helper is asked, as JSON on its standard input.
type question struct {
	Paths  []string
	Create bool
}

// ask has a helper look at paths. It returns the answers there are when the
// helper has ended or ctx has.
func (r *Resolver) ask(ctx context.Context, paths []string, at func(string)) ([]answer, error) {
	at(fmt.Sprintf("wait for one of %d look-ups of host paths to end", cap(r.slots)))
	select {
	case r.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, kind.Errorf(kind.Unavailable, "%d look-ups of host paths are under way and do not end, see the processes named hostpath: %w", cap(r.slots), ctx.Err())
	}
	input, err := json.Marshal(question{paths, r.create})
	if err != nil {
		<-r.slots
		return nil, err
	}
	answers := make(chan answer, len(paths))
	failed := make(chan error, 1)
	r.work.Go(func() {
		defer func() { <-r.slots }()
		failed <- r.run(ctx, input, answers)
		close(answers)
	})
	var list []answer
	for len(list) < len(paths) {
		at("look up host path " + paths[len(list)] + " on " + behind(paths[len(list)]))
		select {
		case a, ok := <-answers:
			if !ok && ctx.Err() != nil {
				return list, nil // it was killed
			}
			if !ok {
				return list, <-failed
			}
			list = append(list, a)
		case <-ctx.Done():
			return list, nil
		}
	}
	return list, nil
}

// run is the life of a helper. ctx's end kills it.
func (r *Resolver) run(ctx context.Context, input []byte, answers chan<- answer) error {
	// The death signal is sent when the thread that started the helper ends.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.CommandContext(ctx, r.command[0], r.command[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Stdin = bytes.NewReader(input)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	for d := json.NewDecoder(out); ; {
		var a answer
		if d.Decode(&a) != nil {
			break
		}
		answers <- a
	}
	return cmd.Wait()
}

// Steps of a helper, as errors name them.
const (
	stepOpen = "look up"
	stepMake = "make"
	stepStat = "examine"
)

// Serve is a helper's life: it answers for each path in turn, so that what it
// hangs on can be told.
func Serve(in io.Reader, out io.Writer) error {
	var q question
	if err := json.NewDecoder(in).Decode(&q); err != nil {
		return fmt.Errorf("read question: %w", err)
	}
	for _, path := range q.Paths {
		if err := json.NewEncoder(out).Encode(look(path, q.Create)); err != nil {
			return fmt.Errorf("write answer: %w", err)
		}
	}
	return nil
}

// look follows a path and asks its file system for what it leads to, as the OCI
// runtime will.
func look(path string, create bool) answer {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err == unix.ENOENT {
		if _, e := os.Lstat(path); e == nil {
			return answer{Errno: int(unix.ENOENT), Step: stepOpen, Dangling: true}
		}
		if create {
			if err := os.MkdirAll(path, 0o755); err != nil {
				return failure(stepMake, err)
			}
			fd, err = unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
		}
	}
	if err != nil {
		return failure(stepOpen, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return failure(stepStat, err)
	}
	real, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	if err != nil {
		return failure(stepStat, err)
	}
	return answer{Path: real}
}

func failure(step string, err error) answer {
	errno := unix.EIO
	errors.As(err, &errno)
	return answer{Errno: int(errno), Step: step}
}
