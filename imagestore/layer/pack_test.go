package layer

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"noded.dev/noded/imagestore/limit"
)

// TestPack packs what overlayfs leaves in an upper folder and unpacks it again.
func TestPack(t *testing.T) {
	needRoot(t)
	upper := t.TempDir()
	sh := func(script string) {
		t.Helper()
		cmd := exec.Command("/bin/sh", "-e", "-c", script)
		cmd.Dir = upper
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v", out, err)
		}
	}
	sh(`chmod 711 .; chown 5:6 .
		echo text > file; chown 1000:2000 file; chmod 4750 file; touch -d @12.345678901 file
		ln file other; ln -s /etc/passwd link; mkfifo fifo
		mkdir -m 1777 tmp; mkdir -p a/b/c; echo deep > a/b/c/d; touch -d @99 a/b a
		mknod gone c 0 0; mknod dev c 1 3; mkdir opaque; echo new > opaque/new; echo x > .wh.odd`)
	if err := unix.Setxattr(filepath.Join(upper, "opaque"), opaqueXattr, []byte("y"), 0); err != nil {
		t.Skip("this file system has no trusted attributes:", err)
	}
	caps := []byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	if err := unix.Setxattr(filepath.Join(upper, "a/b/c/d"), "security.capability", caps, 0); err != nil {
		t.Fatal(err)
	}
	l, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(l)
	if err := unix.Bind(l, &unix.SockaddrUnix{Name: filepath.Join(upper, "sock")}); err != nil {
		t.Fatal(err)
	}

	sh(`touch -d @77 .`)

	var first, second bytes.Buffer
	if err := Pack(t.Context(), upper, &first); err != nil {
		t.Fatal(err)
	}
	back := t.TempDir()
	if _, err := Untar(t.Context(), back, bytes.NewReader(first.Bytes()), limit.Default()); err != nil {
		t.Fatal(err)
	}
	list := func(dir string) string {
		cmd := exec.Command("/bin/sh", "-c", `find . ! -name sock ! -name .wh.odd ! -name gone -printf '%P %M %U:%G %n %l %T@\n' | sort; stat -c '%F %t:%T' gone; getfattr -d -m - -R . 2>/dev/null; cat file a/b/c/d opaque/new`)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v", out, err)
		}
		return string(out)
	}
	if want, got := list(upper), list(back); want != got {
		t.Errorf("packed:\n%s\nunpacked:\n%s", want, got)
	}
	if st, err := os.Lstat(filepath.Join(back, "sock")); err == nil {
		t.Errorf("a socket was unpacked: %v", st.Mode())
	}
	if err := Pack(t.Context(), back, &second); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first.Bytes(), second.Bytes()) {
		t.Error("packing what was unpacked gives another tar")
	}
}
