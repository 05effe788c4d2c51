package sandbox

import "fmt"

// podState is where a pod is in its life:
//
//	          run                 all steps done
//	(none) ─────────▶ creating ────────────────────▶ ready
//	                     │                             │ stop, or its namespaces
//	                     │ a step failed,              ▼ or init are lost
//	                     │ or a crash              stopped
//	                     ▼                             │
//	(none) ◀──────── removing ◀────────────────────────┘
//	        destroyed            remove (also from ready and creating)
type podState string

const (
	podCreating podState = "creating" // not listed; a crash here is undone
	podReady    podState = "ready"
	podStopped  podState = "stopped"
	podRemoving podState = "removing" // not listed; destroy goes on until it succeeds
)

// listed says whether a kubelet may see the pod.
func (s podState) listed() bool { return s == podReady || s == podStopped }

// containerState is where a container is in its life:
//
//	          create             runtime create done
//	(none) ─────────▶ creating ──────────────────────▶ created
//	                     │                               │ start   │
//	                     │                               ▼         │ killed, or its
//	                     │                            starting     │ command cannot
//	                     │                   started ┌───┘ │       │ be executed
//	                     │                           ▼     │       │
//	                     │                        running  │       │
//	                     │ a step failed,      exit  │     │ exit  │
//	                     │ or a crash                ▼     ▼       ▼
//	                     │                          ───▶ exited ◀──
//	                     ▼                                  │
//	(none) ◀───────── removing ◀────────────────────────────┘
//	         destroyed            remove (from every state)
//
// starting is written before the runtime is told to start, so that a crash
// between the two never shows a running process as merely created.
type containerState string

const (
	stateCreating containerState = "creating"
	stateCreated  containerState = "created"
	stateStarting containerState = "starting"
	stateRunning  containerState = "running"
	stateExited   containerState = "exited"
	stateRemoving containerState = "removing"
)

// containerEvent is what moves a container from state to state.
type containerEvent string

const (
	eventCreated containerEvent = "created"
	eventStart   containerEvent = "start"
	eventStarted containerEvent = "started"
	eventExit    containerEvent = "exit"
	eventRemove  containerEvent = "remove"
)

// next returns the state that event leads to, and false for an event that the
// state does not take. A late exit (of a container that is exited or being
// removed) changes nothing and is no error: the shim repeats exits.
func (s containerState) next(event containerEvent) (containerState, bool) {
	switch {
	case event == eventRemove:
		return stateRemoving, true
	case event == eventExit && (s == stateExited || s == stateRemoving):
		return s, true
	case event == eventExit && s != stateCreating:
		return stateExited, true
	case event == eventCreated && s == stateCreating:
		return stateCreated, true
	case event == eventStart && (s == stateCreated || s == stateStarting):
		return stateStarting, true
	case event == eventStarted && s == stateStarting:
		return stateRunning, true
	case event == eventStarted && (s == stateRunning || s == stateExited || s == stateRemoving):
		return s, true // its end was told before its start, which that implies
	}
	return s, false
}

// listed says whether a kubelet may see the container.
func (s containerState) listed() bool { return s != stateCreating && s != stateRemoving }

// alive says whether there may be a process.
func (s containerState) alive() bool {
	return s == stateCreated || s == stateStarting || s == stateRunning
}

func illegal(s containerState, e containerEvent) error {
	return fmt.Errorf("container is %s, which takes no %q", s, e)
}
