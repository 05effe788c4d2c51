package layer

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"noded.dev/noded/imagestore/limit"
	"noded.dev/noded/internal/kind"
	"noded.dev/noded/test/testimage"
)

func wantOf(blob, tar []byte) Want {
	b, d := sha256.Sum256(blob), sha256.Sum256(tar)
	return Want{Digest: hex.EncodeToString(b[:]), DiffID: hex.EncodeToString(d[:]), NewHash: func() Hash { return sha256.New() }}
}

func pack(t testing.TB, c testimage.Compression, tar []byte) []byte {
	t.Helper()
	l, err := testimage.FromTar(c, tar)
	if err != nil {
		t.Fatal(err)
	}
	return l.Blob
}

func TestUnpackVerdicts(t *testing.T) {
	needRoot(t)
	tar, err := testimage.Tar(entry{Name: "a", Body: strings.Repeat("content ", 100_000)}, entry{Name: "b/c", Body: "x"})
	if err != nil {
		t.Fatal(err)
	}
	gz, zs := pack(t, testimage.Gzip, tar), pack(t, testimage.Zstd, tar)
	flip := func(b []byte, at int) []byte { b = bytes.Clone(b); b[at] ^= 1; return b }
	broken := errors.New("line cut")
	cases := []struct {
		name string
		blob io.Reader
		want Want
		kind kind.Kind // of the error; -1 none
		is   error
	}{
		{"gzip", bytes.NewReader(gz), wantOf(gz, tar), -1, nil},
		{"zstd", bytes.NewReader(zs), wantOf(zs, tar), -1, nil},
		{"plain", bytes.NewReader(tar), wantOf(tar, tar), -1, nil},
		{"two gzip members", bytes.NewReader(append(pack(t, testimage.Gzip, tar[:5000]), pack(t, testimage.Gzip, tar[5000:])...)),
			wantOf(append(pack(t, testimage.Gzip, tar[:5000]), pack(t, testimage.Gzip, tar[5000:])...), tar), -1, nil},
		{"flipped bit early", bytes.NewReader(flip(gz, 20)), wantOf(gz, tar), kind.DataLoss, ErrDigest},
		{"flipped bit late", bytes.NewReader(flip(gz, len(gz)-5)), wantOf(gz, tar), kind.DataLoss, ErrDigest},
		{"flipped bit in tar", bytes.NewReader(flip(tar, 600)), wantOf(tar, tar), kind.DataLoss, ErrDigest},
		{"flipped header in tar", bytes.NewReader(flip(tar, 3)), wantOf(tar, tar), kind.DataLoss, ErrDigest},
		{"wrong diff id", bytes.NewReader(gz), wantOf(gz, gz), kind.DataLoss, nil},
		{"truncated gzip", bytes.NewReader(gz[:len(gz)-9]), wantOf(gz[:len(gz)-9], tar), kind.DataLoss, io.ErrUnexpectedEOF},
		{"truncated zstd", bytes.NewReader(zs[:len(zs)-9]), wantOf(zs[:len(zs)-9], tar), kind.DataLoss, nil},
		{"bad checksum", bytes.NewReader(flip(gz, len(gz)-6)), wantOf(flip(gz, len(gz)-6), tar), kind.DataLoss, gzip.ErrChecksum},
		{"garbage after gzip", bytes.NewReader(append(bytes.Clone(gz), "junk"...)), wantOf(append(bytes.Clone(gz), "junk"...), tar), kind.DataLoss, nil},
		{"truncated tar", bytes.NewReader(tar[:1000]), wantOf(tar[:1000], tar[:1000]), kind.DataLoss, io.ErrUnexpectedEOF},
		{"not a tar", strings.NewReader(strings.Repeat("no tar ", 1000)), wantOf([]byte(strings.Repeat("no tar ", 1000)), tar), kind.Invalid, nil},
		{"xz", strings.NewReader("\xfd7zXZ\x00rest"), wantOf([]byte("\xfd7zXZ\x00rest"), tar), kind.Invalid, nil},
		{"transfer fails", io.MultiReader(bytes.NewReader(gz[:100]), failing{kind.Wrap(kind.Unavailable, broken)}), wantOf(gz, tar), kind.Unavailable, broken},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			_, err := Unpack(context.Background(), t.TempDir(), c.blob, c.want, limit.Default())
			switch {
			case c.kind == -1 && err != nil:
				t.Errorf("unexpected: %v", err)
			case c.kind != -1 && !kind.Is(err, c.kind):
				t.Errorf("error %v is of kind %v, want %v", err, kind.Of(err), c.kind)
			case c.is != nil && !errors.Is(err, c.is):
				t.Errorf("error is %v, want %v", err, c.is)
			}
		})
	}
}

// zeroReader is zeros without end: to the tar reader, an end and its padding.
type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestBombs(t *testing.T) {
	needRoot(t)
	l := limit.Default()
	l.RatioFrom, l.Ratio = 4<<20, 500
	var gz bytes.Buffer
	w, _ := gzip.NewWriterLevel(&gz, 9)
	if _, err := io.Copy(w, io.LimitReader(zeroReader{}, 256<<20)); err != nil {
		t.Fatal(err)
	}
	w.Close()
	_, err := Unpack(context.Background(), t.TempDir(), bytes.NewReader(gz.Bytes()), wantOf(gz.Bytes(), nil), l)
	if !kind.Is(err, kind.Exhausted) || !strings.Contains(err.Error(), "ratio = 500") {
		t.Errorf("gzip bomb: %v", err)
	}
	var zs bytes.Buffer
	z, err := zstd.NewWriter(&zs, zstd.WithWindowSize(256<<20), zstd.WithSingleSegment(false))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(z, io.LimitReader(zeroReader{}, 300<<20)); err != nil {
		t.Fatal(err)
	}
	z.Close()
	_, err = Unpack(context.Background(), t.TempDir(), bytes.NewReader(zs.Bytes()), wantOf(zs.Bytes(), nil), limit.Default())
	if !kind.Is(err, kind.Invalid) || !strings.Contains(err.Error(), "zstd_window") {
		t.Errorf("zstd window: %v", err)
	}
}

// panics is a blob that finds a bug.
type panics struct{}

func (panics) Read([]byte) (int, error) { panic("boom") }

// A panic in any stage is an error of the layer, and leaves no stage waiting.
func TestUnpackPanics(t *testing.T) {
	needRoot(t)
	tar, err := testimage.Tar(entry{Name: "a", Body: strings.Repeat("content ", 1_000_000)})
	if err != nil {
		t.Fatal(err)
	}
	broken := limit.Default()
	broken.Ratio, broken.RatioFrom = 0, 0 // the second stage divides by it
	for name, c := range map[string]struct {
		blob   io.Reader
		limits limit.Limits
	}{
		"transfer": {io.MultiReader(bytes.NewReader(tar[:1<<20]), panics{}), limit.Default()},
		"inflate":  {bytes.NewReader(tar), broken},
	} {
		want, stacks := wantOf(tar, tar), 0
		want.Panicked = func(string) { stacks++ }
		_, err := Unpack(context.Background(), t.TempDir(), c.blob, want, c.limits)
		if !kind.Is(err, kind.Internal) || stacks != 1 || !strings.Contains(err.Error(), "panic: ") {
			t.Errorf("%s: %v, %d stacks", name, err, stacks)
		}
	}
}
