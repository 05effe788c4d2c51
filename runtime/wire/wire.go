// Package wire carries messages and descriptors over a unix stream socket.
//
//	frame = length (4 bytes, big endian) + JSON of that length
//
// Descriptors travel with the first byte of their frame (SCM_RIGHTS). Both
// sides ignore JSON members they do not know.
package wire

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

const (
	// MaxFrame bounds a message; a process specification is far smaller.
	MaxFrame = 4 << 20
	// MaxFiles is the most descriptors of one frame (the kernel takes 253).
	MaxFiles = 240
)

// Write sends one message. The files stay the caller's.
func Write(c *net.UnixConn, msg any, files ...*os.File) error {
	body, err := json.Marshal(msg)
	if err != nil {
		return fmt.Errorf("encode message: %w", err)
	}
	if len(body) > MaxFrame || len(files) > MaxFiles {
		return fmt.Errorf("message of %d bytes and %d files is over the limit", len(body), len(files))
	}
	frame := binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(body)), uint32(len(body)))
	frame = append(frame, body...)
	var oob []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = fdOf(f)
		}
		oob = unix.UnixRights(fds...)
	}
	n, _, err := c.WriteMsgUnix(frame, oob, nil)
	if err == nil && n < len(frame) {
		_, err = c.Write(frame[n:])
	}
	if err != nil {
		return fmt.Errorf("send message: %w", err)
	}
	return nil
}

// fdOf reads the descriptor without the side effect of (*os.File).Fd, which
// makes it blocking and ends its life in the poller.
func fdOf(f *os.File) int {
	n := -1
	if rc, err := f.SyscallConn(); err == nil {
		rc.Control(func(fd uintptr) { n = int(fd) })
	}
	return n
}

// Read receives one message into msg, and its descriptors (close-on-exec),
// which are the caller's. io.EOF if the peer closed between messages.
func Read(c *net.UnixConn, msg any) ([]*os.File, error) {
	var head [4]byte
	oob := make([]byte, unix.CmsgSpace(4*MaxFiles))
	n, oobn, _, _, err := c.ReadMsgUnix(head[:], oob)
	if err != nil {
		return nil, fmt.Errorf("receive message: %w", err)
	}
	if n == 0 {
		return nil, io.EOF
	}
	files, err := parseFiles(oob[:oobn])
	if err == nil {
		err = readBody(c, head[:], n, msg)
	}
	if err != nil {
		CloseAll(files)
		return nil, fmt.Errorf("receive message: %w", err)
	}
	return files, nil
}

func readBody(c *net.UnixConn, head []byte, have int, msg any) error {
	if _, err := io.ReadFull(c, head[have:]); err != nil {
		return err
	}
	size := binary.BigEndian.Uint32(head)
	if size > MaxFrame {
		return fmt.Errorf("message of %d bytes is over the limit of %d", size, MaxFrame)
	}
	body := make([]byte, size)
	if _, err := io.ReadFull(c, body); err != nil {
		return err
	}
	return json.Unmarshal(body, msg)
}

func parseFiles(oob []byte) ([]*os.File, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var files []*os.File
	for i := range msgs {
		fds, err := unix.ParseUnixRights(&msgs[i])
		if errors.Is(err, unix.EINVAL) {
			continue // not descriptors
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "received"))
		}
	}
	return files, nil
}

// CloseAll closes files that nobody wants.
func CloseAll(files []*os.File) {
	for _, f := range files {
		if f != nil {
			f.Close()
		}
	}
}

// PeerUID is the user of the process at the other end.
func PeerUID(c *net.UnixConn) (uint32, error) {
	rc, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var credErr error
	if err := rc.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return 0, err
	}
	if credErr != nil {
		return 0, credErr
	}
	return cred.Uid, nil
}

// Listen makes a socket at path with mode 0600, in place of a dead one.
func Listen(path string) (*net.UnixListener, error) {
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		return nil, fmt.Errorf("remove old socket: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	l.SetUnlinkOnClose(false)
	// Not by umask, which is the whole process's and would reach containers.
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, fmt.Errorf("protect socket: %w", err)
	}
	return l, nil
}

// ReceiveFiles reads a message of another protocol for its descriptors; its
// content is ignored.
func ReceiveFiles(c *net.UnixConn) ([]*os.File, error) {
	var b [4096]byte
	oob := make([]byte, unix.CmsgSpace(4*MaxFiles))
	_, oobn, _, _, err := c.ReadMsgUnix(b[:], oob)
	if err != nil {
		return nil, fmt.Errorf("receive descriptors: %w", err)
	}
	return parseFiles(oob[:oobn])
}
