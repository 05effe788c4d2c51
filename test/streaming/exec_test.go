package streaming

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/url"
	"path"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/util/exec"

	"noded.dev/noded/cri/stream"
)

// protocols are the ways in: as crictl and older kubectl come, and as kubectl does.
var protocols = map[string]func(t *testing.T, address string) remotecommand.Executor{
	"SPDY": func(t *testing.T, address string) remotecommand.Executor {
		u, err := url.Parse(address)
		if err != nil {
			t.Fatal(err)
		}
		e, err := remotecommand.NewSPDYExecutor(&rest.Config{}, "POST", u)
		if err != nil {
			t.Fatal(err)
		}
		return e
	},
	"WebSocket": func(t *testing.T, address string) remotecommand.Executor {
		e, err := remotecommand.NewWebSocketExecutor(&rest.Config{}, "GET", address)
		if err != nil {
			t.Fatal(err)
		}
		return e
	},
	"WebSocketV4": func(t *testing.T, address string) remotecommand.Executor {
		e, err := remotecommand.NewWebSocketExecutorForProtocols(&rest.Config{}, "GET", address, "v4.channel.k8s.io")
		if err != nil {
			t.Fatal(err)
		}
		return e
	},
}

func eachProtocol(t *testing.T, f func(t *testing.T, connect func(address string) remotecommand.Executor)) {
	for name, connect := range protocols {
		t.Run(name, func(t *testing.T) {
			f(t, func(address string) remotecommand.Executor { return connect(t, address) })
		})
	}
}

func TestExitCodes(t *testing.T) {
	eachProtocol(t, func(t *testing.T, connect func(string) remotecommand.Executor) {
		s := serve(t)
		for _, c := range []struct {
			code int
			err  error
			want string
		}{
			{0, nil, ""},
			{3, nil, "exit code 3"},
			{255, nil, "exit code 255"},
			{0, errors.New("container is gone"), "container is gone"},
		} {
			address, err := s.ExecURL(stream.Wants{Stdout: true, Stderr: true}, func(_ context.Context, st stream.Streams) (int, error) {
				fmt.Fprint(st.Stdout, "to stdout")
				fmt.Fprint(st.Stderr, "to stderr")
				return c.code, c.err
			})
			if err != nil {
				t.Fatal(err)
			}
			var out, errs bytes.Buffer
			err = connect(address).StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdout: &out, Stderr: &errs})
			if out.String() != "to stdout" || errs.String() != "to stderr" {
				t.Errorf("code %d: stdout %q, stderr %q", c.code, out.String(), errs.String())
			}
			if (err == nil) != (c.want == "") || (err != nil && !strings.Contains(err.Error(), c.want)) {
				t.Errorf("code %d, err %v: client got %v", c.code, c.err, err)
			}
			var exit exec.CodeExitError
			if c.code != 0 && (!errors.As(err, &exit) || exit.Code != c.code) {
				t.Errorf("code %d: client got %#v", c.code, err)
			}
		}
	})
}

// TestBulk sends 8 MiB through a command like cat and compares digests.
func TestBulk(t *testing.T) {
	eachProtocol(t, func(t *testing.T, connect func(string) remotecommand.Executor) {
		s := serve(t)
		in := make([]byte, 8<<20)
		r := rand.NewChaCha8([32]byte{1})
		r.Read(in)
		address, err := s.ExecURL(stream.Wants{Stdin: true, Stdout: true}, func(_ context.Context, st stream.Streams) (int, error) {
			_, err := io.Copy(st.Stdout, io.LimitReader(st.Stdin, int64(len(in))))
			return 0, err
		})
		if err != nil {
			t.Fatal(err)
		}
		out := sha256.New()
		err = connect(address).StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdin: bytes.NewReader(in), Stdout: out})
		if err != nil {
			t.Fatal(err)
		}
		if want := sha256.Sum256(in); !bytes.Equal(out.Sum(nil), want[:]) {
			t.Error("output differs from input")
		}
	})
}

// TestHalfClose checks that the end of stdin arrives, after which the command
// still writes. Version 4 over WebSockets cannot say it.
func TestHalfClose(t *testing.T) {
	for _, name := range []string{"SPDY", "WebSocket"} {
		t.Run(name, func(t *testing.T) {
			s := serve(t)
			address, err := s.ExecURL(stream.Wants{Stdin: true, Stdout: true}, func(_ context.Context, st stream.Streams) (int, error) {
				in, err := io.ReadAll(st.Stdin)
				fmt.Fprintf(st.Stdout, "%d bytes", len(in))
				return 0, err
			})
			if err != nil {
				t.Fatal(err)
			}
			var out bytes.Buffer
			err = protocols[name](t, address).StreamWithContext(t.Context(), remotecommand.StreamOptions{
				Stdin: strings.NewReader("twelve bytes"), Stdout: &out,
			})
			if err != nil || out.String() != "12 bytes" {
				t.Errorf("got %q, %v", out.String(), err)
			}
		})
	}
}

type sizeQueue chan remotecommand.TerminalSize

func (q sizeQueue) Next() *remotecommand.TerminalSize {
	size, ok := <-q
	if !ok {
		return nil
	}
	return &size
}

func TestTerminal(t *testing.T) {
	eachProtocol(t, func(t *testing.T, connect func(string) remotecommand.Executor) {
		s := serve(t)
		sizes := []remotecommand.TerminalSize{{Width: 80, Height: 24}, {Width: 65535, Height: 65535}, {Width: 132, Height: 50}}
		queue := make(sizeQueue)
		address, err := s.ExecURL(stream.Wants{Stdin: true, Stdout: true, Terminal: true}, func(ctx context.Context, st stream.Streams) (int, error) {
			if st.Stderr != nil || !st.Terminal {
				return 0, errors.New("a terminal has no stderr")
			}
			for _, want := range sizes {
				queue <- want
				select {
				case got := <-st.Resize:
					if got.Width != want.Width || got.Height != want.Height {
						return 0, fmt.Errorf("size %v, want %v", got, want)
					}
				case <-ctx.Done():
					return 0, ctx.Err()
				}
			}
			close(queue)
			fmt.Fprint(st.Stdout, "resized")
			return 7, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		stdin, typing := io.Pipe()
		defer typing.Close()
		var out bytes.Buffer
		err = connect(address).StreamWithContext(t.Context(), remotecommand.StreamOptions{
			Stdin: stdin, Stdout: &out, Tty: true, TerminalSizeQueue: queue,
		})
		var exit exec.CodeExitError
		if !errors.As(err, &exit) || exit.Code != 7 || out.String() != "resized" {
			t.Errorf("got %q, %v", out.String(), err)
		}
	})
}

// TestAttach checks that several clients each get a session of their own.
func TestAttach(t *testing.T) {
	eachProtocol(t, func(t *testing.T, connect func(string) remotecommand.Executor) {
		s := serve(t)
		for i := range 3 {
			address, err := s.AttachURL(stream.Wants{Stdout: true}, func(_ context.Context, st stream.Streams) error {
				_, err := fmt.Fprintf(st.Stdout, "client %d", i)
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			var out bytes.Buffer
			err = connect(address).StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdout: &out})
			if want := fmt.Sprintf("client %d", i); err != nil || out.String() != want {
				t.Errorf("got %q, %v", out.String(), err)
			}
		}
	})
}

// unread is how many pieces of stdin stop the server's reading but leave room
// in the kernel's buffers: with those full too, nobody can tell that a client
// is gone, because its FIN waits behind its data.
var unread = map[string]int{"SPDY": 23, "WebSocket": 3, "WebSocketV4": 3}

// TestClientVanishes checks that a command ends with its client, whether it
// reads its stdin, writes its stdout, or does neither.
func TestClientVanishes(t *testing.T) {
	commands := map[string]stream.ExecFunc{
		"waiting": func(ctx context.Context, _ stream.Streams) (int, error) {
			<-ctx.Done()
			return 0, ctx.Err()
		},
		"reading": func(_ context.Context, st stream.Streams) (int, error) {
			_, err := io.Copy(io.Discard, st.Stdin)
			return 0, err
		},
		"writing": func(_ context.Context, st stream.Streams) (int, error) {
			for {
				if _, err := st.Stdout.Write(make([]byte, 32<<10)); err != nil {
					return 0, err
				}
			}
		},
	}
	eachProtocol(t, func(t *testing.T, connect func(string) remotecommand.Executor) {
		protocol := path.Base(t.Name())
		for name, command := range commands {
			t.Run(name, func(t *testing.T) {
				s := serve(t)
				started, ended := make(chan struct{}), make(chan struct{})
				address, err := s.ExecURL(stream.Wants{Stdin: true, Stdout: true}, func(ctx context.Context, st stream.Streams) (int, error) {
					defer close(ended)
					close(started)
					return command(ctx, st)
				})
				if err != nil {
					t.Fatal(err)
				}
				ctx, vanish := context.WithCancel(t.Context())
				defer vanish()
				stdin, typing := io.Pipe()
				defer typing.Close()
				typedAll := make(chan struct{})
				go func() {
					defer close(typedAll)
					for range unread[protocol] {
						typing.Write(make([]byte, 32<<10))
					}
				}()
				gone := make(chan struct{})
				go func() {
					defer close(gone)
					connect(address).StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: stdin, Stdout: io.Discard})
				}()
				within(t, "start", started)
				within(t, "typing", typedAll)
				vanish()
				typing.Close()
				within(t, "client's end", gone)
				within(t, "command's end", ended)
			})
		}
	})
}

// TestManySessions checks that sessions leave nothing behind, those included
// whose command fails at once while sizes go on arriving.
func TestManySessions(t *testing.T) {
	eachProtocol(t, func(t *testing.T, connect func(string) remotecommand.Executor) {
		s := serve(t)
		for range 100 {
			address, err := s.ExecURL(stream.Wants{Stdin: true, Stdout: true, Terminal: true}, func(context.Context, stream.Streams) (int, error) {
				return 127, nil
			})
			if err != nil {
				t.Fatal(err)
			}
			queue := make(sizeQueue, 100)
			for range cap(queue) {
				queue <- remotecommand.TerminalSize{Width: 80, Height: 24}
			}
			close(queue)
			start := time.Now()
			err = connect(address).StreamWithContext(t.Context(), remotecommand.StreamOptions{
				Stdin: strings.NewReader(""), Stdout: io.Discard, Tty: true, TerminalSizeQueue: queue,
			})
			var exit exec.CodeExitError
			if !errors.As(err, &exit) || exit.Code != 127 {
				t.Fatalf("got %v", err)
			}
			if took := time.Since(start); took > time.Second {
				t.Fatalf("one session took %v", took)
			}
		}
	})
}
