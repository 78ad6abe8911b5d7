package crash_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/lockprogram"
	"github.com/vmlockd/vmlockd/internal/rpc"
	"github.com/vmlockd/vmlockd/lab"
)

func asExit(err error, e **exec.ExitError) bool { return errors.As(err, e) }

// world is a daemon's surroundings: its directory, and the names it locks.
type world struct {
	program, dir, socket, config string
	names                        []string
	space                        string // the lockspace of the names; "" is the default one
	flags                        uint32 // of each acquire
	steps                        []step // what owners do in a round
	first                        string // environment of the first daemon, where a round is about the next one
	killed                       func() // looks at what a daemon left that was killed in its work; may be nil
}

// newLeaseWorld is a world in which locks are on empty files in a directory of their own,
// which are made and removed with the locks.
func newLeaseWorld(t *testing.T, program string) *world {
	w := newWorld(t, program)
	w.space, w.flags = filepath.Join(w.dir, "leases"), lockprogram.FlagAutocreate
	for i := range w.names {
		w.names[i] = fmt.Sprintf("lease%d", i)
	}
	return w
}

func (w *world) ref(name string) locking.Ref { return locking.Ref{Lockspace: w.space, Name: name} }

// makeAndDelete is what virtlockd's clients may do, and libvirt does not. The daemon may
// end meanwhile.
func (w *world) makeAndDelete(v *vm) {
	_, _ = w.call(v.owner, func(ctx context.Context, c *lockprogram.Client) error {
		if err := c.CreateResource(ctx, w.ref("spare")); err != nil {
			return err
		}
		return c.DeleteResource(ctx, w.ref("spare"))
	})
}

// path is the file that is locked for a name.
func (w *world) path(name string) string {
	if w.space == "" {
		return name
	}
	return filepath.Join(w.space, name)
}

func newWorld(t *testing.T, program string) *world {
	t.Helper()
	dir := t.TempDir()
	w := &world{steps: workload, program: program, dir: dir, socket: filepath.Join(dir, "sock"), config: filepath.Join(dir, "vmlockd.toml")}
	text := fmt.Sprintf("socket = %q\nrun_dir = %q\naudit_log = %q\n", w.socket, filepath.Join(dir, "run"), filepath.Join(dir, "audit.log"))
	if inside() {
		// Without a guard: after each kill it would prove first that its host is in the
		// cluster, which takes longer than all else of a round. tests/guard kills one with it.
		text = "backend = \"cluster\"\nguard.mode = \"off\"\n" + text
	}
	if err := os.WriteFile(w.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for i := range 4 {
		name := filepath.Join(dir, fmt.Sprintf("disk%d", i))
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		w.names = append(w.names, name)
	}
	return w
}

// daemon is one run of the program.
type daemon struct {
	cmd     *exec.Cmd
	logPath string
	out     bytes.Buffer  // the log, once done is closed
	done    chan struct{} // closed when it has ended
	err     error         // of Wait, once done is closed
}

// start runs the daemon and returns when it serves, or has ended.
func (w *world) start(t *testing.T, env string) *daemon {
	t.Helper()
	d := &daemon{cmd: exec.Command(w.program, "--config", w.config), done: make(chan struct{})}
	// Its output goes through a file: the process that keeps descriptors must not
	// keep a pipe of this test open.
	log, err := os.CreateTemp(w.dir, "log")
	if err != nil {
		t.Fatal(err)
	}
	d.cmd.Stdout, d.cmd.Stderr, d.logPath = log, log, log.Name()
	d.cmd.Env = os.Environ()
	if env != "" {
		d.cmd.Env = append(d.cmd.Env, env)
	}
	os.Remove(w.socket)
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		d.err = d.cmd.Wait()
		text, _ := os.ReadFile(log.Name())
		d.out.Write(text)
		log.Close()
		close(d.done)
	}()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	err = lab.WaitFor(ctx, "the daemon to answer", func(ctx context.Context) (bool, error) {
		if d.ended() {
			return true, nil
		}
		c, err := lockprogram.Dial(ctx, w.socket)
		if err != nil {
			return false, nil
		}
		defer c.Close()
		return c.CreateLockspace(ctx, w.space) == nil, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if !inside() {
		return d
	}
	// It serves after 3 s at most, and refuses everything until it has joined the lockspace.
	err = lab.WaitFor(ctx, "the daemon to join the lockspace", func(context.Context) (bool, error) {
		return d.ended() || strings.Contains(d.log(t), "joined the DLM lockspace"), nil
	})
	if err != nil {
		t.Fatalf("%v\n%s", err, d.log(t))
	}
	return d
}

func (d *daemon) ended() bool {
	select {
	case <-d.done:
		return true
	default:
		return false
	}
}

// stop ends it in order and waits.
func (d *daemon) stop(t *testing.T) {
	t.Helper()
	d.cmd.Process.Signal(os.Interrupt)
	select {
	case <-d.done:
	case <-time.After(time.Minute):
		t.Fatal("the daemon does not stop")
	}
}

// vm is an owner: a process that does nothing.
type vm struct {
	cmd   *exec.Cmd
	owner locking.Owner
}

func newVM(t *testing.T, n int) *vm {
	t.Helper()
	v := &vm{cmd: exec.Command("sleep", "600")}
	if err := v.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(v.end)
	v.owner = locking.Owner{PID: int32(v.cmd.Process.Pid), ID: 1, Name: fmt.Sprintf("vm%d", n), UUID: [16]byte{byte(n)}}
	return v
}

func (v *vm) end() {
	v.cmd.Process.Kill()
	v.cmd.Wait()
}

// call does one request in the name of an owner on a connection of its own, as
// libvirt does. known says that the daemon has answered.
func (w *world) call(o locking.Owner, f func(context.Context, *lockprogram.Client) error) (known bool, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	c, err := lockprogram.Dial(ctx, w.socket)
	if err != nil {
		return false, err
	}
	defer c.Close()
	if err = c.Register(ctx, o); err == nil {
		err = f(ctx, c)
	}
	var answer *rpc.Error
	return err == nil || errors.As(err, &answer), err
}

func (w *world) acquire(v *vm, name string, flags uint32) (known bool, err error) {
	return w.call(v.owner, func(ctx context.Context, c *lockprogram.Client) error {
		return c.Acquire(ctx, w.ref(name), flags|w.flags)
	})
}

func (w *world) release(v *vm, name string) (known bool, err error) {
	return w.call(v.owner, func(ctx context.Context, c *lockprogram.Client) error {
		return c.Release(ctx, w.ref(name))
	})
}
