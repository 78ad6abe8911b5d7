package lab_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/lab"
)

func testExec(t *testing.T, l *lab.Lab) {
	ctx := within(t, soon)
	n := l.Node(2)
	res, err := n.Exec(ctx, "sh", "-c", "hostname; pwd; echo oops >&2; exit 3")
	ok(t, err)
	if res.Stdout != "node2\n/\n" || res.Stderr != "oops\n" || res.Status != 3 || res.OK() {
		t.Errorf("%v", res)
	}
	if res, err = n.Shell(ctx, "kill -9 $$"); err != nil || res.Status != 128+9 {
		t.Errorf("killed by a signal: %v, %v", res, err)
	}
	if _, err = n.Exec(ctx, "no-such-program"); !errors.Is(err, lab.ErrNotRunnable) {
		t.Errorf("program that is not there: %v", err)
	}
	res, err = n.Run(ctx, lab.Cmd{Args: []string{"sh", "-c", "cat; echo $X; pwd"}, Env: []string{"X=y"}, Dir: "/tmp", Stdin: []byte("in\n")})
	ok(t, err)
	if res.Stdout != "in\ny\n/tmp\n" {
		t.Errorf("%v", res)
	}
	res, err = n.Run(ctx, lab.Cmd{Args: []string{"head", "-c", "100000", "/dev/zero"}, MaxOutput: 1000})
	ok(t, err)
	if len(res.Stdout) != 1000 || !res.Truncated || !res.OK() {
		t.Errorf("%d bytes of output, truncated %v, status %d", len(res.Stdout), res.Truncated, res.Status)
	}

	// What is abandoned is killed, with its children.
	patient, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if _, err := n.Shell(patient, "sleep 12345 & sleep 12345"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("abandoned command: %v", err)
	}
	ok(t, lab.WaitFor(ctx, "the abandoned command to be killed", func(ctx context.Context) (bool, error) {
		res, err := n.Exec(ctx, "pgrep", "-f", "^sleep 12345")
		return res.Status == 1, err
	}))
	// A daemon that keeps the output open does not keep the command.
	_, err = n.MustSucceed(ctx, "sh", "-c", "setsid sleep 300 &")
	ok(t, err)
}

func testProcesses(t *testing.T, l *lab.Lab) {
	ctx := within(t, soon)
	n := l.Node(1)
	p, err := n.Start(ctx, "talker", "sh", "-c", "trap 'exit 7' TERM; echo hello; while :; do sleep 0.1; done")
	ok(t, err)
	ok(t, lab.WaitFor(ctx, "its log", func(ctx context.Context) (bool, error) {
		b, err := p.Log(ctx)
		return string(b) == "hello\n", err
	}))
	if _, err := n.Start(ctx, "talker", "true"); !errors.Is(err, lab.ErrState) {
		t.Errorf("second start under one name: %v", err)
	}
	st, err := p.Status(ctx)
	ok(t, err)
	if st.State != lab.ProcessRunning || st.PID == 0 {
		t.Errorf("%+v", st)
	}
	ok(t, p.Stop(ctx))
	ok(t, p.Stop(ctx)) // twice is no error
	st, err = p.Wait(ctx)
	ok(t, err)
	if st.State != lab.ProcessExited || st.Status != 7 {
		t.Errorf("after Stop: %+v", st)
	}
	ok(t, p.Start(ctx))
	ok(t, p.Kill(ctx))
	st, err = p.Status(ctx)
	ok(t, err)
	if st.Status != 128+9 || st.Starts != 2 {
		t.Errorf("after Kill: %+v", st)
	}
	if _, err := n.Start(ctx, "nothing", "no-such-program"); !errors.Is(err, lab.ErrNotRunnable) {
		t.Errorf("program that is not there: %v", err)
	}
	if _, err := n.Service("unknown").Status(ctx); !errors.Is(err, lab.ErrNotFound) {
		t.Errorf("unknown process: %v", err)
	}
}

func testFiles(t *testing.T, l *lab.Lab) {
	ctx := within(t, soon)
	one, two := l.Node(1), l.Node(2)
	// From here to the nodes, and between them.
	ok(t, os.WriteFile(filepath.Join(l.Shared(), "a"), []byte("here"), 0o644))
	b, err := one.ReadFile(ctx, lab.SharedDir+"/a")
	ok(t, err)
	if string(b) != "here" {
		t.Errorf("read %q", b)
	}
	ok(t, one.WriteFile(ctx, lab.SharedDir+"/a", []byte("one"), 0o600))
	b, err = two.ReadFile(ctx, lab.SharedDir+"/a")
	ok(t, err)
	if string(b) != "one" {
		t.Errorf("node 2 read %q", b)
	}
	b, err = os.ReadFile(filepath.Join(l.Shared(), "a"))
	ok(t, err)
	if string(b) != "one" {
		t.Errorf("read %q here", b)
	}
	// Private means private.
	ok(t, one.WriteFile(ctx, lab.PrivateDir+"/p", []byte("1"), 0o600))
	if _, err := two.ReadFile(ctx, lab.PrivateDir+"/p"); !errors.Is(err, lab.ErrNotFound) {
		t.Errorf("the other's private file: %v", err)
	}
	// A node's own files do not reach this machine.
	ok(t, one.WriteFile(ctx, "/etc/lab-test-was-here", nil, 0o600))
	if _, err := os.Stat("/etc/lab-test-was-here"); err == nil {
		t.Error("a file of the node is on this machine")
	}
	// The device is one for all, without a cache between.
	_, err = one.MustSucceed(ctx, "sh", "-c", "echo device | dd of="+lab.Device+" bs=4096 conv=sync oflag=direct")
	ok(t, err)
	res, err := two.MustSucceed(ctx, "sh", "-c", "dd if="+lab.Device+" bs=4096 count=1 iflag=direct | head -c 7")
	ok(t, err)
	if strings.TrimSpace(res.Stdout) != "device" {
		t.Errorf("%v", res)
	}
	// Record locks end at the node's border: this is why vmlockd exists.
	p, err := one.Start(ctx, "locker", "flock", lab.SharedDir+"/a", "sleep", "1000")
	ok(t, err)
	ok(t, lab.WaitFor(ctx, "the lock", func(ctx context.Context) (bool, error) {
		res, err := one.Exec(ctx, "flock", "--nonblock", lab.SharedDir+"/a", "true")
		return res.Status == 1, err
	}))
	_, err = two.MustSucceed(ctx, "flock", "--nonblock", lab.SharedDir+"/a", "true")
	ok(t, err)
	ok(t, p.SignalGroup(ctx, 9))

	ok(t, l.Install("greet", "/bin/echo"))
	res, err = two.MustSucceed(ctx, "greet", "hi")
	ok(t, err)
	if res.Stdout != "hi\n" {
		t.Errorf("%v", res)
	}
}
