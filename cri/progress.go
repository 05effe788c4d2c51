package cri

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/structpb"

	"noded.dev/noded/imagestore"
)

// pullsMethod is noded's own call beside the CRI: a stream of the progress of
// pulls, for progress bars. It needs no generated code: messages are
// google.protobuf.Struct. The request has "reference" ("" is every pull); a
// reply has reference, host, done, total (compressed bytes), layers, ready,
// status.
const pullsMethod = "/noded.v1.Images/Pulls"

var progressService = grpc.ServiceDesc{
	ServiceName: "noded.v1.Images",
	HandlerType: (*pullsServer)(nil),
	Streams:     []grpc.StreamDesc{{StreamName: "Pulls", Handler: servePulls, ServerStreams: true}},
}

type pullsServer interface {
	pulls(ref string, out grpc.ServerStream) error
}

func servePulls(srv any, out grpc.ServerStream) error {
	req := &structpb.Struct{}
	if err := out.RecvMsg(req); err != nil {
		return err
	}
	return srv.(pullsServer).pulls(req.Fields["reference"].GetStringValue(), out)
}

// progressPeriod is how often progress is looked at. Progress is a level, not
// a sequence of events: the store keeps the newest figures and a reader takes
// them as often as it can show them. A small image is there in a tenth of a second.
const progressPeriod = 25 * time.Millisecond

func (s *Server) pulls(ref string, out grpc.ServerStream) error {
	tick := time.NewTicker(progressPeriod)
	defer tick.Stop()
	sent := map[string]imagestore.Progress{}
	for {
		now := map[string]imagestore.Progress{}
		for _, p := range s.images.Pulls() {
			if !names(ref, p.Reference) {
				continue
			}
			now[p.Reference] = p
			if sent[p.Reference] == p {
				continue
			}
			if err := s.send(out, progressMessage(p), nil); err != nil {
				return err
			}
		}
		sent = now
		select {
		case <-out.Context().Done():
			return out.Context().Err()
		case <-s.closing:
			return nil
		case <-tick.C:
		}
	}
}

// names reports whether a user's short name can mean the full reference of a
// pull: "busybox" means "docker.io/library/busybox:latest".
func names(ref, full string) bool {
	if ref == "" || ref == full {
		return true
	}
	return strings.HasSuffix(full, "/"+ref) || strings.HasSuffix(full, "/"+ref+":latest") || full == ref+":latest"
}

func progressMessage(p imagestore.Progress) *structpb.Struct {
	text := func(s string) *structpb.Value { return structpb.NewStringValue(cleanText(s, nil)) }
	number := func(n int64) *structpb.Value { return structpb.NewNumberValue(float64(n)) }
	return &structpb.Struct{Fields: map[string]*structpb.Value{
		"reference": text(p.Reference), "host": text(p.Host), "status": text(p.Status),
		"done": number(p.Done), "total": number(p.Total),
		"layers": number(int64(p.Layers)), "ready": number(int64(p.Ready)),
	}}
}

// WatchPulls calls show with the progress of the pulls that ref names ("" is
// all) until ctx ends, which is no error, or the daemon stops.
func WatchPulls(ctx context.Context, conn grpc.ClientConnInterface, ref string, show func(imagestore.Progress)) error {
	stream, err := conn.NewStream(ctx, &progressService.Streams[0], pullsMethod)
	if err != nil {
		return fmt.Errorf("watch pulls: %w", err)
	}
	req := &structpb.Struct{Fields: map[string]*structpb.Value{"reference": structpb.NewStringValue(ref)}}
	if err := errors.Join(stream.SendMsg(req), stream.CloseSend()); err != nil {
		return fmt.Errorf("watch pulls: %w", err)
	}
	for {
		m := &structpb.Struct{}
		switch err := stream.RecvMsg(m); {
		case errors.Is(err, io.EOF) || ctx.Err() != nil:
			return nil
		case err != nil:
			return fmt.Errorf("watch pulls: %w", err)
		}
		f := m.Fields
		show(imagestore.Progress{
			Reference: f["reference"].GetStringValue(), Host: f["host"].GetStringValue(), Status: f["status"].GetStringValue(),
			Done: int64(f["done"].GetNumberValue()), Total: int64(f["total"].GetNumberValue()),
			Layers: int(f["layers"].GetNumberValue()), Ready: int(f["ready"].GetNumberValue()),
		})
	}
}
