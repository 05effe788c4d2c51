package main

import "testing"

// Two daemons on one machine must not take each other's pods for ownerless.
func TestCgroupParentIsOneRoots(t *testing.T) {
	usual, a, b := cgroupParent("/var/lib/noded", false), cgroupParent("/tmp/a", false), cgroupParent("/tmp/b", false)
	if usual != "/noded" || a == usual || a == b || a != cgroupParent("/tmp/a", false) {
		t.Errorf("parents %q, %q and %q", usual, a, b)
	}
}
