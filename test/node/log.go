package node

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Line is one line of a CRI log file.
type Line struct {
	At      time.Time
	Stream  string // stdout or stderr
	Partial bool   // the text goes on in the next line of this stream
	Text    string
}

// Lines are a log.
type Lines []Line

// ReadLog reads a CRI log file and fails the test if a line is malformed.
func ReadLog(t testing.TB, path string) Lines {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("read log: %v", err)
	}
	var lines Lines
	for _, raw := range strings.SplitAfter(string(data), "\n") {
		if raw == "" {
			continue
		}
		parts := strings.SplitN(strings.TrimSuffix(raw, "\n"), " ", 4)
		if len(parts) != 4 || !strings.HasSuffix(raw, "\n") || (parts[2] != "F" && parts[2] != "P") || (parts[1] != "stdout" && parts[1] != "stderr") {
			t.Fatalf("malformed log line %q", raw)
		}
		at, err := time.Parse(time.RFC3339Nano, parts[0])
		if err != nil {
			t.Fatalf("log line's time: %v", err)
		}
		lines = append(lines, Line{at, parts[1], parts[2] == "P", parts[3]})
	}
	return lines
}

// LogPath is the container's log file.
func (c *Container) LogPath() string {
	return filepath.Join(c.Pod.Config.LogDirectory, c.Config.LogPath)
}

// Log reads the container's log.
func (c *Container) Log(t testing.TB) Lines { t.Helper(); return ReadLog(t, c.LogPath()) }

// Text joins the lines of the given streams, or of all.
func (l Lines) Text(streams ...string) string {
	var b strings.Builder
	for _, line := range l {
		if len(streams) == 0 || strings.Contains(strings.Join(streams, " "), line.Stream) {
			b.WriteString(line.Text)
			if !line.Partial {
				b.WriteByte('\n')
			}
		}
	}
	return b.String()
}
