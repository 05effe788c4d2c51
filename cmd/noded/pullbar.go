package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/term"
	"google.golang.org/grpc"
)

// barStep is how often a bar is drawn: fast enough to look alive.
const barStep = 100 * time.Millisecond

// pullBar draws one pull's progress. On a terminal it redraws its line; into a
// file or a pipe it prints a line when a quarter more is there.
type pullBar struct {
	w        io.Writer
	name     string
	terminal bool
	started  time.Time
	width    int // columns of the terminal
	drawn    int // length of the line on the screen
	quarter  int64
	last     pullState
}

// pullState is how far a pull is.
type pullState struct {
	done, total   int64 // compressed bytes; total 0 is not known yet
	layers, ready int
}

func newPullBar(w io.Writer, name string) *pullBar {
	b := &pullBar{w: w, name: printable(name), terminal: isTerminal(w), started: time.Now(), width: 80}
	if f, ok := w.(*os.File); ok && b.terminal {
		if columns, _, err := term.GetSize(int(f.Fd())); err == nil {
			b.width = columns
		}
	}
	return b
}

// run draws until ctx ends.
func (b *pullBar) run(ctx context.Context, conn *grpc.ClientConn) {
	states := make(chan pullState, 1)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		watchPull(ctx, conn, b.name, states)
	}()
	defer func() { <-watched }()
	tick := time.NewTicker(barStep)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case b.last = <-states:
		case <-tick.C:
		}
		b.draw()
	}
}

func (b *pullBar) draw() {
	if b.terminal {
		b.redraw(b.line())
		return
	}
	if b.last.total > 0 {
		if quarter := b.last.done * 4 / b.last.total; quarter > b.quarter {
			b.quarter = quarter
			fmt.Fprintln(b.w, b.line())
		}
	}
}

// line is "name [=====>    ] 12.3 MB of 45.6 MB, layers 2/5, 10.1 MB/s".
func (b *pullBar) line() string {
	seconds := time.Since(b.started).Seconds()
	if b.last.total == 0 {
		const spinner = `|/-\`
		return fmt.Sprintf("%s %c %.1fs", b.name, spinner[int(seconds*10)%len(spinner)], seconds)
	}
	const cells = 24
	filled := int(min(cells, b.last.done*cells/b.last.total))
	bar := strings.Repeat("=", filled)
	if filled < cells {
		bar += ">" + strings.Repeat(" ", cells-filled-1)
	}
	return fmt.Sprintf("%s [%s] %s of %s, layers %d/%d, %s/s", b.name, bar,
		bytesText(uint64(b.last.done)), bytesText(uint64(b.last.total)), b.last.ready, b.last.layers,
		bytesText(uint64(float64(b.last.done)/max(seconds, 0.001))))
}

func (b *pullBar) redraw(line string) {
	if len(line) > b.width-1 {
		line = line[:max(0, b.width-1)]
	}
	fmt.Fprintf(b.w, "\r%s%s", line, strings.Repeat(" ", max(0, b.drawn-len(line))))
	b.drawn = len(line)
}

// end finishes the bar's line.
func (b *pullBar) end(result string) {
	if b.terminal {
		fmt.Fprintf(b.w, "\r%s\r", strings.Repeat(" ", b.drawn))
	}
	if result == "" {
		return
	}
	size := ""
	if b.last.total > 0 {
		size = bytesText(uint64(b.last.total)) + " in "
	}
	fmt.Fprintf(b.w, "%s: %s%.1fs\n", b.name, size, time.Since(b.started).Seconds())
}
