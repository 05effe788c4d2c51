package layer

import (
	"context"
	"encoding/hex"
	"errors"
	"io"
	"path"

	"golang.org/x/sys/unix"

	"noded.dev/noded/imagestore/limit"
	"noded.dev/noded/internal/kind"
)

// storeFile makes a layer of one file: the blob as it is.
func storeFile(ctx context.Context, dir string, blob io.Reader, w Want, l limit.Limits) (Meta, error) {
	t, err := openTree(dir, l)
	if err != nil {
		return Meta{}, err
	}
	u := &unpacker{tree: t, count: w.Count, limits: l, buf: make([]byte, 256<<10)}
	hash := w.NewHash()
	in := &hashed{ctx: ctx, r: counted{blob, &w.Count.Blob}, hash: hash}
	if err = u.start(dir); err == nil {
		err = u.only(w.File, w.Size, in)
	}
	if err = errors.Join(err, t.close()); err == nil {
		_, err = io.Copy(io.Discard, in) // more than was announced fails by its digest
	}
	switch {
	case ctx.Err() != nil:
		return Meta{}, context.Cause(ctx)
	case err != nil:
		return Meta{}, err
	case hex.EncodeToString(hash.Sum(nil)) != w.Digest:
		return Meta{}, kind.Errorf(kind.DataLoss, "blob %s: %w", short(w.Digest), ErrDigest)
	}
	for _, p := range t.implied {
		u.meta.Implied = append(u.meta.Implied, p)
	}
	u.meta.Inodes += t.dirs
	u.meta.Bytes += t.dirs * u.space.block
	return u.meta, nil
}

// only makes the file, owned by root and readable by all.
func (u *unpacker) only(name string, size int64, r io.Reader) error {
	name, err := u.cleanName(name)
	if err != nil {
		return err
	}
	if err := u.tree.enter(parentOf(name)); err != nil {
		return err
	}
	now := []unix.Timespec{{Nsec: unix.UTIME_NOW}, {Nsec: unix.UTIME_NOW}}
	if err := u.file(r, size, path.Base(name), attributes{mode: 0o644, times: now}); err != nil {
		return pathError("store file", clip(name), err)
	}
	return nil
}

// hashed hashes what is read, until ctx ends.
type hashed struct {
	ctx  context.Context
	r    io.Reader
	hash Hash
}

func (h *hashed) Read(p []byte) (int, error) {
	if err := h.ctx.Err(); err != nil {
		return 0, context.Cause(h.ctx)
	}
	n, err := h.r.Read(p)
	h.hash.Write(p[:n])
	return n, err
}
