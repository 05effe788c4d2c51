package userdb

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"noded.dev/noded/internal/kind"
)

const passwd = `root:x:0:0:root:/root:/bin/sh
# a comment
short:x
app:x:1000:1000:App:/home/app:/bin/sh
nohome:x:1001:1001::
big:x:4294967296:0::/:/bin/sh
99999999999999999999:x:0:0::/:/bin/sh
0x0:x:0:0::/:/bin/sh
www-data:x:33:33::/var/www:/bin/sh
`

const group = `root:x:0:
app:x:1000:
wheel:x:10:root,app
docker:x:999:app, other
empty
bad:x:notanumber:nobody
users:x:100:www-data
`

// rootfs makes a root filesystem with the two files.
func rootfs(t testing.TB, passwd, group string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"passwd": passwd, "group": group} {
		if err := os.WriteFile(filepath.Join(dir, "etc", name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func ptr(n int64) *int64 { return &n }

// TestResolve is the matrix of request, image and policy (V43, V48: the
// primary group is always among the groups).
func TestResolve(t *testing.T) {
	dir := rootfs(t, passwd, group)
	for name, c := range map[string]struct {
		r    Request
		want User
	}{
		"nothing":              {Request{}, User{0, 0, []uint32{0, 10}, "/root", "root"}},
		"image name":           {Request{ImageUser: "app"}, User{1000, 1000, []uint32{1000, 10, 999}, "/home/app", "app"}},
		"image number":         {Request{ImageUser: "1000"}, User{1000, 1000, []uint32{1000, 10, 999}, "/home/app", "app"}},
		"image unknown number": {Request{ImageUser: "4242"}, User{4242, 0, []uint32{0}, "/", ""}},
		"image name and group": {Request{ImageUser: "app:users"}, User{1000, 100, []uint32{100, 10, 999}, "/home/app", "app"}},
		"image numbers":        {Request{ImageUser: "4242:77"}, User{4242, 77, []uint32{77}, "/", ""}},
		"image number, name":   {Request{ImageUser: "4242:users"}, User{4242, 100, []uint32{100}, "/", ""}},
		"no home":              {Request{ImageUser: "nohome"}, User{1001, 1001, []uint32{1001}, "/", "nohome"}},
		"run as user":          {Request{ImageUser: "app", RunAsUser: ptr(33)}, User{33, 33, []uint32{33, 100}, "/var/www", "www-data"}},
		"run as root":          {Request{ImageUser: "app", RunAsUser: ptr(0)}, User{0, 0, []uint32{0, 10}, "/root", "root"}},
		"broken image, user":   {Request{ImageUser: "-1", RunAsUser: ptr(7)}, User{7, 0, []uint32{0}, "/", ""}},
		"run as name":          {Request{RunAsUsername: "www-data"}, User{33, 33, []uint32{33, 100}, "/var/www", "www-data"}},
		"user wins over name":  {Request{RunAsUser: ptr(33), RunAsUsername: "app"}, User{33, 33, []uint32{33, 100}, "/var/www", "www-data"}},
		"run as group":         {Request{RunAsUser: ptr(1000), RunAsGroup: ptr(5)}, User{1000, 5, []uint32{5, 10, 999}, "/home/app", "app"}},
		"kubelet repeats uid":  {Request{ImageUser: "4242:77", RunAsUser: ptr(4242)}, User{4242, 77, []uint32{77}, "/", ""}},
		"kubelet repeats name": {Request{ImageUser: "app:users", RunAsUsername: "app"}, User{1000, 100, []uint32{100, 10, 999}, "/home/app", "app"}},
		"another uid":          {Request{ImageUser: "4242:77", RunAsUser: ptr(4243)}, User{4243, 0, []uint32{0}, "/", ""}},
		"merge":                {Request{ImageUser: "app", SupplementalGroups: []int64{999, 5000}}, User{1000, 1000, []uint32{1000, 10, 999, 5000}, "/home/app", "app"}},
		"strict":               {Request{ImageUser: "app", SupplementalGroups: []int64{5000}, StrictGroups: true}, User{1000, 1000, []uint32{1000, 5000}, "/home/app", "app"}},
		"strict with group":    {Request{ImageUser: "app:users", StrictGroups: true}, User{1000, 100, []uint32{100}, "/home/app", "app"}},
		"largest":              {Request{ImageUser: "2147483647"}, User{2147483647, 0, []uint32{0}, "/", ""}},
	} {
		c.r.RootFS = dir
		got, err := Resolve(c.r)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
	}
}

// TestRefused: V42, V63, B20. A USER that is no plain number and no plain name
// is refused even if /etc/passwd has a line for it, and a missing name is
// never root.
func TestRefused(t *testing.T) {
	dir := rootfs(t, passwd, group)
	for _, user := range []string{
		"4294967296", "2147483648:0", "2147483648", "-1", "99999999999999999999", "0x0", "+0", " 0", "0 ", "1000:", ":0", ":", "00",
		"nobody", "app:nogroup", "app:bad", "app:-1", "big", "a:b:c", "app\n", "a\x00b", "root\r", "a/b", strings.Repeat("a", 257),
		"١", "app:0x0", "~root", "\xff",
	} {
		if got, err := Resolve(Request{RootFS: dir, ImageUser: user}); !kind.Is(err, kind.Invalid) {
			t.Errorf("USER %q: %+v, %v; want kind Invalid", user, got, err)
		}
	}
	for name, r := range map[string]Request{
		"uid -1":             {RunAsUser: ptr(-1)},
		"uid 2^31":           {RunAsUser: ptr(1 << 31)},
		"uid 2^32":           {RunAsUser: ptr(1 << 32)},
		"gid 2^32":           {RunAsUser: ptr(0), RunAsGroup: ptr(1 << 32)},
		"group alone":        {RunAsGroup: ptr(1)},
		"missing name":       {RunAsUsername: "nobody"},
		"number as name":     {RunAsUsername: "0"},
		"supplemental group": {SupplementalGroups: []int64{-1}},
	} {
		r.RootFS = dir
		if got, err := Resolve(r); !kind.Is(err, kind.Invalid) {
			t.Errorf("%s: %+v, %v; want kind Invalid", name, got, err)
		}
	}
}

// TestImageUser: what ImageStatus may report (V42).
func TestImageUser(t *testing.T) {
	if uid, name, err := ImageUser("1000:2000"); err != nil || uid == nil || *uid != 1000 || name != "" {
		t.Errorf("1000:2000 is %v %q %v", uid, name, err)
	}
	if uid, name, err := ImageUser("app:users"); err != nil || uid != nil || name != "app" {
		t.Errorf("app:users is %v %q %v", uid, name, err)
	}
	if uid, name, err := ImageUser(""); err != nil || uid != nil || name != "" {
		t.Errorf("no USER is %v %q %v", uid, name, err)
	}
	if uid, _, err := ImageUser("4294967296"); err == nil || uid != nil {
		t.Errorf("4294967296 is %v %v", uid, err)
	}
}

// TestMissingFiles: numbers need no files, names do.
func TestMissingFiles(t *testing.T) {
	dir := t.TempDir()
	if got, err := Resolve(Request{RootFS: dir, ImageUser: "5:6"}); err != nil || got.UID != 5 || got.GID != 6 {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := Resolve(Request{RootFS: dir}); err != nil || got.UID != 0 || got.Home != "/" {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := Resolve(Request{RootFS: dir, ImageUser: "root"}); !kind.Is(err, kind.Invalid) {
		t.Errorf("a name without files: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "etc"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Resolve(Request{RootFS: dir, ImageUser: "5"}); err != nil {
		t.Errorf("/etc that is a file: %v", err)
	}
	if _, err := Resolve(Request{RootFS: dir + "/none"}); err == nil {
		t.Error("no error without a root filesystem")
	}
}

// TestHome: V44. Control characters in a line of passwd are refused.
func TestHome(t *testing.T) {
	for _, home := range []string{"/root\rm::0:0::/:/bin/sh", "/a\x00b", "/\x1b[31m", "/\t"} {
		dir := rootfs(t, "app:x:5:5::"+home+":/bin/sh\n", "")
		if got, err := Resolve(Request{RootFS: dir, ImageUser: "5"}); !kind.Is(err, kind.Invalid) {
			t.Errorf("home %q: %+v, %v", home, got, err)
		}
	}
}

// TestHostileFiles: V25, B25. None of these may block, leave the root
// filesystem or take memory.
func TestHostileFiles(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "passwd")
	if err := os.WriteFile(outside, []byte("app:x:0:0::/:/bin/sh\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	const app = "app:x:5:5::/:/bin/sh\n" // would be found, were the file read
	for name, make := range map[string]func(file string) error{
		"fifo":    func(f string) error { return syscall.Mkfifo(f, 0o644) },
		"folder":  func(f string) error { return os.Mkdir(f, 0o755) },
		"outside": func(f string) error { return os.Symlink(outside, f) },
		"dots":    func(f string) error { return os.Symlink("../../../../../../../../.."+outside, f) },
		"loop":    func(f string) error { return os.Symlink("passwd", f) },
		"magic":   func(f string) error { return os.Symlink("/proc/self/fd/0", f) },
		"sparse":  func(f string) error { return errorsOf(os.WriteFile(f, []byte(app), 0o644), os.Truncate(f, 10<<30)) },
		"one too large": func(f string) error {
			return os.WriteFile(f, []byte(app+strings.Repeat("\n", maxFile+1-len(app))), 0o644)
		},
		"long line": func(f string) error { return os.WriteFile(f, []byte(strings.Repeat("x", 9<<20)), 0o644) },
		"socket": func(f string) error {
			fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
			if err != nil {
				return err
			}
			return errorsOf(bind(fd, f), syscall.Close(fd))
		},
	} {
		dir := rootfs(t, "", "")
		file := filepath.Join(dir, "etc/passwd")
		if err := errorsOf(os.Remove(file), make(file)); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		start := time.Now()
		got, err := Resolve(Request{RootFS: dir, ImageUser: "app"})
		if !kind.Is(err, kind.Invalid) {
			t.Errorf("%s: %+v, %v; want kind Invalid", name, got, err)
		}
		if d := time.Since(start); d > 2*time.Second {
			t.Errorf("%s took %v", name, d)
		}
	}
}

func bind(fd int, path string) error {
	return syscall.Bind(fd, &syscall.SockaddrUnix{Name: path})
}

func errorsOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// TestLinkInside: a link that stays in the root filesystem is followed, an
// absolute one from the root filesystem's own root.
func TestLinkInside(t *testing.T) {
	dir := rootfs(t, "", "")
	for _, f := range []func() error{
		func() error { return os.Remove(filepath.Join(dir, "etc/passwd")) },
		func() error { return os.MkdirAll(filepath.Join(dir, "usr/lib"), 0o755) },
		func() error {
			return os.WriteFile(filepath.Join(dir, "usr/lib/passwd"), []byte("app:x:9:9::/:\n"), 0o644)
		},
		func() error { return os.Symlink("/usr/lib/passwd", filepath.Join(dir, "etc/passwd")) },
	} {
		if err := f(); err != nil {
			t.Fatal(err)
		}
	}
	got, err := Resolve(Request{RootFS: dir, ImageUser: "app"})
	if err != nil || got.UID != 9 {
		t.Errorf("%+v, %v", got, err)
	}
}

// TestManyEntries: the largest permitted file is read quickly (B25).
func TestManyEntries(t *testing.T) {
	var b strings.Builder
	for i := 0; b.Len() < maxFile-64; i++ {
		fmt.Fprintf(&b, "u%d:x:5:5::/:\n", i)
	}
	b.WriteString("last:x:77:78::/l:\n")
	dir := rootfs(t, b.String(), "")
	start := time.Now()
	got, err := Resolve(Request{RootFS: dir, ImageUser: "last"})
	if err != nil || got.UID != 77 {
		t.Errorf("%+v, %v", got, err)
	}
	if d := time.Since(start); d > 2*time.Second {
		t.Errorf("took %v", d)
	}
}

// FuzzResolve: whatever the files say, an identity is within bounds, has its
// primary group among its groups, and root is only what says so.
func FuzzResolve(f *testing.F) {
	f.Add("app", passwd, group)
	f.Add("0:users", passwd, group)
	f.Add("1000:1000", "", "")
	f.Fuzz(func(t *testing.T, user, passwd, group string) {
		u, err := Resolve(Request{RootFS: rootfs(t, passwd, group), ImageUser: user})
		if err != nil {
			return
		}
		if u.UID > maxID || u.GID > maxID || len(u.AdditionalGIDs) == 0 || u.AdditionalGIDs[0] != u.GID || u.Home == "" {
			t.Errorf("%q: %+v", user, u)
		}
		if u.UID == 0 && !strings.Contains(passwd, "0") && user != "" && user != "0" && !strings.HasPrefix(user, "0:") {
			t.Errorf("%q became root: %+v", user, u)
		}
	})
}
