package layer

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Pack writes the upper folder of an overlay mount as the tar of an image
// layer, which Untar turns into such a folder again: whiteouts of overlayfs
// become those of the image specification. Sockets are left out, and files
// whose names a layer cannot have (".wh."). The content should not change
// meanwhile; whatever it does, nothing outside of dir is read.
func Pack(ctx context.Context, dir string, w io.Writer) error {
	root, err := unix.Open(dir, openDir, 0)
	if err != nil {
		return fmt.Errorf("open writable layer: %w", err)
	}
	defer unix.Close(root)
	p := &packer{ctx: ctx, tar: tar.NewWriter(w), linked: map[uint64]string{}}
	if err := p.folder(root, "."); err != nil {
		return fmt.Errorf("pack writable layer: %w", err)
	}
	return p.tar.Close()
}

type packer struct {
	ctx    context.Context
	tar    *tar.Writer
	linked map[uint64]string // names of files that have several
}

// folder writes a folder and all below it.
func (p *packer) folder(fd int, name string) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if err := p.write(fd, &st, &tar.Header{Typeflag: tar.TypeDir, Name: name + "/"}); err != nil {
		return err
	}
	if isOpaque(fd) {
		if err := p.mark(path.Join(name, whiteoutOpaque)); err != nil {
			return err
		}
	}
	own, err := unix.Dup(fd)
	if err != nil {
		return err
	}
	list := os.NewFile(uintptr(own), name)
	names, err := list.Readdirnames(-1)
	list.Close()
	if err != nil {
		return err
	}
	slices.Sort(names)
	for _, base := range names {
		if err := p.ctx.Err(); err != nil {
			return context.Cause(p.ctx)
		}
		if err := p.entry(fd, base, path.Join(name, base)); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("%q: %w", clip(name), err)
		}
	}
	return nil
}

func (p *packer) entry(dir int, base, name string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(dir, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	kind := st.Mode & unix.S_IFMT
	switch {
	case isWhiteout(&st):
		return p.mark(path.Join(path.Dir(name), whiteoutPrefix+base))
	case strings.HasPrefix(base, whiteoutPrefix), kind == unix.S_IFSOCK:
		return nil
	case kind == unix.S_IFDIR:
		fd, err := unix.Openat(dir, base, openDir, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return p.folder(fd, name)
	}
	if st.Nlink > 1 {
		if first, again := p.linked[st.Ino]; again {
			return p.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: first})
		}
		p.linked[st.Ino] = name
	}
	switch kind {
	case unix.S_IFREG:
		return p.file(dir, base, name)
	case unix.S_IFLNK:
		target := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(dir, base, target)
		if err != nil {
			return err
		}
		return p.write(-1, &st, &tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: string(target[:n])})
	case unix.S_IFIFO:
		return p.write(-1, &st, &tar.Header{Typeflag: tar.TypeFifo, Name: name})
	}
	h := &tar.Header{Typeflag: tar.TypeChar, Name: name, Devmajor: int64(unix.Major(st.Rdev)), Devminor: int64(unix.Minor(st.Rdev))}
	if kind == unix.S_IFBLK {
		h.Typeflag = tar.TypeBlock
	}
	return p.write(-1, &st, h)
}

func (p *packer) file(dir int, base, name string) error {
	fd, err := unix.Openat(dir, base, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return fmt.Errorf("%q was replaced meanwhile", clip(name))
	}
	if err := p.write(fd, &st, &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: st.Size}); err != nil {
		return err
	}
	n, err := io.CopyN(p.tar, contextReader{p.ctx, f}, st.Size)
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("%q shrank from %d to %d bytes meanwhile", clip(name), st.Size, n)
	}
	return err
}

type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(b []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(b)
}

// write completes a header with attributes, extended ones only of what is open.
func (p *packer) write(fd int, st *unix.Stat_t, h *tar.Header) error {
	h.Format = tar.FormatPAX
	h.Uid, h.Gid, h.Mode = int(st.Uid), int(st.Gid), int64(st.Mode&0o7777)
	h.ModTime = time.Unix(st.Mtim.Sec, st.Mtim.Nsec)
	if fd >= 0 {
		f, err := read(fd, h.Name, st)
		if err != nil {
			return err
		}
		for name, value := range f.Xattrs {
			if h.PAXRecords == nil {
				h.PAXRecords = map[string]string{}
			}
			h.PAXRecords[xattrRecord+name] = string(value)
		}
	}
	return p.tar.WriteHeader(h)
}

// mark writes an empty file that only its name means something.
func (p *packer) mark(name string) error {
	return p.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o600})
}
