package cri

import (
	"context"
	"errors"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	crierrors "k8s.io/cri-api/pkg/errors"

	"noded.dev/noded/imagestore"
	"noded.dev/noded/internal/kind"
)

// codeOf is the one table from what an error means to what gRPC calls it.
// Unknown is not in it: the kubelet gives it a meaning of its own (pullError).
var codeOf = map[kind.Kind]codes.Code{
	kind.Internal:         codes.Internal,
	kind.Invalid:          codes.InvalidArgument,
	kind.NotFound:         codes.NotFound,
	kind.Precondition:     codes.FailedPrecondition,
	kind.Exists:           codes.AlreadyExists,
	kind.Exhausted:        codes.ResourceExhausted,
	kind.Unavailable:      codes.Unavailable,
	kind.DataLoss:         codes.DataLoss,
	kind.Unauthenticated:  codes.Unauthenticated,
	kind.PermissionDenied: codes.PermissionDenied,
	kind.Aborted:          codes.Aborted,
	kind.Unimplemented:    codes.Unimplemented,
	kind.Canceled:         codes.Canceled,
	kind.Deadline:         codes.DeadlineExceeded,
}

// prefixed is an error whose text must begin with a prefix the kubelet looks
// for, and which may have a code of its own.
type prefixed struct {
	code   codes.Code // OK: as the cause's kind says
	prefix string
	cause  error
}

func (e *prefixed) Error() string { return e.prefix + ": " + e.cause.Error() }
func (e *prefixed) Unwrap() error { return e.cause }

// pullError marks a registry out of reach, and an image that the policy refuses,
// the way the kubelet wants it: only under the code Unknown does it look at the
// message, and only at its beginning (cri-client, remote_image.go).
func pullError(err error) error {
	if errors.Is(err, imagestore.ErrRefused) {
		return &prefixed{codes.Unknown, crierrors.ErrSignatureValidationFailed.Error(), err}
	}
	if kind.Is(err, kind.Unavailable) {
		return &prefixed{codes.Unknown, crierrors.ErrRegistryUnavailable.Error(), err}
	}
	return err
}

// createError moves the markers that the kubelet turns into reasons of their
// own to the beginning of the message, before the names of the steps.
func createError(err error) error {
	for _, marker := range []error{crierrors.ErrImageVolumeMountFailed, crierrors.ErrRROUnsupported} {
		if text := marker.Error(); strings.Contains(err.Error(), text) && !strings.HasPrefix(err.Error(), text) {
			return &prefixed{codes.OK, text, err}
		}
	}
	return err
}

// toStatus gives err its code and cleans its text. Errors that only follow
// from the caller's going away say so: a helper killed with its context
// otherwise looks like a bug or a broken plugin.
func toStatus(ctx context.Context, err error, secrets []string) *status.Status {
	k := kind.Of(err)
	if (k == kind.Internal || k == kind.Aborted) && ctx.Err() != nil {
		k = kind.Of(ctx.Err())
	}
	code := codeOf[k]
	var p *prefixed
	if errors.As(err, &p) {
		if p.code != codes.OK {
			code = p.code
		}
	} else if st, ok := status.FromError(err); ok {
		return status.New(st.Code(), cleanText(st.Message(), secrets))
	}
	return status.New(code, cleanText(err.Error(), secrets))
}
