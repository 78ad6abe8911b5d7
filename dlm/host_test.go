package dlm

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// fakeHost is a host whose sysfs and /dev are in a directory. Its control device is /dev/null, which takes any write,
// and returns a count of bytes, as a minor number might look.
func fakeHost(t *testing.T) (h host, root string) {
	root = t.TempDir()
	h = host{&paths{dev: []string{root + "/dev", root + "/dev/misc"}, sys: root + "/sys", nodes: []string{root + "/nodes"}}}
	for _, dir := range []string{"dev/misc", "sys/class/misc", "nodes"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return h, root
}

func device(t *testing.T, root, name, number string) {
	t.Helper()
	dir := filepath.Join(root, "sys/class/misc", name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "dev"), []byte(number+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestHostSaysWhatIsMissing(t *testing.T) {
	h, root := fakeHost(t)
	if _, err := h.Control(); !errors.Is(err, ErrNoModule) {
		t.Errorf("without the module: %v", err)
	}
	if err := os.MkdirAll(root+"/sys/module/dlm", 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Control(); !errors.Is(err, ErrNoDevice) {
		t.Errorf("with the module alone: %v", err)
	}
	device(t, root, controlName, "not a number")
	if _, err := h.Control(); !errors.Is(err, ErrNoDevice) {
		t.Errorf("with nonsense in sysfs: %v", err)
	}
	if _, err := h.Minor("ls"); !errors.Is(err, ErrNoLockspace) {
		t.Errorf("without the lockspace: %v", err)
	}
	device(t, root, "dlm_ls", "10:77")
	if minor, err := h.Minor("ls"); err != nil || minor != 77 {
		t.Errorf("with the lockspace: %d, %v", minor, err)
	}
	h.nodes = []string{root + "/missing"}
	if _, err := h.Lockspace("ls", 77); !errors.Is(err, ErrNoDevice) {
		t.Errorf("without a node: %v", err)
	}
}

func TestHostFindsTheRightNode(t *testing.T) {
	h, root := fakeHost(t)
	device(t, root, controlName, "1:3")
	// A file, and a device with another number, are not it.
	if err := os.WriteFile(root+"/dev/"+controlName, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/dev/zero", root+"/dev/misc/"+controlName); err != nil {
		t.Fatal(err)
	}
	h.nodes = nil
	if _, err := h.Control(); !errors.Is(err, ErrNoDevice) {
		t.Fatalf("with wrong nodes: %v", err)
	}
	if err := os.Remove(root + "/dev/misc/" + controlName); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/dev/null", root+"/dev/misc/"+controlName); err != nil {
		t.Fatal(err)
	}
	d, err := h.Control()
	if err != nil {
		t.Fatal(err)
	}
	if n, err := d.Write(make([]byte, 7)); n != 7 || err != nil {
		t.Errorf("write: %d, %v", n, err)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	if _, err := d.Write(nil); err != os.ErrClosed {
		t.Errorf("write after close: %v", err)
	}
	if _, err := d.Read(nil); err != nil && err != os.ErrClosed {
		t.Errorf("read after close: %v", err)
	}
}

func TestHostMakesANode(t *testing.T) {
	if err := unix.Mknod(filepath.Join(t.TempDir(), "x"), unix.S_IFCHR, int(unix.Mkdev(1, 3))); err != nil {
		t.Skipf("device nodes cannot be made here: %v", err)
	}
	h, root := fakeHost(t)
	device(t, root, controlName, "1:3")
	d, err := h.Control()
	if errors.Is(err, fs.ErrPermission) {
		t.Skipf("the file system has no devices: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if n, err := d.Write(make([]byte, 5)); n != 5 || err != nil {
		t.Errorf("write: %d, %v", n, err)
	}
	if left, _ := os.ReadDir(root + "/nodes"); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

func TestErrors(t *testing.T) {
	for _, c := range []struct {
		err   error
		errno syscall.Errno
	}{{ErrBusy, syscall.EAGAIN}, {ErrNoOrphan, syscall.ENOENT}, {ErrOtherMode, syscall.EAGAIN}, {ErrNoDaemon, syscall.EUNATCH}} {
		err := fault("op", "ls", "name", c.err)
		if !errors.Is(err, c.err) || !errors.Is(err, c.errno) {
			t.Errorf("%v is not both", err)
		}
		if again := fault("other", "", "", err); again != err {
			t.Errorf("wrapped twice: %v", again)
		}
	}
	if errors.Is(ErrClosed, syscall.Errno(0)) || errors.Is(ErrBusy, ErrOtherMode) {
		t.Error("sentinels are mixed up")
	}
	if text := (&OpError{Op: "lock", Lockspace: "ls", Resource: "disk ä", Err: ErrBusy}).Error(); !strings.Contains(text, `"disk ä"`) {
		t.Error(text)
	}
}

func TestModes(t *testing.T) {
	want := []string{"111111", "111110", "111000", "110100", "110000", "100000"} // NL CR CW PR PW EX
	for a := NL; a <= EX; a++ {
		for b := NL; b <= EX; b++ {
			if got := a.Compatible(b); got != (want[a][b] == '1') {
				t.Errorf("%v and %v: %v", a, b, got)
			}
		}
	}
	if Mode(6).Compatible(NL) || NL.Compatible(6) || Mode(6).String() != "Mode(6)" || PW.String() != "PW" {
		t.Error("a number that is no mode passes for one")
	}
}

func TestHostRecoverNode(t *testing.T) {
	h, root := fakeHost(t)
	if _, err := RecoverNode(h, "ls"); !errors.Is(err, ErrNoLockspace) {
		t.Errorf("without the lockspace: %v", err)
	}
	if err := os.MkdirAll(root+"/sys/kernel/dlm/ls", 0o755); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		text string
		want uint32
		ok   bool
	}{{"0\n", 0, true}, {"3\n", 3, true}, {"3", 3, true}, {"", 0, false}, {"-1\n", 0, false}, {"4294967296\n", 0, false}} {
		if err := os.WriteFile(root+"/sys/kernel/dlm/ls/recover_nodeid", []byte(tc.text), 0o644); err != nil {
			t.Fatal(err)
		}
		if id, err := RecoverNode(h, "ls"); id != tc.want || (err == nil) != tc.ok {
			t.Errorf("%q: %d, %v", tc.text, id, err)
		}
	}
}

// TestStateReads counts the reads of a look at a lockspace's state, as the kernel counts them for a thread.
func TestStateReads(t *testing.T) {
	h, root := fakeHost(t)
	file := filepath.Join(root, "sys/kernel/dlm/disks/recover_status")
	if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte("ff\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	s, err := OpenState(h, "disks")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	counts, err := os.Open("/proc/thread-self/io")
	if err != nil {
		t.Skipf("this kernel counts no reads of a thread (CONFIG_TASK_IO_ACCOUNTING): %v", err)
	}
	defer counts.Close()
	reads := func() (n int) {
		var buf [256]byte
		if _, err := counts.Seek(0, io.SeekStart); err != nil {
			t.Fatal(err)
		}
		k, err := counts.Read(buf[:])
		if err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Sscanf(string(buf[bytes.Index(buf[:k], []byte("syscr:")):k]), "syscr: %d", &n); err != nil {
			t.Fatalf("%q: %v", buf[:k], err)
		}
		return n
	}
	const looks = 100
	empty := -reads() + reads()
	before := reads()
	for range looks {
		if running, err := s.Running(); err != nil || !running {
			t.Fatalf("running: %v, %v", running, err)
		}
	}
	if n := reads() - before - empty; n != looks {
		t.Errorf("%d looks took %d reads", looks, n)
	}
}

func TestMembersChanged(t *testing.T) {
	h, root := fakeHost(t)
	if _, err := h.MembersChanged("disks"); !errors.Is(err, ErrNoLockspace) {
		t.Errorf("without the lockspace: %v", err)
	}
	dir := root + "/sys/kernel/config/dlm/cluster/spaces/disks/nodes"
	for _, node := range []string{"1", "2"} {
		if err := os.MkdirAll(filepath.Join(dir, node), 0o755); err != nil {
			t.Fatal(err)
		}
		at := time.Unix(1795784780, 0)
		if err := os.Chtimes(dir, at, at); err != nil {
			t.Fatal(err)
		}
		if got, err := h.MembersChanged("disks"); err != nil || got.IsZero() != (node == "1") || !got.IsZero() && !got.Equal(at) {
			t.Errorf("with nodes to %s: %v, %v", node, got, err)
		}
	}
}
