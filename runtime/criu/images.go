package criu

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"

	"noded.dev/noded/internal/capability"
	"noded.dev/noded/internal/kind"
)

// Permitted is what a container's processes may have.
type Permitted struct {
	Capabilities    []string // "CAP_CHOWN": the bounding set
	NoNewPrivileges bool     // they must be without
	Seccomp         bool     // they must be filtered
	LSMProfile      string   // AppArmor's or SELinux's; "" none is asked for
}

// Check reads the credentials of every thread in the images of a dump, as CRIU
// would restore them, and refuses (kind Precondition) what goes beyond. Images
// that it does not understand are refused, too.
func Check(dir string, p Permitted) error {
	names, err := filepath.Glob(filepath.Join(dir, "core-*.img"))
	if err != nil || len(names) == 0 {
		return kind.Errorf(kind.Precondition, "the checkpoint has no processes: %w", errors.Join(err, fs.ErrNotExist))
	}
	bounds, err := mask(p.Capabilities)
	if err != nil {
		return err
	}
	for _, name := range names {
		t, err := readCore(name)
		if err == nil {
			err = t.within(p, bounds)
		}
		if err != nil {
			return kind.Errorf(kind.Precondition, "process image %s: %w", filepath.Base(name), err)
		}
	}
	return nil
}

func mask(names []string) (uint64, error) {
	var m uint64
	for _, name := range names {
		n := slices.Index(capability.Names, name)
		if n < 0 {
			return 0, kind.Errorf(kind.Invalid, "capability %.40q is not known", name)
		}
		m |= 1 << n
	}
	return m, nil
}

// thread is what counts of a core image.
type thread struct {
	caps       [5]uint64 // inheritable, permitted, effective, bounding, ambient
	noNewPrivs bool
	seccomp    uint64 // the mode; 2 is a filter
	lsm        string
	creds      bool
}

var capSets = [5]string{"inheritable", "permitted", "effective", "bounding", "ambient"}

const seccompFilter = 2 // SECCOMP_MODE_FILTER

func (t thread) within(p Permitted, bounds uint64) error {
	if !t.creds {
		return errors.New("it has no credentials")
	}
	for i, set := range t.caps {
		if more := set &^ bounds; more != 0 {
			return fmt.Errorf("its %s capabilities (%#x) have more than the container's (%#x)", capSets[i], set, bounds)
		}
	}
	switch {
	case p.NoNewPrivileges && !t.noNewPrivs:
		return errors.New("it may gain privileges, the container may not")
	case p.Seccomp && t.seccomp != seccompFilter:
		return errors.New("it is not filtered by seccomp, the container is")
	case p.LSMProfile != "" && !strings.HasPrefix(t.lsm, p.LSMProfile):
		return fmt.Errorf("its security label is %q, the container's %q", t.lsm, p.LSMProfile)
	}
	return nil
}

// An image is two magic numbers, and entries of a size and as many bytes of a
// protocol buffer (criu.org/Images). A core image has one entry.
const (
	magicImage = 0x54564319
	magicCore  = 0x55053847
	maxCore    = 1 << 20
)

func readCore(name string) (thread, error) {
	f, err := os.Open(name)
	if err != nil {
		return thread{}, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxCore+1))
	if err != nil {
		return thread{}, err
	}
	return parseCore(data)
}

func parseCore(data []byte) (t thread, err error) {
	if len(data) < 12 || len(data) > maxCore || binary.LittleEndian.Uint32(data) != magicImage || binary.LittleEndian.Uint32(data[4:]) != magicCore {
		return t, errors.New("it is not a core image")
	}
	if int(binary.LittleEndian.Uint32(data[8:])) != len(data)-12 {
		return t, errors.New("it has not one entry")
	}
	core, err := once(data[12:], 3, 5) // task_core_entry, thread_core_entry
	if err != nil {
		return t, err
	}
	task, err := once(core[3].bytes, 11) // of CRIU before 3.4
	if err != nil {
		return t, err
	}
	own, err := once(core[5].bytes, 10, 11) // creds_entry, seccomp_mode
	if err != nil {
		return t, err
	}
	t.seccomp = max(task[11].number, own[11].number)
	if _, t.creds = own[10]; !t.creds {
		return t, nil
	}
	return t, t.readCreds(own[10].bytes)
}

// readCreds reads a creds_entry. A set of capabilities is two numbers of 32 bits.
func (t *thread) readCreds(data []byte) error {
	single, err := once(data, 15, 18) // lsm_profile, no_new_privs
	if err != nil {
		return err
	}
	t.lsm, t.noNewPrivs = string(single[15].bytes), single[18].number == 1
	for i, number := range [5]protowire.Number{9, 10, 11, 12, 19} {
		words, err := repeated(data, number)
		if err != nil {
			return err
		}
		if len(words) > 2 {
			return fmt.Errorf("its %s capabilities have %d words", capSets[i], len(words))
		}
		for w, word := range words {
			if word>>32 != 0 {
				return fmt.Errorf("its %s capabilities have a word of more than 32 bits", capSets[i])
			}
			t.caps[i] |= word << (32 * w)
		}
	}
	return nil
}

type field struct {
	number uint64
	bytes  []byte
}

// once finds fields of a message by their numbers. One that is there twice is
// an error: readers may differ in which of the two counts.
func once(data []byte, wanted ...protowire.Number) (map[protowire.Number]field, error) {
	found := map[protowire.Number]field{}
	err := each(data, func(n protowire.Number, f field) error {
		if !slices.Contains(wanted, n) {
			return nil
		}
		if _, again := found[n]; again {
			return fmt.Errorf("field %d is there twice", n)
		}
		found[n] = f
		return nil
	})
	return found, err
}

// repeated reads the numbers of a field, which may come one by one or packed.
func repeated(data []byte, wanted protowire.Number) (list []uint64, err error) {
	err = each(data, func(n protowire.Number, f field) error {
		if n != wanted {
			return nil
		}
		if f.bytes == nil {
			list = append(list, f.number)
			return nil
		}
		for rest := f.bytes; len(rest) > 0; {
			v, size := protowire.ConsumeVarint(rest)
			if size < 0 {
				return protowire.ParseError(size)
			}
			list, rest = append(list, v), rest[size:]
		}
		return nil
	})
	return list, err
}

func each(data []byte, visit func(protowire.Number, field) error) error {
	for len(data) > 0 {
		n, wire, size := protowire.ConsumeTag(data)
		if size < 0 {
			return protowire.ParseError(size)
		}
		data = data[size:]
		var f field
		switch wire {
		case protowire.VarintType:
			f.number, size = protowire.ConsumeVarint(data)
		case protowire.BytesType:
			f.bytes, size = protowire.ConsumeBytes(data)
		default:
			size = protowire.ConsumeFieldValue(n, wire, data)
		}
		if size < 0 {
			return protowire.ParseError(size)
		}
		data = data[size:]
		if err := visit(n, f); err != nil {
			return err
		}
	}
	return nil
}
