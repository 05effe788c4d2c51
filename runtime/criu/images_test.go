package criu

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"

	"noded.dev/noded/internal/kind"
)

func number(b []byte, n protowire.Number, v uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, n, protowire.VarintType), v)
}

func message(b []byte, n protowire.Number, m []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, n, protowire.BytesType), m)
}

// core makes a core image of one thread.
func core(creds []byte, seccomp uint64) []byte {
	entry := message(number(nil, 1, 1), 5, number(message(nil, 10, creds), 11, seccomp))
	b := binary.LittleEndian.AppendUint32(nil, magicImage)
	b = binary.LittleEndian.AppendUint32(b, magicCore)
	return append(binary.LittleEndian.AppendUint32(b, uint32(len(entry))), entry...)
}

// TestCheck: images that give more than a container may have are refused.
func TestCheck(t *testing.T) {
	const chown, admin = 1 << 0, 1 << 21
	creds := func(set protowire.Number, caps uint64) []byte { return number(number(nil, set, caps), 18, 1) }
	strict := Permitted{Capabilities: []string{"CAP_CHOWN"}, NoNewPrivileges: true, Seccomp: true, LSMProfile: "p"}
	label := func(b []byte, l string) []byte { return message(b, 15, []byte(l)) }
	good := label(creds(12, chown), "p")
	packed := message(number(nil, 18, 1), 12, protowire.AppendVarint(protowire.AppendVarint(nil, chown), 1<<8))
	for name, c := range map[string]struct {
		image []byte
		want  string // "" passes
	}{
		"as permitted":      {core(good, 2), ""},
		"inheritable":       {core(label(creds(9, admin), "p"), 2), "inheritable"},
		"permitted":         {core(label(creds(10, admin), "p"), 2), "permitted"},
		"effective":         {core(label(creds(11, admin|chown), "p"), 2), "effective"},
		"bounding":          {core(label(creds(12, admin), "p"), 2), "bounding"},
		"ambient":           {core(label(creds(19, admin), "p"), 2), "ambient"},
		"packed, second":    {core(label(packed, "p"), 2), "bounding"},
		"wide word":         {core(label(creds(12, 1<<40), "p"), 2), "32 bits"},
		"three words":       {core(label(number(number(creds(12, 0), 12, 0), 12, 0), "p"), 2), "words"},
		"may gain":          {core(label(number(nil, 12, chown), "p"), 2), "gain privileges"},
		"privileges twice":  {core(number(good, 18, 0), 2), "twice"},
		"not filtered":      {core(good, 0), "seccomp"},
		"strict mode only":  {core(good, 1), "seccomp"},
		"another label":     {core(label(creds(12, chown), "unconfined"), 2), "label"},
		"no credentials":    {append(core(nil, 2)[:8], 0, 0, 0, 0), "no credentials"},
		"cut off":           {core(good, 2)[:20], "one entry"},
		"two entries":       {append(core(good, 2), core(good, 2)[8:]...), "one entry"},
		"another image":     {append([]byte("no image"), core(good, 2)[8:]...), "not a core image"},
		"credentials twice": {twice(core(good, 2)), "twice"},
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "core-7.img"), c.image, 0o600); err != nil {
			t.Fatal(err)
		}
		err := Check(dir, strict)
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case c.want != "" && (!kind.Is(err, kind.Precondition) || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	if err := Check(t.TempDir(), strict); !kind.Is(err, kind.Precondition) {
		t.Errorf("no processes: %v", err)
	}
}

// twice gives a core image's thread a second part of credentials.
func twice(image []byte) []byte {
	entry := message(append([]byte(nil), image[12:]...), 5, message(nil, 10, number(nil, 12, 1<<21)))
	out := append([]byte(nil), image[:8]...)
	return append(binary.LittleEndian.AppendUint32(out, uint32(len(entry))), entry...)
}

func TestComplaints(t *testing.T) {
	log := filepath.Join(t.TempDir(), "dump.log")
	text := "(00.1) Error (criu/util.c:1534): rlimit: Can't setup RLIMIT_NOFILE for self\n(00.2) fine\n(00.3) Error (criu/x.c:1): the cause\n"
	if err := os.WriteFile(log, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := Complaints(log); got != "the cause" {
		t.Errorf("got %q", got)
	}
}

func TestVersions(t *testing.T) {
	for version, want := range map[string]bool{"4.2": false, "4.2.1": false, "5.0": false, "4.10": false, "4.1.1": true, "3.17.1": true, "": true, "x": true} {
		if old(version) != want {
			t.Errorf("%q is old: %v", version, !want)
		}
	}
}

func TestFileNames(t *testing.T) {
	if f := FileOf(0x62, 0x1c); f != "file[62:1c]" || !f.Valid() {
		t.Errorf("%s", f)
	}
	for _, f := range []File{"", "file[1:2]\nexec-cmd x", "file[g:1]", "x"} {
		if f.Valid() {
			t.Errorf("%q is taken for a name", f)
		}
	}
}
