package cri

import (
	"sync"

	"google.golang.org/grpc"

	"noded.dev/noded/internal/kind"
)

// send hands a message to a client that may read slowly, or not at all: the
// wait for it ends with the call, with the server, or when giveUp is closed,
// which is no error. After one of the latter two the handler must return,
// which ends the wait that goes on behind it. The message must not be changed
// any more.
func (s *Server) send(out grpc.ServerStream, message any, giveUp <-chan struct{}) error {
	sent := make(chan error, 1)
	if !s.sending.begin(func() { sent <- out.SendMsg(message) }) {
		return errStopping
	}
	select {
	case err := <-sent:
		return err
	case <-giveUp:
		return nil
	case <-s.closing:
		return errStopping
	}
}

var errStopping = kind.Errorf(kind.Unavailable, "noded is stopping")

// sends are the waits under way for clients to take a message.
type sends struct {
	mu     sync.Mutex
	closed bool
	wait   sync.WaitGroup
}

// begin starts a wait; false after close.
func (s *sends) begin(wait func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.wait.Go(wait)
	return true
}

// close lets none begin and returns when the last has ended.
func (s *sends) close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.wait.Wait()
}
