package cri

import (
	"context"
	"fmt"
	"path"
	"runtime/debug"
	"time"

	"github.com/sirupsen/logrus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"noded.dev/noded/internal/kind"
)

// unary runs one call and finishes it.
func (s *Server) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	start := time.Now()
	resp, err := s.guard(info.FullMethod, func() (any, error) { return handler(ctx, req) })
	if err == nil {
		err = checkReply(path.Base(info.FullMethod), resp)
	}
	if err = s.finish(ctx, call{info.FullMethod, req, start}, err); err != nil {
		return nil, err
	}
	return resp, nil
}

// streaming is unary for calls with a stream of replies.
func (s *Server) streaming(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	start := time.Now()
	_, err := s.guard(info.FullMethod, func() (any, error) { return nil, handler(srv, stream) })
	return s.finish(stream.Context(), call{info.FullMethod, nil, start}, err)
}

// guard turns a panic into an error: one bad request must not end the daemon.
func (s *Server) guard(method string, f func() (any, error)) (resp any, err error) {
	defer func() {
		if p := recover(); p != nil {
			stack := string(debug.Stack())
			s.log.WithFields(logrus.Fields{"method": path.Base(method), "stack": stack}).Error("handler panicked")
			resp, err = nil, kind.Errorf(kind.Internal, "panic: %s", cleanText(fmt.Sprint(p), nil))
		}
	}()
	return f()
}

// call is one call that has returned.
type call struct {
	method string // "/runtime.v1.RuntimeService/RunPodSandbox"
	req    any
	start  time.Time
}

// finish measures and logs a call, and makes the error that its client sees.
func (s *Server) finish(ctx context.Context, c call, err error) error {
	took := time.Since(c.start)
	method := path.Base(c.method)
	code := codes.OK
	var reply error
	if err != nil {
		st := toStatus(ctx, err, secretsOf(c.req))
		code, reply = st.Code(), st.Err()
		s.logFailure(method, c.req, took, st)
	} else if s.log.Logger.IsLevelEnabled(logrus.DebugLevel) {
		s.log.WithFields(s.fields(method, c.req, took)).Debug("call done")
	}
	if s.observe != nil {
		s.observe(Call{Method: method, Code: code.String(), Duration: took})
	}
	return reply
}

func (s *Server) logFailure(method string, req any, took time.Duration, st interface {
	Code() codes.Code
	Message() string
}) {
	entry := s.log.WithFields(s.fields(method, req, took)).WithField("code", st.Code().String())
	switch st.Code() {
	case codes.Canceled, codes.Unimplemented, codes.NotFound:
		// The ordinary life of a kubelet: it goes away, tries new calls, and
		// asks for what it has just removed.
		entry.Debug(st.Message())
	case codes.Internal, codes.DataLoss:
		entry.Error(st.Message())
	default:
		entry.Warn(st.Message())
	}
}

// fields are what identifies a call in the log: nothing of a request but ids
// and references is ever logged.
func (s *Server) fields(method string, req any, took time.Duration) logrus.Fields {
	f := logrus.Fields{"method": method, "took": took.Round(time.Microsecond).String()}
	if r, ok := req.(interface{ GetPodSandboxId() string }); ok {
		f["pod"] = clip(r.GetPodSandboxId())
	}
	if r, ok := req.(interface{ GetContainerId() string }); ok {
		f["container"] = clip(r.GetContainerId())
	}
	if r, ok := req.(imageRequest); ok {
		f["image"] = cleanText(clip(r.GetImage().GetImage()), secretsOf(req))
	}
	if r, ok := req.(podRequest); ok {
		m := r.GetConfig().GetMetadata()
		f["pod"] = clip(m.GetNamespace()) + "/" + clip(m.GetName())
	}
	return f
}

// clip shortens what a client chose for use in a log line.
func clip(text string) string {
	if len(text) > 256 {
		return text[:256] + "…"
	}
	return text
}
