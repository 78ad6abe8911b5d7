package admin_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/lockprogram"
)

// ownerEnv marks a process that owns a lock as QEMU's does: it is at the other end of
// the connection. Its value is the socket; the disk comes on stdin.
const ownerEnv = "VMLOCKD_ADMIN_TEST_OWNER"

// beOwner takes the lock of the disk on the first line of stdin, gives it back after
// the second, and ends after the third. It tells what is done.
func beOwner(socket string) {
	in := bufio.NewScanner(os.Stdin)
	ctx := context.Background()
	do := func(err error) {
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
	in.Scan()
	ref := locking.Ref{Name: in.Text()}
	c, err := lockprogram.Dial(ctx, socket)
	do(err)
	do(c.Register(ctx, locking.Owner{PID: int32(os.Getpid()), ID: 1, Name: "web"}))
	do(c.Acquire(ctx, ref, 0))
	fmt.Println("ok")
	in.Scan()
	do(c.Release(ctx, ref))
	fmt.Println("ok")
	in.Scan()
}

type owner struct {
	t     *testing.T
	cmd   *exec.Cmd
	in    io.WriteCloser
	out   *bufio.Reader
	ended chan struct{}
}

func newOwner(d *daemon, disk string) *owner {
	d.t.Helper()
	o := &owner{t: d.t, cmd: exec.Command("/proc/self/exe"), ended: make(chan struct{})}
	o.cmd.Env = append(os.Environ(), ownerEnv+"="+d.socket())
	o.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var err error
	if o.in, err = o.cmd.StdinPipe(); err != nil {
		d.t.Fatal(err)
	}
	out, err := o.cmd.StdoutPipe()
	if err != nil {
		d.t.Fatal(err)
	}
	o.out = bufio.NewReader(out)
	started := make(chan error)
	go func() {
		defer close(o.ended)
		runtime.LockOSThread()
		err := o.cmd.Start()
		started <- err
		if err == nil {
			_, _ = o.cmd.Process.Wait()
		}
	}()
	if err := <-started; err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() {
		_ = o.cmd.Process.Kill()
		<-o.ended
	})
	o.tell(disk)
	return o
}

func (o *owner) tell(what string) {
	o.t.Helper()
	fmt.Fprintln(o.in, what)
	if line, err := o.out.ReadString('\n'); err != nil || line != "ok\n" {
		o.t.Fatalf("the owner: %q, %v", line, err)
	}
}

func makeDisk(d *daemon) string {
	d.t.Helper()
	disk := d.file("disk")
	if err := os.WriteFile(disk, nil, 0o600); err != nil {
		d.t.Fatal(err)
	}
	return disk
}

// held is nil if somebody has the lock of the disk.
func (d *daemon) held(disk string) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := lockprogram.Dial(ctx, d.socket())
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.Register(ctx, locking.Owner{PID: int32(os.Getpid()), ID: 1, Name: "other"}); err != nil {
		return err
	}
	if err := c.Acquire(ctx, locking.Ref{Name: disk}, 0); err != nil {
		return nil
	}
	return fmt.Errorf("it was granted: %v", c.Release(ctx, locking.Ref{Name: disk}))
}

// TestOwnerIsNotDisconnected: virtlockd kills a virtual machine whose connection is
// closed so; here that is refused, until it holds nothing.
func TestOwnerIsNotDisconnected(t *testing.T) {
	virtAdmin(t)
	d := startVmlockd(t)
	disk := makeDisk(d)
	o := newOwner(d, disk)
	ids := d.clients("virtlockd")
	if len(ids) != 1 {
		t.Fatalf("clients %v", ids)
	}
	out, status := d.run("client-disconnect", "virtlockd", ids[0])
	want := fmt.Sprintf("error: Requested operation is not valid: client '%s' is not disconnected: it is the connection of virtual machine web (pid %d), which holds 1 locks and would not be safe without it; "+
		"shut that virtual machine down, or use 'vmlockctl release --force'", ids[0], o.cmd.Process.Pid)
	if status != 1 || !strings.Contains(out, want) {
		t.Errorf("status %d, %s", status, out)
	}
	if err := d.held(disk); err != nil {
		t.Error(err)
	}
	o.tell("release")
	if out := d.must("client-disconnect", "virtlockd", ids[0]); !strings.Contains(out, "disconnected") {
		t.Error(out)
	}
	d.until("it is disconnected", func() error {
		if ids := d.clients("virtlockd"); len(ids) != 0 {
			return fmt.Errorf("there are %v", ids)
		}
		return nil
	})
	if err := o.cmd.Process.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("the owner was ended: %v", err)
	}
}

// TestVirtlockdKillsWhomItDisconnects is why.
func TestVirtlockdKillsWhomItDisconnects(t *testing.T) {
	virtAdmin(t)
	d := startVirtlockd(t)
	o := newOwner(d, makeDisk(d))
	ids := d.clients("virtlockd")
	if len(ids) != 1 {
		t.Fatalf("clients %v", ids)
	}
	d.must("client-disconnect", "virtlockd", ids[0])
	select {
	case <-o.ended:
	case <-time.After(patience):
		t.Error("it lives")
	}
}
