package streaming

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/streaming/pkg/httpstream"
	streamspdy "k8s.io/streaming/pkg/httpstream/spdy"
)

var dialers = map[string]func(t *testing.T, u *url.URL) httpstream.Dialer{
	"SPDY": func(t *testing.T, u *url.URL) httpstream.Dialer {
		transport, err := streamspdy.NewRoundTripper(nil)
		if err != nil {
			t.Fatal(err)
		}
		return spdy.NewDialerForStreaming(spdy.NewUpgraderForStreaming(transport), &http.Client{Transport: transport}, "POST", u)
	},
	"WebSocket": func(t *testing.T, u *url.URL) httpstream.Dialer {
		d, err := portforward.NewSPDYOverWebsocketDialerForStreaming(u, &rest.Config{})
		if err != nil {
			t.Fatal(err)
		}
		return d
	},
}

// echoes forwards every connection to an echo, refuses port 81, and hangs up
// first on port 82.
func echoes(_ context.Context, port int32, conn io.ReadWriteCloser) error {
	if port == 81 {
		return fmt.Errorf("dial tcp 127.0.0.1:%d: connection refused", port)
	}
	fmt.Fprintf(conn, "port %d\n", port)
	if port == 82 {
		conn.Close()
	}
	_, err := io.Copy(conn, conn)
	return err
}

func TestPortForward(t *testing.T) {
	for name, dialer := range dialers {
		t.Run(name, func(t *testing.T) {
			s := serve(t)
			address, err := s.PortForwardURL(nil, echoes)
			if err != nil {
				t.Fatal(err)
			}
			u, err := url.Parse(address)
			if err != nil {
				t.Fatal(err)
			}
			stop, ready, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
			f, err := portforward.NewForStreaming(dialer(t, u), []string{"0:80", "0:81", "0:82"}, stop, ready, io.Discard, io.Discard)
			if err != nil {
				t.Fatal(err)
			}
			go func() { ended <- f.ForwardPorts() }()
			within(t, "forward", ready)
			ports, err := f.GetPorts()
			if err != nil {
				t.Fatal(err)
			}

			var wg sync.WaitGroup
			for i := range 50 {
				wg.Go(func() { echo(t, ports[0].Local, fmt.Sprintf("hello %d", i)) })
			}
			wg.Wait()

			// The server may be the first to close.
			c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", ports[2].Local))
			if err != nil {
				t.Fatal(err)
			}
			c.SetDeadline(time.Now().Add(5 * time.Second))
			if got, err := io.ReadAll(c); err != nil || string(got) != "port 82\n" {
				t.Errorf("got %q, %v", got, err)
			}
			c.Close()

			// A refused port is told on the error stream.
			c, err = net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", ports[1].Local))
			if err != nil {
				t.Fatal(err)
			}
			c.SetDeadline(time.Now().Add(5 * time.Second))
			if rest, _ := io.ReadAll(c); len(rest) > 0 {
				t.Errorf("refused port sent %q", rest)
			}
			c.Close()
			told := said.take()
			for end := time.Now().Add(5 * time.Second); !strings.Contains(told, "connection refused"); time.Sleep(10 * time.Millisecond) {
				if told += said.take(); time.Now().After(end) {
					t.Fatalf("client was told %q", told)
				}
			}
			close(stop)
			select {
			case <-ended:
			case <-time.After(10 * time.Second):
				t.Fatal("forwarder does not end")
			}
		})
	}
}

func echo(t *testing.T, port uint16, text string) {
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Error(err)
		return
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	io.WriteString(c, text)
	c.(*net.TCPConn).CloseWrite()
	got, err := io.ReadAll(c)
	if want := "port 80\n" + text; err != nil || string(got) != want {
		t.Errorf("got %q, %v; want %q", got, err, want)
	}
}
