package main

import (
	"bufio"
	"errors"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMain lets this test binary be `noded init`.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "init" {
		os.Exit(initRole())
	}
	os.Exit(m.Run())
}

// TestInit starts init as pid 1 of a pid namespace, gives it orphans, and
// checks that it reaps them and ends when told to.
func TestInit(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("a pid namespace needs root")
	}
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		t.Run(signal.String(), func(t *testing.T) {
			cmd := exec.Command("/proc/self/exe", "init")
			cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			go func() { ended <- cmd.Wait() }()
			defer cmd.Process.Kill()
			waitIgnoring(t, cmd.Process.Pid)
			makeOrphans(t, cmd.Process.Pid)
			waitNoChildren(t, cmd.Process.Pid)
			if err := cmd.Process.Signal(signal); err != nil {
				t.Fatal(err)
			}
			select {
			case <-ended:
			case <-time.After(5 * time.Second):
				t.Fatal("it goes on")
			}
		})
	}
}

// makeOrphans runs a shell in init's pid namespace that leaves children behind.
func makeOrphans(t *testing.T, pid int) {
	t.Helper()
	sh := exec.Command("nsenter", "-t", strconv.Itoa(pid), "-p", "sh", "-c", "for i in 1 2 3 4 5; do (sleep 0.1 & exec sleep 0) & done; exit 0")
	if out, err := sh.CombinedOutput(); err != nil {
		t.Fatalf("make orphans: %v: %s", err, out)
	}
}

// The kernel has no event for these two states of another process; both come
// in milliseconds.
func waitIgnoring(t *testing.T, pid int) {
	t.Helper()
	poll(t, "SIGCHLD is not ignored", func() bool {
		f, err := os.Open("/proc/" + strconv.Itoa(pid) + "/status")
		if err != nil {
			return false
		}
		defer f.Close()
		for lines := bufio.NewScanner(f); lines.Scan(); {
			if text, ok := strings.CutPrefix(lines.Text(), "SigIgn:\t"); ok {
				mask, err := strconv.ParseUint(text, 16, 64)
				return err == nil && mask&(1<<(syscall.SIGCHLD-1)) != 0
			}
		}
		return false
	})
}

func waitNoChildren(t *testing.T, pid int) {
	t.Helper()
	children := func() string {
		data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/task/" + strconv.Itoa(pid) + "/children")
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(data))
	}
	poll(t, "orphans or zombies are left", func() bool { return children() == "" })
}

func poll(t *testing.T, problem string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal(problem)
		}
	}
}
