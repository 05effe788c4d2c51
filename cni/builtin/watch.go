package builtin

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// tableWatch calls a function when something is deleted from an nftables
// table. A nil one does nothing.
type tableWatch struct {
	file *os.File
	done chan struct{}
}

// watchTable listens to the kernel's announcements. They include this
// process's own changes.
func watchTable(table string, deleted func()) (*tableWatch, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("open netfilter socket: %w", err)
	}
	groups := &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 << (unix.NFNLGRP_NFTABLES - 1)}
	if err := unix.Bind(fd, groups); err != nil {
		return nil, errors.Join(fmt.Errorf("listen to changes of nftables: %w", err), unix.Close(fd))
	}
	w := &tableWatch{file: os.NewFile(uintptr(fd), "nftables"), done: make(chan struct{})}
	go func() {
		defer close(w.done)
		buf := make([]byte, 64<<10) // the kernel's messages are smaller
		for {
			n, err := w.file.Read(buf)
			// ENOBUFS: there were more announcements than room for them.
			if err != nil && !errors.Is(err, unix.ENOBUFS) {
				return
			}
			if err != nil || announcesDeletion(buf[:n], table) {
				deleted()
			}
		}
	}()
	return w, nil
}

func (w *tableWatch) close() {
	if w == nil {
		return
	}
	w.file.Close() // of a socket that only receives: nothing can be lost
	<-w.done
}

// announcesDeletion looks for messages that delete table or something in it:
// a header (netlink(7)), struct nfgenmsg, and attributes, of which number 1 is
// the table's name in all of these messages.
func announcesDeletion(buf []byte, table string) bool {
	for len(buf) >= unix.SizeofNlMsghdr {
		size := int(binary.NativeEndian.Uint32(buf))
		if size < unix.SizeofNlMsghdr || size > len(buf) {
			return false
		}
		const nfgenmsg = 4
		switch kind := binary.NativeEndian.Uint16(buf[4:]); kind {
		case nfMessage(unix.NFT_MSG_DELTABLE), nfMessage(unix.NFT_MSG_DELCHAIN), nfMessage(unix.NFT_MSG_DELRULE),
			nfMessage(unix.NFT_MSG_DELSET), nfMessage(unix.NFT_MSG_DELSETELEM):
			if attribute(buf[min(size, unix.SizeofNlMsghdr+nfgenmsg):size], 1) == table {
				return true
			}
		}
		buf = buf[min(len(buf), (size+3)&^3):]
	}
	return false
}

func nfMessage(kind uint16) uint16 { return unix.NFNL_SUBSYS_NFTABLES<<8 | kind }

// attribute finds one attribute that is a string.
func attribute(buf []byte, number uint16) string {
	for len(buf) >= unix.SizeofNlAttr {
		size := int(binary.NativeEndian.Uint16(buf))
		if size < unix.SizeofNlAttr || size > len(buf) {
			return ""
		}
		if binary.NativeEndian.Uint16(buf[2:]) == number {
			return unix.ByteSliceToString(buf[unix.SizeofNlAttr:size])
		}
		buf = buf[min(len(buf), (size+3)&^3):]
	}
	return ""
}
