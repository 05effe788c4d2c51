package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/term"
)

// withTerminal puts the user's terminal into raw mode while f runs, so that
// every key goes to the container's, and hands f its sizes.
func withTerminal(ctx context.Context, in io.Reader, f func(<-chan windowSize) error) (err error) {
	file, ok := in.(*os.File)
	if !ok || !term.IsTerminal(int(file.Fd())) {
		return errors.New("-t needs a terminal at standard input; leave it out, or use -i alone")
	}
	fd := int(file.Fd())
	before, err := term.MakeRaw(fd)
	if err != nil {
		return fmt.Errorf("put terminal into raw mode: %w", err)
	}
	defer func() { err = errors.Join(err, term.Restore(fd, before)) }()

	ctx, cancel := context.WithCancel(ctx)
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, syscall.SIGWINCH)
	sizes := make(chan windowSize)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		defer close(sizes)
		sendSizes(ctx, fd, changed, sizes)
	}()
	defer func() {
		signal.Stop(changed)
		cancel()
		<-ended
	}()
	return f(sizes)
}

// sendSizes sends the terminal's size at first and after every SIGWINCH.
func sendSizes(ctx context.Context, fd int, changed <-chan os.Signal, sizes chan<- windowSize) {
	for {
		if columns, rows, err := term.GetSize(fd); err == nil {
			select {
			case sizes <- windowSize{uint16(columns), uint16(rows)}:
			case <-ctx.Done():
				return
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}
