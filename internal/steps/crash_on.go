//go:build faults

package steps

import (
	"os"
	"syscall"
)

// crash kills this process with SIGKILL, as a power supply would, where the
// environment's NODED_CRASH names the point as "operation/step/before" or
// "operation/step/after". With NODED_CRASH_LIST naming a file, every point
// passed is appended to it, so that the sweep's list is made by running.
func crash(op, step, when string) {
	point := op + "/" + step + "/" + when
	if list := os.Getenv("NODED_CRASH_LIST"); list != "" {
		if f, err := os.OpenFile(list, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); err == nil {
			f.WriteString(point + "\n")
			f.Close()
		}
	}
	if os.Getenv("NODED_CRASH") == point {
		syscall.Kill(syscall.Getpid(), syscall.SIGKILL)
		select {}
	}
}
