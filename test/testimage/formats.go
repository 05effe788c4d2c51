package testimage

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/crc32"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// EStargz makes a layer in the eStargz format: every tar entry in a gzip member
// of its own, an index of them as the last entry, and an empty member whose
// header says where the index is.
func EStargz(entries ...Entry) (Layer, error) {
	var plain, blob bytes.Buffer
	member := func(data []byte) error {
		plain.Write(data)
		z := gzip.NewWriter(&blob)
		if _, err := z.Write(data); err != nil {
			return err
		}
		return z.Close()
	}
	type file struct {
		Name   string `json:"name"`
		Type   string `json:"type"`
		Size   int    `json:"size"`
		Offset int    `json:"offset"`
	}
	var index []file
	for _, e := range append(entries, Entry{Name: ".no.prefetch.landmark", Body: "\x0f"}) {
		data, err := Tar(e)
		if err != nil {
			return Layer{}, err
		}
		index = append(index, file{e.Name, "reg", len(e.Body), blob.Len()})
		if err := member(data[:len(data)-tarEnd]); err != nil {
			return Layer{}, err
		}
	}
	toc, err := json.Marshal(map[string]any{"version": 1, "entries": index})
	if err != nil {
		return Layer{}, err
	}
	at := blob.Len()
	data, err := Tar(Entry{Name: "stargz.index.json", Body: string(toc)})
	if err != nil {
		return Layer{}, err
	}
	if err := member(data); err != nil {
		return Layer{}, err
	}
	blob.Write(stargzFooter(at))
	return Layer{Blob: blob.Bytes(), MediaType: ocispec.MediaTypeImageLayerGzip, DiffID: digest.FromBytes(plain.Bytes())}, nil
}

// tarEnd is the two empty blocks that end a tar.
const tarEnd = 1024

// stargzFooter is the last 51 bytes of an eStargz layer: a gzip member without
// content, written out because packers only write its extra field like this.
func stargzFooter(index int) []byte {
	f := []byte{0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0xff}
	f = binary.LittleEndian.AppendUint16(f, 26)
	f = append(f, 'S', 'G')
	f = binary.LittleEndian.AppendUint16(f, 22)
	f = fmt.Appendf(f, "%016xSTARGZ", index)
	f = append(f, 1, 0, 0, 0xff, 0xff) // one stored block of no bytes, the last
	f = binary.LittleEndian.AppendUint32(f, crc32.ChecksumIEEE(nil))
	return binary.LittleEndian.AppendUint32(f, 0)
}

// Chunked makes a layer in the zstd:chunked format: every tar entry in frames of
// its own, then the index, the tar's headers and a footer in skippable frames.
// pad is the index's size in bytes at least.
func Chunked(pad int, entries ...Entry) (Layer, error) {
	var plain, blob bytes.Buffer
	z, err := zstd.NewWriter(nil)
	if err != nil {
		return Layer{}, err
	}
	defer z.Close()
	frame := func(data []byte) []byte { return z.EncodeAll(data, nil) }
	for _, e := range entries {
		data, err := Tar(e)
		if err != nil {
			return Layer{}, err
		}
		data = data[:len(data)-tarEnd]
		plain.Write(data)
		blob.Write(frame(data))
	}
	end := make([]byte, tarEnd)
	plain.Write(end)
	blob.Write(frame(end))
	at := blob.Len() + 8
	index := append([]byte(`{"version":1,"entries":[]}`), bytes.Repeat([]byte{' '}, pad)...)
	blob.Write(skippable(frame(index)))
	if pad > 0 {
		blob.Write(skippable(index)) // large as it is stored, too
	}
	footer := make([]byte, 0, 64)
	for _, n := range []int{at, len(frame(index)), len(index), 1, 0, 0, 0} {
		footer = binary.LittleEndian.AppendUint64(footer, uint64(n))
	}
	blob.Write(skippable(append(footer, "GNUlInUx"...)))
	return Layer{Blob: blob.Bytes(), MediaType: ocispec.MediaTypeImageLayerZstd, DiffID: digest.FromBytes(plain.Bytes())}, nil
}

func skippable(data []byte) []byte {
	f := binary.LittleEndian.AppendUint32(nil, 0x184d2a50)
	f = binary.LittleEndian.AppendUint32(f, uint32(len(data)))
	return append(f, data...)
}
