package difftest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/internal/backend/local"
	"github.com/vmlockd/vmlockd/internal/holder"
	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/lockprogram"
	"github.com/vmlockd/vmlockd/internal/owner"
	"github.com/vmlockd/vmlockd/internal/rpc"
)

// daemon is one of the two under test.
type daemon struct {
	name   string
	dir    string // what it may use for locks; $D in scripts
	socket string
}

// both starts virtlockd and vmlockd, each with the same files in its directory.
func both(t *testing.T) (theirs, ours *daemon) {
	t.Helper()
	exe := findVirtlockd(t)
	theirs = &daemon{name: "virtlockd", dir: workDir(t)}
	theirs.socket = startVirtlockd(t, exe)
	ours = &daemon{name: "vmlockd", dir: workDir(t)}
	ours.socket = startVmlockd(t)
	return theirs, ours
}

func findVirtlockd(t testing.TB) string {
	t.Helper()
	exe := "/usr/sbin/virtlockd"
	if _, err := os.Stat(exe); err == nil {
		return exe
	}
	exe, err := exec.LookPath("virtlockd")
	if err == nil {
		return exe
	}
	if os.Getenv("VMLOCKD_LAB") != "" {
		t.Fatalf("virtlockd is needed, Debian has it in libvirt-daemon: %v", err)
	}
	t.Skipf("virtlockd is not installed (%v, and no /usr/sbin/virtlockd); Debian has it in libvirt-daemon", err)
	return ""
}

func workDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, f := range []string{"d0", "d1", "d2", "d3", "plain"} {
		if err := os.WriteFile(filepath.Join(dir, f), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// startVirtlockd returns the socket of a virtlockd that lives as long as the test.
func startVirtlockd(t testing.TB, exe string) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "virtlockd") // the path of a socket must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	conf := filepath.Join(dir, "virtlockd.conf")
	logFile := filepath.Join(dir, "log")
	text := fmt.Sprintf("log_outputs=\"3:file:%s\"\nmax_clients=2000\n", logFile)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	run := filepath.Join(dir, "libvirt")
	if err := os.Mkdir(run, 0o700); err != nil {
		t.Fatal(err)
	}
	var cmd *exec.Cmd
	if os.Geteuid() == 0 {
		// Its socket is in /run/libvirt, which is ours in a namespace of its own.
		cmd = exec.Command("unshare", "--mount", "/bin/sh", "-ec",
			`mount -t tmpfs none /run; mkdir /run/libvirt; mount --bind "$1" /run/libvirt; exec "$2" -f "$3" -p "$4"`,
			"sh", run, exe, conf, filepath.Join(dir, "pid"))
	} else {
		cmd = exec.Command(exe, "-f", conf, "-p", filepath.Join(dir, "pid"))
		cmd.Env = append(os.Environ(), "XDG_RUNTIME_DIR="+dir)
	}
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	ended := start(t, cmd)
	socket := filepath.Join(run, "virtlockd-sock")
	deadline := time.Now().Add(ioTimeout)
	for {
		c, err := net.Dial("unix", socket)
		if err == nil {
			c.Close()
			return socket
		}
		select {
		case err := <-ended:
			log, _ := os.ReadFile(logFile)
			t.Fatalf("virtlockd did not start: %v\n%s\n%s", err, out.String(), log)
		case <-time.After(5 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatalf("virtlockd does not listen: %v", err)
		}
	}
}

// start runs cmd until the test ends; it also ends with this process. What Wait
// returns is sent once.
func start(t testing.TB, cmd *exec.Cmd) <-chan error {
	t.Helper()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	ended := make(chan error, 1)
	done := make(chan struct{})
	go func() {
		// Pdeathsig is about the thread that starts the process.
		runtime.LockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			ended <- cmd.Wait()
		}
		close(done)
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-done
	})
	return ended
}

// startVmlockd returns the socket of a vmlockd that lives as long as the test: of
// the program, as it is installed, where the lab is asked for, and else of one in
// this process, where the race detector sees it.
func startVmlockd(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "vmlockd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "sock")
	if vmlockd == "" {
		serve(t, socket)
		return socket
	}
	t.Cleanup(func() { endHolder(t, filepath.Join(dir, "run", "holder.sock")) })
	conf := filepath.Join(dir, "vmlockd.toml")
	text := fmt.Sprintf("socket = %q\nrun_dir = %q\naudit_log = %q\nmax_clients = 2000\nlog.level = \"error\"\n",
		socket, filepath.Join(dir, "run"), filepath.Join(dir, "audit.log"))
	must(t, os.WriteFile(conf, []byte(text), 0o600))
	log, err := os.Create(filepath.Join(dir, "log"))
	must(t, err)
	defer log.Close()
	cmd := exec.Command(vmlockd, "--config", conf)
	cmd.Stdout, cmd.Stderr = log, log
	t.Cleanup(func() {
		if t.Failed() {
			text, _ := os.ReadFile(log.Name())
			t.Logf("vmlockd wrote:\n%s", text)
		}
	})
	ended := start(t, cmd)
	eventually(t, "vmlockd listens", func() bool {
		select {
		case err := <-ended:
			t.Fatalf("vmlockd did not start: %v", err)
		default:
		}
		c, err := net.Dial("unix", socket)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	return socket
}

// endHolder ends what a vmlockd leaves that is killed with locks.
func endHolder(t testing.TB, socket string) {
	if _, err := os.Stat(socket); errors.Is(err, fs.ErrNotExist) {
		return // it did not come so far
	}
	ctx, cancel := context.WithTimeout(context.Background(), ioTimeout)
	defer cancel()
	c, err := holder.Connect(ctx, holder.Options{Socket: socket})
	if err != nil {
		t.Errorf("the process that keeps locks cannot be ended: %v", err)
		return
	}
	pid := c.Status().PID
	c.Close()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Errorf("the process that keeps locks cannot be ended: %v", err)
	}
}

// serve does in this process what cmd/vmlockd does.
func serve(t testing.TB, socket string) {
	t.Helper()
	l, err := rpc.Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	locks := locking.New(locking.Options{
		Backend: local.New(), Processes: owner.Processes{}, RequestTimeout: 10 * time.Second,
	})
	server := rpc.NewServer(rpc.Options{Programs: []rpc.Program{lockprogram.New(locks)}})
	served := make(chan error, 1)
	go func() { served <- server.Serve(context.Background(), l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), ioTimeout)
		defer cancel()
		if err := server.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		if err := <-served; !errors.Is(err, rpc.ErrServerClosed) {
			t.Error(err)
		}
		if err := locks.Close(ctx); err != nil {
			t.Error(err)
		}
	})
}
