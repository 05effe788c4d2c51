package layer

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"sync"
	"sync/atomic"

	"noded.dev/noded/imagestore/limit"
	"noded.dev/noded/internal/kind"
	"noded.dev/noded/internal/steps"
)

// Want is what a layer blob must turn out to be.
type Want struct {
	Digest  string // hex of sha256 or sha512 of the blob; see NewHash
	DiffID  string // hex of sha256 of the tar inside; "": any
	NewHash func() Hash
	Count   *Count // nil: nobody watches

	// File is the path of the one file that the blob is, of Size bytes, as it
	// is and not unpacked; "": the blob is a tar.
	File string
	Size int64

	// Panicked is told the stack of a panic in reading the layer, which is an
	// error of the layer like any other; nil is not told.
	Panicked func(stack string)
}

// Count is how far a layer has come; it may be read at any time.
type Count struct {
	Blob   atomic.Int64 // blob bytes received
	Bytes  atomic.Int64 // disk bytes taken
	Inodes atomic.Int64
}

// Hash is the part of hash.Hash used here.
type Hash interface {
	io.Writer
	Sum([]byte) []byte
}

// ErrDigest is the error of a blob whose bytes are not the wanted ones: the
// host that sent them is at fault, and not the image.
var ErrDigest = errors.New("digest does not match")

// Unpack does the one pass over a layer: hash the blob, decompress it, hash
// the tar, unpack it into dir, an empty folder. The folder's content counts
// only if Unpack returns nil, because it is made while the hashes are.
func Unpack(ctx context.Context, dir string, blob io.Reader, w Want, l limit.Limits) (Meta, error) {
	if w.Count == nil {
		w.Count = new(Count)
	}
	w.Count.Bytes.Store(0)
	w.Count.Inodes.Store(0)
	if w.File != "" {
		return storeFile(ctx, dir, blob, w, l)
	}
	p := &pass{limits: l, blobHash: w.NewHash(), tarHash: sha256.New(), in: newPipe(), out: newPipe()}
	var wg sync.WaitGroup
	var blobErr, tarErr error
	wg.Go(func() {
		blobErr = p.guard(w, func() error { return p.in.pump(counted{blob, &w.Count.Blob}, p.seeBlob) })
	})
	wg.Go(func() {
		tarErr = p.guard(w, p.inflate)
		p.in.stop() // it has read to the end, unless it panicked
	})
	var meta Meta
	err := p.guard(w, func() (err error) {
		if meta, err = untar(ctx, dir, p.out, l, w.Count); err == nil {
			_, err = io.Copy(io.Discard, p.out) // what follows the tar's end is part of the diff id
		}
		return err
	})
	p.giveUp(err)
	p.out.stop()
	wg.Wait()
	if p.panicked.Load() {
		return Meta{}, kind.Wrap(kind.Internal, errors.Join(blobErr, tarErr, err))
	}
	if err == nil {
		err = tarErr
	}
	return meta, p.verdict(ctx, w, err, blobErr)
}

// guard makes an error of a stage's panic; the other stages' errors only
// follow from it then.
func (p *pass) guard(w Want, work func() error) error {
	return steps.Guard(func(stack string) {
		p.panicked.Store(true)
		if w.Panicked != nil {
			w.Panicked(stack)
		}
	}, work)
}

// giveUp ends the transfer early where its rest can change nothing: this node
// has no room for the layer, whatever its digest.
func (p *pass) giveUp(err error) {
	if kind.Is(err, kind.Exhausted) {
		p.in.stop()
	}
}

// counted counts what is read, as it comes in.
type counted struct {
	r io.Reader
	n *atomic.Int64
}

func (c counted) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n.Add(int64(n))
	return n, err
}

// pass is one Unpack under way.
type pass struct {
	limits   limit.Limits
	blobHash Hash
	tarHash  Hash
	in, out  *pipe
	read     atomic.Int64 // blob bytes so far
	written  int64        // tar bytes so far
	panicked atomic.Bool
}

func (p *pass) seeBlob(b []byte) error {
	p.read.Add(int64(len(b)))
	p.blobHash.Write(b)
	return nil
}

// seeTar hashes and stops bombs: beyond the first RatioFrom bytes no honest
// layer shrinks a thousandfold.
func (p *pass) seeTar(b []byte) error {
	p.tarHash.Write(b)
	p.written += int64(len(b))
	if p.written > p.limits.RatioFrom && p.written/p.limits.Ratio > p.read.Load() {
		return limit.Error(kind.Exhausted, "compression ratio of a layer", "ratio", p.limits.Ratio)
	}
	// Tar headers and padding come on top of the content that is budgeted.
	if p.written/2 > p.limits.LayerBytes {
		return limit.Error(kind.Exhausted, "unpacked layer", "layer_bytes", p.limits.LayerBytes)
	}
	return nil
}

// inflate runs the middle stage. Whatever becomes of it, the blob is read to
// its end: only its digest tells a damaged transfer from a bad image.
func (p *pass) inflate() error {
	tar, done, err := decompress(bufio.NewReaderSize(p.in, 64<<10), p.limits)
	if err == nil {
		err = p.out.pump(tar, p.seeTar)
		done()
	} else {
		first := err
		err = p.out.pump(failing{first}, p.seeTar)
	}
	p.giveUp(err)
	if _, e := io.Copy(io.Discard, p.in); e != nil && err == nil {
		err = e
	}
	return err
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// verdict picks the error that explains the others.
func (p *pass) verdict(ctx context.Context, w Want, err, blobErr error) error {
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case kind.Is(err, kind.Exhausted):
		return err
	case blobErr != nil:
		return blobErr
	case hex.EncodeToString(p.blobHash.Sum(nil)) != w.Digest:
		return kind.Errorf(kind.DataLoss, "layer %s: %w", short(w.Digest), ErrDigest)
	case err != nil:
		return err
	case w.DiffID != "" && hex.EncodeToString(p.tarHash.Sum(nil)) != w.DiffID:
		return kind.Errorf(kind.DataLoss, "layer %s: its content is not the diff id %s that the config names", short(w.Digest), short(w.DiffID))
	}
	return nil
}

func short(hex string) string {
	if len(hex) > 12 {
		return hex[:12]
	}
	return hex
}
