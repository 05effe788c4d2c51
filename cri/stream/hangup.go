package stream

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// hangups tells sessions when their client has closed its connection. Reading
// would tell too, but nobody reads while a command does not take its stdin, and
// a command whose client is gone has to be killed then as well. One epoll
// instance and one goroutine serve all sessions.
type hangups struct {
	epoll, wake int // descriptors; wake is an eventfd that ends run
	done        chan struct{}

	mu      sync.Mutex
	next    int32
	cancels map[int32]context.CancelFunc
}

func newHangups() (*hangups, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll_create: %w", err)
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		unix.Close(epoll)
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	h := &hangups{epoll: epoll, wake: wake, done: make(chan struct{}), cancels: map[int32]context.CancelFunc{}}
	if err := unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, wake, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: 0}); err != nil {
		return nil, errors.Join(fmt.Errorf("epoll_ctl: %w", err), unix.Close(epoll), unix.Close(wake))
	}
	go h.run()
	return h, nil
}

// watch calls cancel once when c's client closes or is lost, until c is closed.
func (h *hangups) watch(c *conn, cancel context.CancelFunc) error {
	tcp, ok := c.Conn.(syscall.Conn)
	if !ok {
		return fmt.Errorf("%T has no descriptor", c.Conn)
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return err
	}
	h.mu.Lock()
	h.next++
	key := h.next // 0 is wake
	h.cancels[key] = cancel
	h.mu.Unlock()
	forget := func() {
		h.mu.Lock()
		delete(h.cancels, key)
		h.mu.Unlock()
	}
	// Fd is a number of ours, not the descriptor: descriptors are used again.
	event := &unix.EpollEvent{Events: unix.EPOLLRDHUP | unix.EPOLLET, Fd: key}
	var failed error
	err = raw.Control(func(fd uintptr) { failed = unix.EpollCtl(h.epoll, unix.EPOLL_CTL_ADD, int(fd), event) })
	if err = errors.Join(err, failed); err != nil {
		forget()
		return fmt.Errorf("epoll_ctl: %w", err)
	}
	// The kernel takes the descriptor out when it is closed (epoll(7)).
	c.atClose(forget)
	return nil
}

func (h *hangups) run() {
	defer close(h.done)
	events := make([]unix.EpollEvent, 64)
	for {
		n, err := unix.EpollWait(h.epoll, events, -1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return // closed
		}
		for _, e := range events[:max(n, 0)] {
			if e.Fd == 0 {
				return
			}
			h.mu.Lock()
			cancel := h.cancels[e.Fd]
			h.mu.Unlock()
			if cancel != nil {
				cancel()
			}
		}
	}
}

func (h *hangups) close() error {
	if _, err := unix.Write(h.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0}); err != nil {
		return fmt.Errorf("wake hangup watch: %w", err)
	}
	<-h.done
	return errors.Join(unix.Close(h.epoll), unix.Close(h.wake))
}
