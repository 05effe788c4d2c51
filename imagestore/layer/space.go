package layer

import (
	"fmt"

	"golang.org/x/sys/unix"

	"noded.dev/noded/imagestore/limit"
	"noded.dev/noded/internal/kind"
)

// space keeps a layer within its budget and the file system above its
// reserve. Free space is asked for again now and then, because other pulls
// and the containers use it too.
type space struct {
	fd      int
	limits  limit.Limits
	block   int64
	used    int64 // bytes announced in all
	since   int64 // bytes and entries since free space was last asked for
	entries int64
}

const (
	checkBytes   = 32 << 20
	checkEntries = 4096
)

func (s *space) start(fd int, l limit.Limits) error {
	s.fd, s.limits = fd, l
	return s.measure(0)
}

// check announces one entry with size bytes of content.
func (s *space) check(size int64) error {
	s.used += size
	if s.used > s.limits.LayerBytes {
		return limit.Error(kind.Exhausted, "unpacked layer", "layer_bytes", s.limits.LayerBytes)
	}
	s.since += size
	s.entries++
	if s.since < checkBytes && s.entries < checkEntries {
		return nil
	}
	return s.measure(size)
}

func (s *space) measure(size int64) error {
	var st unix.Statfs_t
	if err := unix.Fstatfs(s.fd, &st); err != nil {
		return fmt.Errorf("measure free space: %w", err)
	}
	s.since, s.entries, s.block = 0, 0, int64(st.Bsize)
	reserve := min(s.limits.ReserveBytes, int64(st.Blocks)*st.Bsize/20)
	if free := int64(st.Bavail) * st.Bsize; free-reserve < size {
		return kind.Errorf(kind.Exhausted, "unpack %d bytes: %d free, of which reserve_bytes = %d are kept: %w", size, free, reserve, unix.ENOSPC)
	}
	if st.Files > 0 && st.Ffree < st.Files/50 {
		return kind.Errorf(kind.Exhausted, "unpack: %d of %d inodes free, 2 %% are kept: %w", st.Ffree, st.Files, unix.ENOSPC)
	}
	return nil
}

// round is the disk space that a file of so many bytes takes.
func (s *space) round(size int64) int64 {
	if s.block <= 0 {
		return size
	}
	return (size + s.block - 1) / s.block * s.block
}
