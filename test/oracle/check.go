package oracle

import (
	"strings"
	"testing"
	"time"
)

// Settle is how long a difference may take to go away. The kernel ends network
// namespaces, memory cgroups and lazily detached mounts in its own time and
// announces none of it, and a machine's first process may reap orphans late.
const Settle = 10 * time.Second

// Check takes a snapshot now and another when the test and its later clean-ups
// are over, and fails the test if they differ. Call it first in a test.
func Check(t testing.TB, scope Scope) {
	t.Helper()
	before, err := Take(scope)
	if err != nil {
		t.Fatalf("oracle: %v", err)
	}
	t.Cleanup(func() { Compare(t, scope, before) })
}

// Compare fails the test if the machine differs from before for longer than Settle.
func Compare(t testing.TB, scope Scope, before *Snapshot) {
	t.Helper()
	lines, after, err := wait(scope, before, Settle)
	if err != nil {
		t.Errorf("oracle: %v", err)
	}
	if len(lines) > 0 {
		t.Errorf("oracle: %d differences remain after %v:\n%s\nfor information:\n  before: %s\n  after:  %s", len(lines), Settle,
			strings.Join(lines, "\n"), strings.Join(before.Notes, ", "), strings.Join(after.Notes, ", "))
	}
}

// wait compares until there is no difference or the limit is reached. It polls
// because there is no event for "nothing is left".
func wait(scope Scope, before *Snapshot, limit time.Duration) ([]string, *Snapshot, error) {
	deadline := time.Now().Add(limit)
	for pause := 5 * time.Millisecond; ; pause = min(2*pause, 250*time.Millisecond) {
		after, err := Take(scope)
		if err != nil {
			return nil, after, err
		}
		lines := Diff(before, after)
		if len(lines) == 0 || time.Now().After(deadline) {
			return lines, after, nil
		}
		time.Sleep(pause)
	}
}
