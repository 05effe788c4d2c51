package containerlog

import (
	"bytes"
	"time"
)

const (
	// maxRecord is the longest payload of one record in bytes. Longer lines
	// become several records tagged P, of which the last is tagged F; it is the
	// length that the kubelet and log shippers expect.
	maxRecord = 16 << 10

	// flushAt is the size at which formatted records are written. One chunk of
	// ordinary lines fits; only a flood of empty lines needs more than one write.
	flushAt = 160 << 10
)

// renderer turns one chunk of container output into CRI log records,
//
//	2026-01-02T15:04:05.999999999Z stdout F text\n
//
// The result depends on nothing but its fields, so that a chunk whose write
// was cut off is rendered again and its missing rest written. A chunk that
// does not end with a newline ends with a record tagged P (partial): no state
// is carried from one chunk to the next.
type renderer struct {
	out    []byte // scratch, reused
	skip   int64  // formatted bytes that the log has already
	writer func([]byte) error
}

func (r *renderer) render(stamp int64, stream string, data []byte) error {
	var prefix [64]byte
	head := time.Unix(0, stamp).UTC().AppendFormat(prefix[:0], time.RFC3339Nano)
	head = append(head, ' ')
	head = append(head, stream...)
	head = append(head, ' ', 'F', ' ')
	r.out = r.out[:0]
	for len(data) > 0 {
		line, end := data, false
		if i := bytes.IndexByte(data[:min(len(data), maxRecord+1)], '\n'); i >= 0 {
			line, end = data[:i], true
		} else if len(data) > maxRecord {
			line = data[:maxRecord]
		}
		data = data[len(line):]
		head[len(head)-2] = 'P'
		if end {
			head[len(head)-2] = 'F'
			data = data[1:]
		}
		r.out = append(r.out, head...)
		r.out = append(r.out, line...)
		r.out = append(r.out, '\n')
		if len(r.out) >= flushAt {
			if err := r.flush(); err != nil {
				return err
			}
		}
	}
	return r.flush()
}

func (r *renderer) flush() error {
	out := r.out
	r.out = r.out[:0]
	if r.skip >= int64(len(out)) {
		r.skip -= int64(len(out))
		return nil
	}
	out = out[r.skip:]
	r.skip = 0
	return r.writer(out)
}
