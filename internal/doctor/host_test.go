package doctor

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlockd/vmlockd/dlm/controld"
)

func TestHost(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("hello"), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("file", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(dir, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	h := Host()
	if b, err := h.ReadFile(filepath.Join(dir, "link"), 5); err != nil || string(b) != "hello" {
		t.Errorf("%q, %v", b, err)
	}
	if b, err := h.ReadFile(file, 4); err == nil {
		t.Errorf("longer than allowed: %q", b)
	}
	if _, err := h.ReadFile(filepath.Join(dir, "none"), 4); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	// It would wait for a writer for ever.
	if _, err := h.ReadFile(filepath.Join(dir, "pipe"), 4); err == nil {
		t.Error("a pipe was read")
	}
	if _, err := h.ReadFile(dir, 4); err == nil {
		t.Error("a directory was read")
	}
	if info, err := h.Stat(filepath.Join(dir, "link")); err != nil || info.Mode.Perm() != 0o640 || int(info.UID) != os.Geteuid() {
		t.Errorf("%+v, %v", info, err)
	}
	if info, err := h.Stat("/dev/shm"); err == nil && !info.Tmpfs {
		t.Errorf("/dev/shm: %+v", info)
	}
	if info, err := h.Stat("/proc"); err != nil || info.Tmpfs {
		t.Errorf("/proc: %+v, %v", info, err)
	}
	if to, err := h.Readlink(filepath.Join(dir, "link")); err != nil || to != "file" {
		t.Errorf("%q, %v", to, err)
	}
	if names, err := h.List(dir, 3); err != nil || len(names) != 3 || names[0] != "file" {
		t.Errorf("%q, %v", names, err)
	}
	if names, err := h.List(dir, 2); err == nil {
		t.Errorf("more than allowed: %q", names)
	}
	if _, err := h.List(filepath.Join(dir, "none"), 2); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	socket := filepath.Join(dir, "socket")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := h.Connect(t.Context(), socket); err != nil {
		t.Error(err)
	}
	l.Close()
	if err := h.Connect(t.Context(), socket); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("nobody listens: %v", err)
	}
	if err := h.Connect(t.Context(), filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("there is no socket: %v", err)
	}
	list, err := processes(h)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range list {
		if p.pid == os.Getpid() {
			return
		}
	}
	t.Errorf("process %s is not in the list", strconv.Itoa(os.Getpid()))
}

// Whatever this machine is like, an examination of it comes to an end and finds
// that no vmlockd answers.
func TestExamineThisMachine(t *testing.T) {
	begin := time.Now()
	r := Examine(t.Context(), Options{System: Host(), Controld: controld.Host(), Config: "/nonexistent/vmlockd.toml",
		Daemon: func(ctx context.Context) (Daemon, error) { return Daemon{}, errTest }})
	if r.Count(Fault) == 0 || r.Backend != "local" {
		t.Errorf("%+v", r)
	}
	t.Logf("%d findings in %v", len(r.Findings), time.Since(begin))
}
