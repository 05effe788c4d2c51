package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// scorePasses bounds SetOOMScore against a cgroup that forks faster than it
// can be walked; children inherit the score.
const scorePasses = 10

// SetOOMScore changes oom_score_adj of those processes of the cgroup that have
// the score from; others have chosen their own. Without CAP_SYS_RESOURCE the
// kernel refuses a lower one than a process was started with: EACCES.
func (h *Host) SetOOMScore(dir string, from, to int) error {
	for range scorePasses {
		pids, err := h.Pids(dir)
		if err != nil {
			return err
		}
		changed := false
		for _, pid := range pids {
			did, err := setScore(pid, clean(dir), from, to)
			if err != nil {
				return fmt.Errorf("set oom_score_adj of process %d to %d: %w", pid, to, err)
			}
			changed = changed || did
		}
		if !changed {
			return nil
		}
	}
	return nil
}

// setScore goes through a descriptor of the process's folder: were the pid
// another's by now, it would not be in the cgroup.
func setScore(pid int, dir string, from, to int) (changed bool, err error) {
	if from == to {
		return false, nil
	}
	root, err := os.OpenRoot(fmt.Sprintf("/proc/%d", pid))
	if err != nil {
		return false, ended(err)
	}
	defer root.Close()
	groups, err := root.ReadFile("cgroup")
	if err != nil || !strings.Contains(string(groups), "/"+dir) {
		return false, ended(err)
	}
	score, err := root.ReadFile("oom_score_adj")
	if err != nil || strings.TrimSpace(string(score)) != strconv.Itoa(from) {
		return false, ended(err)
	}
	f, err := root.OpenFile("oom_score_adj", os.O_WRONLY, 0)
	if err != nil {
		return false, ended(err)
	}
	defer f.Close()
	if _, err := f.WriteString(strconv.Itoa(to)); err != nil {
		return false, ended(err)
	}
	return true, nil
}

// ended makes the end of a process no error.
func ended(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

// OOMScore reads a process's oom_score_adj.
func OOMScore(pid int) (int, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid))
	if err != nil {
		return 0, fmt.Errorf("read oom score: %w", err)
	}
	return strconv.Atoi(strings.TrimSpace(string(b)))
}
