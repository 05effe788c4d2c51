package runtime

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"os"
	"time"

	"noded.dev/noded/internal/kind"
)

// renewLimit bounds the wait for the shim's calls under way, before which it
// cannot be replaced. The daemon does not serve before.
const renewLimit = 10 * time.Second

// renewShim replaces the shim in place if it runs another build than the one
// that Options.ShimCommand names. An old shim that stays does no harm (see
// protocolVersion), so a failure is a warning.
func (r *Runtime) renewShim(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, renewLimit)
	defer cancel()
	want, err := buildID(r.shimCommand[0])
	if err != nil {
		r.log.WithError(err).Warn("cannot compare the shim's build")
		return
	}
	rep, err := r.call(ctx, request{Op: "hello"})
	if err != nil {
		r.log.WithError(err).Warn("cannot ask the shim for its build")
		return
	}
	if rep.Build == want {
		return
	}
	log := r.log.WithField("shim", rep.Pid).WithField("version", rep.Version)
	if err := r.UpgradeShim(ctx); err != nil {
		log.WithError(err).Warn("the shim is of another build and stays so")
		return
	}
	log.Info("the shim was of another build and has been replaced in place")
}

// buildID identifies the content of a Go program: by the note that the linker
// leaves, or else by the file's size and time.
func buildID(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("read build id: %w", err)
	}
	defer f.Close()
	if id, err := noteID(f); err == nil {
		return id, nil
	}
	st, err := f.Stat()
	if err != nil {
		return "", fmt.Errorf("read build id: %w", err)
	}
	return fmt.Sprintf("%d bytes of %d", st.Size(), st.ModTime().UnixNano()), nil
}

// noteID reads the note in elf(5)'s form: sizes of name and content, type, name.
func noteID(f *os.File) (string, error) {
	program, err := elf.NewFile(f)
	if err != nil {
		return "", fmt.Errorf("read build id: %w", err)
	}
	section := program.Section(".note.go.buildid")
	if section == nil || section.Size > 1<<10 {
		return "", kind.Errorf(kind.NotFound, "no build id")
	}
	data, err := section.Data()
	if err != nil {
		return "", fmt.Errorf("read build id: %w", err)
	}
	const head, name = 12, "Go\x00\x00"
	if len(data) <= head+len(name) || !bytes.Equal(data[head:head+len(name)], []byte(name)) {
		return "", kind.Errorf(kind.NotFound, "no build id")
	}
	id := data[head+len(name):]
	if size := binary.NativeEndian.Uint32(data[4:]); size > 0 && int(size) <= len(id) {
		return string(id[:size]), nil
	}
	return "", kind.Errorf(kind.NotFound, "no build id")
}
