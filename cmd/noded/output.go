package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// table prints aligned columns; the first row is the heading.
func table(w io.Writer, rows [][]string) error {
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	for _, row := range rows {
		fmt.Fprintln(t, strings.Join(row, "\t"))
	}
	return t.Flush()
}

// printJSON prints CRI messages as a JSON list with the CRI's field names.
// (protojson varies its blanks on purpose, so the bytes go through json.)
func printJSON[M proto.Message](w io.Writer, messages []M) error {
	list := make([]json.RawMessage, 0, len(messages))
	for _, m := range messages {
		raw, err := messageJSON(m)
		if err != nil {
			return err
		}
		list = append(list, raw)
	}
	return writeJSON(w, list)
}

func messageJSON(m proto.Message) (json.RawMessage, error) {
	raw, err := protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: false}.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("write as JSON: %w", err)
	}
	return raw, nil
}

func writeJSON(w io.Writer, v any) error {
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	return encoder.Encode(v)
}

func shortID(id string) string {
	id = strings.TrimPrefix(id, "sha256:")
	return id[:min(12, len(id))]
}

// age prints the time since a CRI timestamp (nanoseconds since 1970).
func age(nanoseconds int64, now time.Time) string {
	if nanoseconds <= 0 {
		return "-"
	}
	d := max(0, now.Sub(time.Unix(0, nanoseconds)))
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh%dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

// bytesText prints a size with three significant digits and a decimal unit.
func bytesText(n uint64) string {
	const units = "kMGTPE"
	if n < 1000 {
		return fmt.Sprintf("%d B", n)
	}
	value, unit := float64(n), -1
	for value >= 999.5 && unit < len(units)-1 {
		value /= 1000
		unit++
	}
	digits := 0
	if value < 9.995 {
		digits = 2
	} else if value < 99.95 {
		digits = 1
	}
	return fmt.Sprintf("%.*f %cB", digits, value, units[unit])
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// printable replaces what could drive the reader's terminal: names, images and
// messages come from whoever made the pod.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || (r >= 0x80 && r < 0xa0) {
			return '?'
		}
		return r
	}, s)
}
