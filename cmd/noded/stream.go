package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"

	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// maxStatus bounds what the error stream may say; it is one small JSON object.
const maxStatus = 64 << 10

// session is one exec or attach over the URL that the runtime gave. It speaks
// SPDY and not WebSocket, because the runtimes' WebSocket servers have only
// version 4 of the protocol, which cannot say that stdin has ended.
type session struct {
	url    string
	stdin  io.Reader // nil: not connected
	stdout io.Writer
	stderr io.Writer         // nil with a terminal
	sizes  <-chan windowSize // terminal sizes; nil without a terminal
}

// windowSize is what the resize stream carries, as Kubernetes' clients send it.
type windowSize struct{ Width, Height uint16 }

// run returns the command's exit status. It returns when the command has ended
// and its output was written, not when stdin ends.
func (s *session) run(ctx context.Context) (code int, err error) {
	conn, err := s.dial(ctx)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	open := func(kind string) (httpstream.Stream, error) {
		header := http.Header{}
		header.Set(remotecommand.StreamType, kind)
		stream, err := conn.CreateStream(header)
		if err != nil {
			return nil, fmt.Errorf("open %s stream: %w", kind, err)
		}
		return stream, nil
	}
	failure, err := open(remotecommand.StreamTypeError)
	if err != nil {
		return 0, err
	}
	// The error stream is one way, from the server.
	if err := failure.Close(); err != nil {
		return 0, fmt.Errorf("close error stream: %w", err)
	}
	copies, err := s.connect(open)
	if err != nil {
		return 0, err
	}
	// Closing the connection ends every read below when ctx does.
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	report, err := io.ReadAll(io.LimitReader(failure, maxStatus))
	copyErr := copies()
	if ctx.Err() != nil {
		return 0, ctx.Err()
	}
	if err != nil {
		return 0, fmt.Errorf("read exit status: %w", err)
	}
	code, err = parseStatus(report)
	return code, errors.Join(err, copyErr)
}

func (s *session) dial(ctx context.Context) (httpstream.Connection, error) {
	upgrade, err := spdy.NewRoundTripper(nil)
	if err != nil {
		return nil, fmt.Errorf("prepare stream: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url, nil)
	if err != nil {
		return nil, fmt.Errorf("prepare stream: %w", err)
	}
	// Version 4 is the one with exit statuses; every CRI runtime has it.
	req.Header.Set(httpstream.HeaderProtocolVersion, remotecommand.StreamProtocolV4Name)
	resp, err := upgrade.RoundTrip(req)
	if err != nil {
		return nil, fmt.Errorf("connect to the stream server: %w", err)
	}
	defer resp.Body.Close()
	conn, err := upgrade.NewConnection(resp)
	if err != nil {
		return nil, fmt.Errorf("connect to the stream server: %w", err)
	}
	return conn, nil
}

// connect opens the data streams. The function it returns waits until the
// output is written. The goroutine that copies stdin is not waited for: a read
// of a terminal cannot be interrupted, and it ends with the program.
func (s *session) connect(open func(string) (httpstream.Stream, error)) (wait func() error, err error) {
	var running sync.WaitGroup
	var mu sync.Mutex
	var failed []error
	output := func(kind string, w io.Writer) error {
		stream, err := open(kind)
		if err != nil {
			return err
		}
		running.Go(func() {
			if _, err := io.Copy(w, stream); err != nil {
				mu.Lock()
				failed = append(failed, fmt.Errorf("copy %s: %w", kind, err))
				mu.Unlock()
			}
		})
		return nil
	}
	if s.stdin != nil {
		stream, err := open(remotecommand.StreamTypeStdin)
		if err != nil {
			return nil, err
		}
		go func() {
			// An error here is the command's end, which run reports.
			_, _ = io.Copy(stream, s.stdin)
			_ = stream.Close()
		}()
	}
	if s.stdout != nil {
		if err := output(remotecommand.StreamTypeStdout, s.stdout); err != nil {
			return nil, err
		}
	}
	if s.stderr != nil {
		if err := output(remotecommand.StreamTypeStderr, s.stderr); err != nil {
			return nil, err
		}
	}
	if s.sizes != nil {
		stream, err := open(remotecommand.StreamTypeResize)
		if err != nil {
			return nil, err
		}
		go func() {
			encoder := json.NewEncoder(stream)
			for size := range s.sizes {
				if encoder.Encode(size) != nil {
					return
				}
			}
		}()
	}
	return func() error {
		running.Wait()
		return errors.Join(failed...)
	}, nil
}

// parseStatus reads the JSON (a Kubernetes Status) of the error stream; an
// empty report is success.
func parseStatus(report []byte) (code int, err error) {
	if len(report) == 0 {
		return 0, nil
	}
	var s struct {
		Status, Message, Reason string
		Details                 struct {
			Causes []struct {
				Type    string `json:"reason"`
				Message string
			}
		}
	}
	if err := json.Unmarshal(report, &s); err != nil {
		// Runtimes also write plain text when the command could not be started.
		return 0, errors.New(printable(string(report)))
	}
	if s.Status == "Success" {
		return 0, nil
	}
	if s.Reason == remotecommand.NonZeroExitCodeReason {
		for _, cause := range s.Details.Causes {
			if cause.Type == remotecommand.ExitCodeCauseType {
				code, err := strconv.Atoi(cause.Message)
				if err != nil || code < 1 || code > 255 {
					return 0, fmt.Errorf("the runtime reported exit status %q", cause.Message)
				}
				return code, nil
			}
		}
	}
	return 0, errors.New(printable(s.Message))
}
