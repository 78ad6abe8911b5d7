package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/lockprogram"
)

// startTimeout bounds how long a daemon may take to answer its first request.
const startTimeout = 2 * time.Minute

// daemon is a lock daemon that is measured.
type daemon struct {
	who    string // in the table
	dir    string // what is locked; removed by close
	state  string // its socket and what it keeps; removed by close
	socket string
	args   []string

	cmd     *exec.Cmd
	ended   chan struct{}
	holder  int           // pid of vmlockd's holder process, 0 if there is none
	notices *net.UnixConn // what it says about itself; nil if it says nothing
	ready   chan struct{} // full after it has said that it serves

	spaced bool          // its lockspace is there
	took   time.Duration // by its last start, until it answered

	counters *counters // of its processes; nil where the kernel does not count

	heap float64 // KiB in objects of its heap, when it rested last

	reexecs  int // so far
	failures int // of these
}

// newDaemon makes the directories of a daemon.
func newDaemon(who string) (*daemon, error) {
	dir, err := os.MkdirTemp("", "vmlockd-bench-")
	if err != nil {
		return nil, err
	}
	state, err := os.MkdirTemp(memoryDir(), "vmlockd-bench-")
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return &daemon{who: who, dir: dir, state: state}, nil
}

// memoryDir is on a tmpfs, as /run is, where the daemons have their state.
func memoryDir() string {
	const shm = "/dev/shm"
	var st unix.Statfs_t
	if unix.Statfs(shm, &st) == nil && st.Type == unix.TMPFS_MAGIC && unix.Access(shm, unix.W_OK) == nil {
		return shm
	}
	return ""
}

// newVmlockd starts a vmlockd, by this command, with further lines in its
// configuration.
func newVmlockd(ctx context.Context, who, backend string, command []string, lines string) (*daemon, error) {
	d, err := newDaemon(who)
	if err != nil {
		return nil, err
	}
	d.socket = filepath.Join(d.state, "sock")
	config := filepath.Join(d.state, "vmlockd.toml")
	text := fmt.Sprintf("backend = %q\nsocket = %q\nrun_dir = %q\n%s", backend, d.socket, filepath.Join(d.state, "run"), lines)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, errors.Join(err, d.close())
	}
	d.args = append(slices.Clone(command), "--config", config)
	if err := d.listen(); err != nil {
		return nil, errors.Join(err, d.close())
	}
	if _, err := d.start(ctx); err != nil {
		return nil, errors.Join(err, d.close())
	}
	if backend == "local" {
		if d.holder, err = d.waitForHolder(ctx); err != nil {
			return nil, errors.Join(err, d.close())
		}
	}
	return d, nil
}

// waitForHolder returns the holder of a vmlockd, which serves before its holder runs. What
// it uses is counted with the daemon's.
func (d *daemon) waitForHolder(ctx context.Context) (pid int, err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	again := time.NewTicker(time.Millisecond)
	defer again.Stop()
	for {
		// The name may be cut to the 15 bytes that the kernel keeps.
		if pid = childCalled(d.cmd.Process.Pid, "vmlockd-holder"); pid != 0 {
			return pid, nil
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return 0, fmt.Errorf("%s has no holder: %w", d.who, ctx.Err())
		}
	}
}

const whoVirtlockd = "virtlockd"

const virtlockdPath = "/usr/sbin/virtlockd"

// newVirtlockd starts Debian's virtlockd.
func newVirtlockd(ctx context.Context) (*daemon, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("virtlockd beside vmlockd: it takes root to give it a /run of its own")
	}
	if _, err := os.Stat(virtlockdPath); err != nil {
		return nil, fmt.Errorf("virtlockd beside vmlockd: %w; Debian has it in libvirt-daemon", err)
	}
	d, err := newDaemon(whoVirtlockd)
	if err != nil {
		return nil, err
	}
	run, conf := filepath.Join(d.state, "libvirt"), filepath.Join(d.state, "virtlockd.conf")
	err = errors.Join(os.Mkdir(run, 0o700),
		os.WriteFile(conf, fmt.Appendf(nil, "log_outputs=\"3:file:%s\"\nmax_clients=2000\n", filepath.Join(d.state, "virtlockd.log")), 0o600))
	if err != nil {
		return nil, errors.Join(err, d.close())
	}
	d.socket = filepath.Join(run, "virtlockd-sock")
	d.args = []string{"unshare", "--mount", "/bin/sh", "-ec",
		`mount -t tmpfs none /run; mkdir /run/libvirt; mount --bind "$1" /run/libvirt; exec "$2" -f "$3" -p "$4"`,
		"sh", run, virtlockdPath, conf, filepath.Join(d.state, "pid")}
	if _, err := d.start(ctx); err != nil {
		return nil, errors.Join(err, d.close())
	}
	return d, nil
}

// start starts the daemon, and returns when and how long after its start it has
// answered the first request.
func (d *daemon) start(ctx context.Context) (took time.Duration, err error) {
	// A file, as the holder must not keep a pipe of this program open.
	log, err := os.OpenFile(d.logFile(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return 0, err
	}
	defer log.Close()
	d.cmd = exec.Command(d.args[0], d.args[1:]...)
	d.cmd.Stdout, d.cmd.Stderr = log, log
	if d.ready != nil {
		d.cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+d.readySocket())
		select {
		case <-d.ready: // of a restart in place
		default:
		}
	}
	begin := time.Now()
	if d.ended, err = spawn(d.cmd); err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	err = d.waitReady(ctx)
	if err == nil {
		err = d.answers(ctx)
	}
	if err != nil {
		return 0, fmt.Errorf("%s does not answer: %w\n%s", d.who, err, tail(read(d.logFile())))
	}
	d.took = time.Since(begin)
	return d.took, nil
}

func (d *daemon) logFile() string { return filepath.Join(d.state, "log") }

func (d *daemon) readySocket() string { return filepath.Join(d.state, "ready") }

// listen receives all that the daemon says about itself (sd_notify(3)), also
// after restarts in place: it would wait for the room when there is none left.
func (d *daemon) listen() error {
	var err error
	d.notices, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: d.readySocket(), Net: "unixgram"})
	if err != nil {
		return err
	}
	d.ready = make(chan struct{}, 1)
	go func() {
		b := make([]byte, 4096)
		for {
			n, err := d.notices.Read(b)
			if err != nil {
				return
			}
			if strings.Contains(string(b[:n]), "READY=1") {
				select {
				case d.ready <- struct{}{}:
				default:
				}
			}
		}
	}()
	return nil
}

// waitReady waits until the daemon says that it serves. Trying all the time would
// take processor time away from it, in a node most of it.
func (d *daemon) waitReady(ctx context.Context) error {
	if d.ready == nil {
		return nil
	}
	select {
	case <-d.ready:
		return nil
	case <-d.ended:
		return errors.New("it has ended")
	case <-ctx.Done():
		return ctx.Err()
	}
}

// answers waits for the answer to a request that changes nothing.
func (d *daemon) answers(ctx context.Context) error {
	again := time.NewTicker(time.Millisecond)
	defer again.Stop()
	for {
		c, err := lockprogram.Dial(ctx, d.socket)
		if err == nil {
			err = c.CreateLockspace(ctx, "")
			c.Close()
		}
		if err == nil {
			return nil
		}
		select {
		case <-again.C:
		case <-d.ended:
			return fmt.Errorf("it has ended: %v", d.cmd.ProcessState)
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		}
	}
}

// tail is the end of a log, without what every lock leaves there.
func tail(text string) string {
	const most = 20000
	var b strings.Builder
	for line := range strings.Lines(text) {
		if !strings.Contains(line, "lock granted") && !strings.Contains(line, "lock released") {
			b.WriteString(line)
		}
	}
	text = b.String()
	return text[max(0, len(text)-most):]
}

// kill kills the daemon and waits for its end. Its holder lives on.
func (d *daemon) kill() {
	if d.cmd == nil || d.cmd.Process == nil || d.ended == nil {
		return
	}
	_ = d.cmd.Process.Signal(syscall.SIGKILL)
	<-d.ended
}

// close ends the daemon and its holder and removes what they have written.
func (d *daemon) close() error {
	if d == nil {
		return nil
	}
	d.kill()
	if d.holder != 0 { // it is this program's child since the daemon's end, or a zombie
		_ = unix.Kill(d.holder, unix.SIGKILL)
		_, _ = unix.Wait4(d.holder, nil, 0, nil)
	}
	if d.notices != nil {
		d.notices.Close()
	}
	return errors.Join(os.RemoveAll(d.dir), os.RemoveAll(d.state))
}

// connect opens a connection that speaks for an owner.
func (d *daemon) connect(ctx context.Context, o locking.Owner) (*lockprogram.Client, error) {
	c, err := lockprogram.Dial(ctx, d.socket)
	if err != nil {
		return nil, err
	}
	if err := c.Register(ctx, o); err != nil {
		c.Close()
		return nil, fmt.Errorf("%s: register: %w", d.who, err)
	}
	return c, nil
}

// disk is the name of the n-th thing to lock.
func (d *daemon) disk(n int) string { return filepath.Join(d.dir, fmt.Sprintf("disk%05d", n)) }

// pids are its processes.
func (d *daemon) pids() []int {
	list := []int{d.cmd.Process.Pid}
	if d.holder != 0 {
		list = append(list, d.holder)
	}
	return list
}

// isPeer says that it is no vmlockd.
func (d *daemon) isPeer() bool { return d.who == whoVirtlockd || d.who == whoEmpty }
