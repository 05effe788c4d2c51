package layer

import (
	"bufio"
	"bytes"
	"errors"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"noded.dev/noded/imagestore/limit"
	"noded.dev/noded/internal/kind"
)

// decompress returns the tar stream in a layer blob. What the blob is
// compressed with is seen from its first bytes and from nothing else, and only
// gzip, zstd and none are taken. close frees the decoder.
func decompress(r *bufio.Reader, l limit.Limits) (out io.Reader, done func(), err error) {
	head, err := r.Peek(6)
	if err != nil && err != io.EOF {
		return nil, nil, err
	}
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(r)
		if err != nil {
			return nil, nil, decodeError(err)
		}
		return decoder{z}, func() { z.Close() }, nil
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}), len(head) >= 4 && head[0]&0xf0 == 0x50 && bytes.Equal(head[1:4], []byte{0x2a, 0x4d, 0x18}):
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(uint64(l.ZstdWindow)))
		if err != nil {
			return nil, nil, decodeError(err)
		}
		return decoder{z}, z.Close, nil
	case bytes.HasPrefix(head, []byte{0xfd, '7', 'z', 'X', 'Z', 0}), bytes.HasPrefix(head, []byte("BZh")), bytes.HasPrefix(head, []byte{0x5d, 0, 0}):
		return nil, nil, kind.Errorf(kind.Invalid, "layer is compressed with xz, bzip2 or lzma; only gzip and zstd are read")
	}
	return r, func() {}, nil
}

// decoder gives a decompressor's errors their kinds.
type decoder struct{ r io.Reader }

func (d decoder) Read(p []byte) (int, error) {
	n, err := d.r.Read(p)
	if err != nil && err != io.EOF {
		err = decodeError(err)
	}
	return n, err
}

// decodeError: a window too large is the image's fault; anything else means
// that the bytes are not those that were compressed.
func decodeError(err error) error {
	switch {
	case errors.Is(err, errUpstream):
		return err
	case errors.Is(err, zstd.ErrWindowSizeExceeded), errors.Is(err, zstd.ErrDecoderSizeExceeded):
		return kind.Errorf(kind.Invalid, "decompress: %w (limit zstd_window)", err)
	case errors.Is(err, io.EOF):
		err = io.ErrUnexpectedEOF
	}
	return kind.Errorf(kind.DataLoss, "decompress: %w", err)
}
