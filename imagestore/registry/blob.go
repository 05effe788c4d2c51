package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"noded.dev/noded/internal/kind"
)

// Blob streams a blob of known size. A broken connection is continued where it
// broke, by Range; a stalled one at the next host. The bytes are not verified
// here: whoever hashes them may call Distrust and open the blob again.
type Blob struct {
	s     *session
	ctx   context.Context // of the stream, which is this value's whole life
	desc  ocispec.Descriptor
	hosts []*hostState
	at    int // index into hosts
	off   int64
	body  io.ReadCloser
	stop  context.CancelFunc
	watch *watch
	tries int
	mark  int64 // offset at the last failure
	tried attempts
	last  *hostState
}

// progressing is how many bytes between two failures show that trying again
// leads somewhere: on a bad line a large blob may break any number of times.
const progressing = 256 << 10

// Blob opens a stream; the first request is sent by the first Read. skip names
// hosts (as Blob.Host) that gave wrong bytes before; they are tried last.
func (s *Session) Blob(ctx context.Context, desc ocispec.Descriptor, skip []string) *Blob {
	b := &Blob{s: &s.session, ctx: ctx, desc: desc}
	var last []*hostState
	for _, h := range s.hosts {
		switch {
		case !h.pull || !s.speaks(h):
		case contains(skip, h.name()):
			last = append(last, h)
		default:
			b.hosts = append(b.hosts, h)
		}
	}
	b.hosts = append(b.hosts, last...)
	return b
}

func contains(list []string, s string) bool {
	for _, l := range list {
		if l == s {
			return true
		}
	}
	return false
}

// Host is where the last bytes came from.
func (b *Blob) Host() string {
	if b.last == nil {
		return ""
	}
	return b.last.name()
}

// Close ends the transfer.
func (b *Blob) Close() error {
	b.drop()
	return nil
}

func (b *Blob) drop() {
	if b.body != nil {
		b.stop()
		b.body.Close()
		b.watch.end()
		b.body = nil
	}
}

// Read reads on, over as many connections as it takes and the limits allow.
func (b *Blob) Read(p []byte) (int, error) {
	for {
		if b.off == b.desc.Size {
			return 0, b.end()
		}
		if b.body == nil {
			if err := b.connect(); err != nil {
				return 0, err
			}
		}
		left := b.desc.Size - b.off
		if int64(len(p)) > left {
			p = p[:left]
		}
		n, err := b.watch.read(b.body, p)
		b.off += int64(n)
		if n > 0 {
			return n, nil
		}
		if err == nil {
			continue
		}
		if err == io.EOF {
			err = fmt.Errorf("%w after %d of %d bytes", io.ErrUnexpectedEOF, b.off, b.desc.Size)
		}
		if err := b.failed(err); err != nil {
			return 0, err
		}
	}
}

// end checks that nothing follows the last byte: a longer blob is another
// blob. It does not wait for a server that says nothing more.
func (b *Blob) end() error {
	if b.body == nil {
		return io.EOF
	}
	var one [1]byte
	n, _ := b.watch.read(b.body, one[:])
	b.drop()
	if n > 0 {
		return kind.Errorf(kind.DataLoss, "%s: %s sends more than the %d bytes of its descriptor", b.desc.Digest, b.last.name(), b.desc.Size)
	}
	return io.EOF
}

// failed notes a failure at the current host and decides what follows: nil to
// go on, the error of the whole transfer otherwise.
func (b *Blob) failed(err error) error {
	b.drop()
	if b.ctx.Err() != nil {
		return context.Cause(b.ctx)
	}
	h := b.hosts[b.at]
	b.tried.add(h, err)
	if b.off-b.mark >= progressing {
		b.tries = 0
	}
	b.tries++
	var stall *stallError
	if errors.As(err, &stall) || !worthRetry(err) && b.off == b.mark {
		b.at++
	}
	b.mark = b.off
	most := b.s.client.opts.Limits.Retries
	if b.at >= len(b.hosts) || b.tries > most+len(b.hosts) {
		return b.tried.error("fetch")
	}
	if b.hosts[b.at] != h {
		return nil
	}
	return pause(b.ctx, b.tries, err)
}

// connect opens the transfer at the current offset.
func (b *Blob) connect() error {
	if len(b.hosts) == 0 {
		return b.tried.error("fetch")
	}
	for {
		err := b.dial(b.hosts[b.at])
		if err == nil {
			return nil
		}
		if err := b.failed(err); err != nil {
			return err
		}
	}
}

func (b *Blob) dial(h *hostState) error {
	ctx, stop := context.WithCancel(b.ctx)
	path := "/" + b.s.ref.Path + "/blobs/" + b.desc.Digest.String()
	w := newWatch(b.s.client.opts.MinRate, b.s.client.opts.StallWindow, stop)
	resp, err := b.s.open(ctx, h, request{path: path, from: b.off})
	if err != nil {
		stop()
		w.end()
		return err
	}
	if err := b.position(w, resp); err != nil {
		stop()
		resp.Body.Close()
		w.end()
		return err
	}
	b.body, b.stop, b.watch, b.last = resp.Body, stop, w, h
	return nil
}

// position brings a reply to the wanted offset: a server that ignores Range
// sends the blob from its start, so what is known already is read past.
func (b *Blob) position(w *watch, resp *http.Response) error {
	if e := resp.Header.Get("Content-Encoding"); e != "" && e != "identity" {
		return kind.Errorf(kind.DataLoss, "reply has content encoding %q, which was not asked for", clip(e))
	}
	skip := b.off
	if resp.StatusCode == http.StatusPartialContent {
		first, ok := rangeStart(resp.Header.Get("Content-Range"))
		if !ok || first != b.off {
			return kind.Errorf(kind.DataLoss, "reply is for another range than asked for")
		}
		skip = 0
	}
	if n := resp.ContentLength; n >= 0 && n != b.desc.Size-b.off+skip {
		return kind.Errorf(kind.DataLoss, "reply has %d bytes, the descriptor says %d", n+b.off-skip, b.desc.Size)
	}
	if skip == 0 {
		return nil
	}
	buf := make([]byte, 32<<10)
	for skip > 0 {
		n, err := w.read(resp.Body, buf[:min(int64(len(buf)), skip)])
		if skip -= int64(n); err != nil && skip > 0 {
			return err
		}
	}
	return nil
}

// rangeStart reads "bytes first-last/total" (RFC 9110, 14.4).
func rangeStart(s string) (int64, bool) {
	s, ok := strings.CutPrefix(s, "bytes ")
	if !ok {
		return 0, false
	}
	first, _, ok := strings.Cut(s, "-")
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseInt(first, 10, 64)
	return n, err == nil
}

// watch measures a transfer against the minimum rate. Only time spent waiting
// for the network counts, so a slow disk here is no stall there.
type watch struct {
	rate   int64
	window time.Duration
	timer  *time.Timer
	waited time.Duration
	got    int64
}

// stallError is a transfer below the minimum rate.
type stallError struct {
	window time.Duration
	got    int64
}

func (e *stallError) Error() string {
	return fmt.Sprintf("stalled: %d bytes in %s", e.got, e.window)
}

func newWatch(rate int64, window time.Duration, stop func()) *watch {
	w := &watch{rate: rate, window: window, timer: time.AfterFunc(window, stop)}
	w.timer.Stop()
	return w
}

func (w *watch) end() { w.timer.Stop() }

func (w *watch) read(body io.Reader, p []byte) (int, error) {
	begin := time.Now()
	w.timer.Reset(w.window - w.waited)
	n, err := body.Read(p)
	fired := !w.timer.Stop()
	w.waited += time.Since(begin)
	w.got += int64(n)
	if fired && n == 0 {
		return 0, &stallError{w.window, w.got}
	}
	if w.waited >= w.window {
		if float64(w.got) < float64(w.rate)*w.window.Seconds() {
			return 0, &stallError{w.window, w.got}
		}
		w.waited, w.got = 0, 0
	}
	if err != nil && err != io.EOF {
		err = bare(err)
	}
	return n, err
}

// isReset reports a connection that the other end, or something between, cut.
func isReset(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNABORTED)
}
