// Package kind gives errors the few kinds that callers act on. The cri package
// maps each kind to one gRPC code; nothing below it knows gRPC.
package kind

import (
	"context"
	"errors"
	"fmt"
)

// Kind says what a caller can do about an error.
type Kind int

// The kinds, in the words of the CRI's users.
const (
	Internal         Kind = iota // a bug in noded; the counter of these must stay 0
	Invalid                      // the request or the image is malformed
	NotFound                     // no such pod, container, image or handler
	Precondition                 // the object is in the wrong state, or the node lacks a feature
	Exists                       // the name belongs to something else
	Exhausted                    // disk, inodes, descriptors, pids, or a documented limit
	Unavailable                  // starting, stopping, store read-only, registry out of reach
	DataLoss                     // stored or received bytes do not match their digest
	Unauthenticated              // the registry wants credentials
	PermissionDenied             // the registry refuses these credentials
	Aborted                      // an OCI runtime or CNI plugin failed; safe to retry
	Unimplemented                // this build cannot do it
	Canceled                     // the caller went away
	Deadline                     // the caller's deadline, or a step's own, passed
)

type kinded struct {
	kind Kind
	err  error
}

func (e *kinded) Error() string { return e.err.Error() }
func (e *kinded) Unwrap() error { return e.err }

// Errorf is fmt.Errorf with a kind.
func Errorf(k Kind, format string, args ...any) error {
	return &kinded{k, fmt.Errorf(format, args...)}
}

// Wrap gives err a kind; the outermost kind of a chain counts. Wrap of nil is nil.
func Wrap(k Kind, err error) error {
	if err == nil {
		return nil
	}
	return &kinded{k, err}
}

// Of returns the outermost kind in err's chain. Context errors without a kind
// are Canceled and Deadline, everything else Internal.
func Of(err error) Kind {
	var k *kinded
	switch {
	case errors.As(err, &k):
		return k.kind
	case errors.Is(err, context.Canceled):
		return Canceled
	case errors.Is(err, context.DeadlineExceeded):
		return Deadline
	}
	return Internal
}

// Is reports whether err is of kind k.
func Is(err error, k Kind) bool { return err != nil && Of(err) == k }
