package main

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"noded.dev/noded/test/node"
)

// TestSystemd plays systemd to a real daemon: it listens where sd_notify(3)
// sends and sees a whole life: ready, alive, reloading, stopping.
func TestSystemd(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("a daemon needs root")
	}
	binary, err := node.Build(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	n := node.New(t, node.Options{Binary: binary, Env: []string{
		"NOTIFY_SOCKET=" + socket.LocalAddr().String(), "WATCHDOG_USEC=200000",
	}})
	wantState(t, socket, "READY=1")
	wantState(t, socket, "WATCHDOG=1")
	if err := syscall.Kill(n.Pid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	wantState(t, socket, "RELOADING=1\nMONOTONIC_USEC=")
	wantState(t, socket, "READY=1")
	took, err := n.Terminate()
	if err != nil || took > 2*time.Second {
		t.Errorf("SIGTERM ended the daemon after %v: %v", took, err)
	}
	wantState(t, socket, "STOPPING=1")
}

// wantState reads notifications until one begins with want.
func wantState(t *testing.T, socket *net.UnixConn, want string) {
	t.Helper()
	if err := socket.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 4096)
	for {
		n, err := socket.Read(buf)
		if err != nil {
			t.Fatalf("waiting for %q: %v", want, err)
		}
		if strings.HasPrefix(string(buf[:n]), want) {
			return
		}
	}
}
