// Package criu knows CRIU, the program behind the checkpoints of OCI runtimes:
// whether it works here, how it is told of descriptors that lead out of a
// container, how it is made to give up, and what its images would restore.
package criu

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"noded.dev/noded/internal/kind"
)

// probeLimit bounds each question to criu.
const probeLimit = 20 * time.Second

// Probe asks whether the criu at path works with this kernel, and returns its
// version. The error is of kind Precondition and says what is missing.
func Probe(ctx context.Context, path string) (version string, err error) {
	if _, err := exec.LookPath(path); err != nil {
		return "", kind.Errorf(kind.Precondition, "criu cannot be executed: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, probeLimit)
	defer cancel()
	out, err := ask(ctx, path, "--version")
	if err != nil {
		return "", kind.Errorf(kind.Precondition, "criu --version: %s: %w", firstError(out), err)
	}
	for line := range strings.Lines(out) {
		if v, ok := strings.CutPrefix(line, "Version: "); ok {
			version = strings.TrimSpace(v)
		}
	}
	if old(version) {
		return version, kind.Errorf(kind.Precondition, "criu %s is too old, %s or later is needed: with those before, dumps hang on newer kernels and damage the container", version, floor)
	}
	if out, err = ask(ctx, path, "check"); err != nil {
		return version, kind.Errorf(kind.Precondition, "criu %s does not work with this kernel: %s: %w", version, firstError(out), err)
	}
	return version, nil
}

// floor is the oldest criu in use. Those before lose their victims on Linux
// 6.13 and later: a process is resumed with criu still waiting for it.
const floor = "4.2"

// old compares major and minor numbers.
func old(version string) bool {
	var have, want [2]int
	fmt.Sscanf(floor, "%d.%d", &want[0], &want[1])
	n, _ := fmt.Sscanf(version, "%d.%d", &have[0], &have[1])
	return n < 2 || slices.Compare(have[:], want[:]) < 0
}

func ask(ctx context.Context, path string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env, cmd.Dir = Environment(path, ""), "/"
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// Environment is all of the environment that criu, and an OCI runtime that
// calls it by its name, get. conf, if not "", is a file of more options.
func Environment(path, conf string) []string {
	env := []string{"PATH=" + filepath.Dir(path) + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
	if conf != "" {
		env = append(env, "CRIU_CONFIG_FILE="+conf)
	}
	return env
}

// errorLine is a complaint in criu's output: "(00.1) Error (criu/net.c:12): text".
var errorLine = regexp.MustCompile(`Error \([^)]*\): (.*)`)

// maxComplaints bounds how many complaints of a log an error carries: the
// first is the cause, the others say what it was a part of.
const maxComplaints = 3

func complaints(r io.Reader) []string {
	var list []string
	lines := bufio.NewScanner(r)
	for lines.Scan() && len(list) < maxComplaints {
		m := errorLine.FindStringSubmatch(lines.Text())
		// It does without, where it may not raise its own limit.
		if m == nil || strings.HasPrefix(m[1], "rlimit: ") {
			continue
		}
		list = append(list, strings.TrimSpace(m[1]))
	}
	return list
}

func firstError(out string) string {
	list := complaints(strings.NewReader(out))
	if len(list) == 0 {
		return strings.TrimSpace(out[:min(len(out), 200)])
	}
	return list[0]
}

// maxLog bounds how much of a log is looked at, in bytes.
const maxLog = 16 << 20

// Complaints returns what criu complains of in a log file; "" if of nothing.
func Complaints(log string) string {
	f, err := os.Open(log)
	if err != nil {
		return ""
	}
	defer f.Close()
	return strings.Join(complaints(io.LimitReader(f, maxLog)), "; ")
}

// File names an open file that leads out of the container for criu: mount and
// inode, as both dump and restore are told of it.
type File string

var filePattern = regexp.MustCompile(`^file\[[0-9a-f]{1,8}:[0-9a-f]{1,16}\]$`)

// FileOf names the file behind a descriptor of a process.
func FileOf(mount uint64, inode uint64) File {
	return File(fmt.Sprintf("file[%x:%x]", mount, inode))
}

// Valid reports whether f, which may come from outside, is nothing but a name.
func (f File) Valid() bool { return filePattern.MatchString(string(f)) }

// ghostLimit is the largest deleted but open file that a dump takes in, bytes.
const ghostLimit = 64 << 20

// DumpOptions are the options file of a dump that leaves files out.
func DumpOptions(external []File) []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "ghost-limit %d\n", ghostLimit)
	for _, f := range external {
		fmt.Fprintf(&b, "external %s\n", f)
	}
	return []byte(b.String())
}

// RestoreOptions are the options file of a restore in which each of files
// becomes the descriptor of its index. Connections of before are closed: the
// pod's address is another.
func RestoreOptions(files []File) []byte {
	var b strings.Builder
	b.WriteString("tcp-close\n")
	for fd, f := range files {
		if f != "" {
			fmt.Fprintf(&b, "inherit-fd fd[%d]:%s\n", fd, f)
		}
	}
	return []byte(b.String())
}
