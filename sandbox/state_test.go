package sandbox

import (
	"os"
	"strings"
	"testing"
)

// The drawing above containerState, as a table: what is not in it is refused.
func TestContainerTransitions(t *testing.T) {
	states := []containerState{stateCreating, stateCreated, stateStarting, stateRunning, stateExited, stateRemoving}
	events := []containerEvent{eventCreated, eventStart, eventStarted, eventExit, eventRemove}
	type at struct {
		s containerState
		e containerEvent
	}
	legal := map[at]containerState{
		{stateCreating, eventCreated}: stateCreated,
		{stateCreated, eventStart}:    stateStarting,
		{stateStarting, eventStart}:   stateStarting,
		{stateStarting, eventStarted}: stateRunning,
		{stateRunning, eventStarted}:  stateRunning,
		{stateExited, eventStarted}:   stateExited,
		{stateRemoving, eventStarted}: stateRemoving,
		{stateCreated, eventExit}:     stateExited,
		{stateStarting, eventExit}:    stateExited,
		{stateRunning, eventExit}:     stateExited,
		{stateExited, eventExit}:      stateExited,
		{stateRemoving, eventExit}:    stateRemoving,
	}
	for _, s := range states {
		legal[at{s, eventRemove}] = stateRemoving
		for _, e := range events {
			want, ok := legal[at{s, e}]
			if !ok {
				want = s
			}
			got, gotOK := s.next(e)
			if got != want || gotOK != ok {
				t.Errorf("%s on %q: got %s, %v; want %s, %v", s, e, got, gotOK, want, ok)
			}
		}
	}
}

// The drawings in docs/lifecycle.md are those beside the code.
func TestDrawingsAreEqual(t *testing.T) {
	source, err := os.ReadFile("state.go")
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile("../docs/lifecycle.md")
	if err != nil {
		t.Fatal(err)
	}
	var drawings []string
	drawing := ""
	for line := range strings.Lines(string(source)) {
		if text, ok := strings.CutPrefix(line, "//\t"); ok {
			drawing += text
		} else if drawing != "" {
			drawings = append(drawings, drawing)
			drawing = ""
		}
	}
	if len(drawings) != 2 {
		t.Fatalf("%d drawings in state.go, want 2", len(drawings))
	}
	for _, d := range drawings {
		if !strings.Contains(string(page), "```\n"+d+"```\n") {
			t.Errorf("docs/lifecycle.md lacks this drawing:\n%s", d)
		}
	}
}
