package userdb

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"unicode"

	"golang.org/x/sys/unix"

	"noded.dev/noded/internal/kind"
)

const (
	maxFile = 10 << 20 // bytes of passwd or group
	maxLine = 64 << 10 // bytes of one line of them
)

// passwdEntry is one line of passwd(5).
type passwdEntry struct {
	name     string
	uid, gid uint32
	home     string
}

// findUser looks a user up. A number that has no line is still a user, with
// group 0; a name must have one.
func findUser(rootfs string, who identity) (passwdEntry, error) {
	var found *passwdEntry
	err := eachLine(rootfs, "etc/passwd", func(line string) (bool, error) {
		fields := strings.Split(line, ":")
		if len(fields) < 4 || !matches(who, fields[0], fields[2]) {
			return true, nil
		}
		entry, err := parsePasswd(fields)
		found = &entry
		return false, err
	})
	if err != nil {
		return passwdEntry{}, err
	}
	if found != nil {
		return *found, nil
	}
	if who.id == nil {
		return passwdEntry{}, kind.Errorf(kind.Invalid, "user %q is not in the image's /etc/passwd", who.name)
	}
	return passwdEntry{uid: *who.id}, nil
}

func matches(who identity, name, number string) bool {
	if who.id == nil {
		return name == who.name
	}
	n, ok := parseNumber(number)
	return ok && n == *who.id
}

// parsePasswd reads a line that was found, which therefore must be right.
func parsePasswd(fields []string) (passwdEntry, error) {
	uid, okUID := parseNumber(fields[2])
	gid, okGID := parseNumber(fields[3])
	if !okUID || !okGID {
		return passwdEntry{}, kind.Errorf(kind.Invalid, "the image's /etc/passwd gives %q the ids %q:%q", clip(fields[0]), clip(fields[2]), clip(fields[3]))
	}
	entry := passwdEntry{name: fields[0], uid: uid, gid: gid}
	if len(fields) > 5 {
		entry.home = fields[5]
	}
	// Whoever writes HOME into a line of another file must not forge a second one.
	if strings.ContainsFunc(entry.home+entry.name, unicode.IsControl) {
		return passwdEntry{}, kind.Errorf(kind.Invalid, "the image's /etc/passwd has a control character in the line of uid %d", uid)
	}
	return entry, nil
}

// groupResult is what one pass over group(5) finds.
type groupResult struct {
	named  *uint32  // the group that was asked for by name
	member []uint32 // groups that list the user as a member, in the file's order
}

func readGroups(rootfs, named, member string) (groupResult, error) {
	var result groupResult
	if named == "" && member == "" {
		return result, nil
	}
	err := eachLine(rootfs, "etc/group", func(line string) (bool, error) {
		fields := strings.SplitN(line, ":", 4)
		if len(fields) < 3 {
			return true, nil
		}
		isNamed := named != "" && result.named == nil && fields[0] == named
		isMember := member != "" && len(fields) == 4 && hasMember(fields[3], member)
		if !isNamed && !isMember {
			return true, nil
		}
		gid, ok := parseNumber(fields[2])
		if !ok {
			return false, kind.Errorf(kind.Invalid, "the image's /etc/group gives %q the id %q", clip(fields[0]), clip(fields[2]))
		}
		if isNamed {
			result.named = &gid
		}
		if isMember {
			result.member = append(result.member, gid)
		}
		return true, nil
	})
	return result, err
}

func hasMember(list, name string) bool {
	for m := range strings.SplitSeq(list, ",") {
		if strings.TrimSpace(m) == name {
			return true
		}
	}
	return false
}

// eachLine calls do for each line until it returns false. A file that is not
// there has no lines: images without one are common.
func eachLine(rootfs, name string, do func(line string) (more bool, err error)) (err error) {
	f, err := open(rootfs, name)
	if errors.Is(err, errNoFile) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	lines := bufio.NewScanner(io.LimitReader(f, maxFile))
	lines.Buffer(make([]byte, 4096), maxLine)
	for lines.Scan() {
		more, err := do(lines.Text())
		if err != nil || !more {
			return err
		}
	}
	if errors.Is(lines.Err(), bufio.ErrTooLong) {
		return kind.Errorf(kind.Invalid, "the image's /%s has a line longer than %d bytes", name, maxLine)
	}
	if lines.Err() != nil {
		return fmt.Errorf("read the image's /%s: %w", name, lines.Err())
	}
	return nil
}

var errNoFile = errors.New("the image has no such file")

// open finds name beneath rootfs as a process inside would (links are resolved
// within it), and only then opens it for reading, if it is a regular file of
// permitted size: opening a device or FIFO could block or have effects.
func open(rootfs, name string) (*os.File, error) {
	root, err := os.OpenFile(rootfs, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, kind.Errorf(kind.Internal, "open root filesystem: %w", err)
	}
	defer root.Close() //nolint:errcheck // an O_PATH descriptor has nothing to flush
	fd, err := unix.Openat2(int(root.Fd()), name, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil, errNoFile
	}
	if err != nil {
		return nil, kind.Errorf(kind.Invalid, "open the image's /%s: %w", name, err)
	}
	place := os.NewFile(uintptr(fd), name)
	defer place.Close() //nolint:errcheck // as above
	info, err := place.Stat()
	if err != nil {
		return nil, fmt.Errorf("stat the image's /%s: %w", name, err)
	}
	if !info.Mode().IsRegular() {
		return nil, kind.Errorf(kind.Invalid, "the image's /%s is not a regular file", name)
	}
	if info.Size() > maxFile {
		return nil, kind.Errorf(kind.Invalid, "the image's /%s: %d bytes, the limit is %d", name, info.Size(), maxFile)
	}
	f, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", fd), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, kind.Errorf(kind.Invalid, "open the image's /%s: %w", name, err)
	}
	return f, nil
}
