package closer

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// spaceEnv is the file that has "runs" if the lockspace runs.
const spaceEnv = "VMLOCKD_TEST_LOCKSPACE"

// A closer has become one before any init of a test runs, but not before this.
var _ = func() bool {
	testEnv = func() []string { return []string{spaceEnv + "=" + os.Getenv(spaceEnv)} }
	openState = func(string) (state, error) {
		f, err := os.Open(os.Getenv(spaceEnv))
		return spaceFile{f}, err
	}
	return true
}()

type spaceFile struct{ *os.File }

func (f spaceFile) Running() (bool, error) {
	var b [4]byte
	_, err := f.ReadAt(b[:], 0)
	return string(b[:]) == "runs", err
}

// daemonEnv makes the test binary a daemon with a closer; its value is the
// run-time directory. Descriptor 3 is its device.
const daemonEnv = "VMLOCKD_TEST_CLOSER"

func TestMain(m *testing.M) {
	if dir := os.Getenv(daemonEnv); dir != "" {
		if err := daemon(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// daemon does what it is told on stdin, and says when it has.
func daemon(dir string) error {
	// A busy machine may take longer than a second to start a closer, or to end one.
	endWithin, readyWithin = time.Minute, time.Minute
	device := os.NewFile(3, "device")
	unix.CloseOnExec(3)
	before, _ := strconv.Atoi(os.Getenv("CLOSER"))
	g, err := NewGuard(dir, "space", before)
	if err != nil {
		return err
	}
	if before != 0 {
		fmt.Println(before) // nothing more of stdin is lost
	}
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		switch in.Text() {
		case "keep":
			_, err = g.Keep(device)
		case "release":
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			err = g.Release(ctx)
			cancel()
		case "dismiss":
			g.Dismiss()
		case "ask": // one request more that has no answer
			g.count.mem[0]++ // the lowest byte of the count
		case "close":
			err = device.Close()
		case "exec":
			// The device stays open in the new program, as the daemon does it.
			if _, err = unix.FcntlInt(3, unix.F_SETFD, 0); err == nil {
				err = unix.Exec("/proc/self/exe", os.Args, append(os.Environ(), fmt.Sprintf("CLOSER=%d", g.PID())))
			}
		}
		if err != nil {
			return err
		}
		fmt.Println(g.PID())
	}
	return nil
}

// run is a daemon that is run by a test.
type run struct {
	t      *testing.T
	dir    string
	cmd    *exec.Cmd
	in     *os.File
	out    *bufio.Scanner
	device *os.File // the other end of its device
	// answers is how many there were.
	answers uint64
}

func startDaemon(t *testing.T) *run {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	theirs := os.NewFile(uintptr(fds[0]), "theirs")
	defer theirs.Close()
	r := &run{t: t, dir: t.TempDir(), device: os.NewFile(uintptr(fds[1]), "ours")}
	r.cmd = exec.Command("/proc/self/exe")
	r.cmd.Env = append(os.Environ(), daemonEnv+"="+r.dir, spaceEnv+"="+filepath.Join(r.dir, "space"))
	r.space("runs")
	r.cmd.Stderr = os.Stderr
	r.cmd.ExtraFiles = []*os.File{theirs}
	inR, inW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.cmd.Stdin, r.in = inR, inW
	out, err := r.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	r.out = bufio.NewScanner(out)
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	inR.Close()
	t.Cleanup(func() {
		_ = r.cmd.Process.Kill()
		_ = r.cmd.Wait()
		r.in.Close()
		r.device.Close()
		r.wait(time.Minute, nil)
	})
	return r
}

// space says whether the lockspace runs.
func (r *run) space(text string) {
	r.t.Helper()
	if err := os.WriteFile(filepath.Join(r.dir, "space"), []byte(text), 0o600); err != nil {
		r.t.Fatal(err)
	}
}

// answer is what the kernel says about one request: struct dlm_lock_result of
// linux/dlm_device.h, version 6, with the address 1 that package dlm gives, or 2 for
// a notice.
func (r *run) answer(address uint64) {
	r.t.Helper()
	buf := make([]byte, 72)
	binary.NativeEndian.PutUint32(buf, 6)
	binary.NativeEndian.PutUint32(buf[12:], uint32(len(buf)))
	binary.NativeEndian.PutUint64(buf[16:], address)
	r.answers++
	binary.NativeEndian.PutUint64(buf[24:], r.answers) // each is about another lock
	if _, err := r.device.Write(buf); err != nil {
		r.t.Fatal(err)
	}
}

// tell returns the pid of the closer that there is then.
func (r *run) tell(what string) int {
	r.t.Helper()
	if _, err := r.in.WriteString(what + "\n"); err != nil {
		r.t.Fatal(err)
	}
	if !r.out.Scan() {
		r.t.Fatalf("%s: the daemon has ended", what)
	}
	pid, err := strconv.Atoi(r.out.Text())
	if err != nil {
		r.t.Fatal(err)
	}
	return pid
}

// ready waits until the closer has told the kernel its name, the last thing that
// it does before it waits.
func (r *run) ready(pid int) {
	r.t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		if err != nil {
			r.t.Fatal(err)
		}
		if strings.TrimSpace(string(comm)) == "vmlockd-closer" {
			return
		}
		<-tick.C
	}
}

// kill ends the daemon.
func (r *run) kill() {
	r.t.Helper()
	if err := r.cmd.Process.Kill(); err != nil {
		r.t.Fatal(err)
	}
	_ = r.cmd.Wait() // it says that it was killed
}

// wait expects an error of Wait within d.
func (r *run) wait(d time.Duration, want error) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	if err := Wait(ctx, r.dir, "space"); !errors.Is(err, want) {
		r.t.Errorf("wait: %v, want %v", err, want)
	}
}

// closed says whether nobody has the device open any more.
func (r *run) closed() bool {
	var b [1]byte
	n, err := unix.Read(int(r.device.Fd()), b[:])
	return n == 0 && err == nil
}

func TestDaemonIsKilled(t *testing.T) {
	r := startDaemon(t)
	r.wait(time.Minute, nil) // there was none before
	pid := r.tell("keep")
	r.wait(50*time.Millisecond, context.DeadlineExceeded)
	r.ready(pid)
	// It lets nobody end it that means the daemon.
	for _, s := range []unix.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGUSR1} {
		if err := unix.Kill(pid, s); err != nil {
			t.Fatal(err)
		}
	}
	if r.closed() {
		t.Error("the device is closed while the daemon lives")
	}
	r.kill()
	r.wait(time.Minute, nil)
	if !r.closed() {
		t.Error("somebody has the device open after the closer's end")
	}
}

func TestProgramIsReplaced(t *testing.T) {
	r := startDaemon(t)
	first := r.tell("keep")
	r.tell("exec")
	if r.closed() {
		t.Error("the device is closed by a restart in place")
	}
	second := r.tell("keep")
	if second == first || unix.Kill(first, 0) != unix.ESRCH {
		t.Errorf("closer %d after %d, which has not been ended", second, first)
	}
	r.wait(50*time.Millisecond, context.DeadlineExceeded)
	r.kill()
	r.wait(time.Minute, nil)
	if !r.closed() {
		t.Error("somebody has the device open")
	}
}

// A program that cannot go on with the device lets the earlier one's closer go.
func TestRelease(t *testing.T) {
	r := startDaemon(t)
	r.tell("keep")
	r.tell("exec")
	r.tell("release")
	r.wait(time.Minute, nil)
	r.tell("keep")
	r.tell("release")
	r.wait(time.Minute, nil)
}

// What the closer is for: the device stays open until the kernel has answered all
// that the daemon had asked for, and for as long as the lockspace is stopped.
func TestAnswersAreAwaited(t *testing.T) {
	r := startDaemon(t)
	pid := r.tell("keep")
	r.tell("ask")
	r.tell("ask")
	r.ready(pid)
	r.kill()
	r.wait(300*time.Millisecond, context.DeadlineExceeded)
	r.answer(1)
	r.answer(2)
	r.wait(300*time.Millisecond, context.DeadlineExceeded)
	r.space("stop")
	r.answer(1)
	r.wait(300*time.Millisecond, context.DeadlineExceeded)
	if r.closed() {
		t.Error("the device is closed")
	}
	r.space("runs")
	r.wait(time.Minute, nil)
	if !r.closed() {
		t.Error("somebody has the device open")
	}
}

// With nothing under way, or with all answered, nobody waits for long.
func TestNothingIsAwaited(t *testing.T) {
	r := startDaemon(t)
	r.ready(r.tell("keep"))
	begin := time.Now()
	r.kill()
	r.wait(time.Minute, nil)
	t.Logf("closed %v after a kill with nothing under way", time.Since(begin))
	r = startDaemon(t)
	pid := r.tell("keep")
	r.tell("ask")
	r.ready(pid)
	r.answer(1)
	begin = time.Now()
	r.kill()
	r.wait(time.Minute, nil)
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("the device was closed %v after a kill with an answer there", took)
	} else {
		t.Logf("closed %v after a kill with one answer to read", took)
	}
}

// A program that has lost the device, with requests that are not answered, lets the
// closer do its work before it goes on.
func TestDismiss(t *testing.T) {
	r := startDaemon(t)
	r.tell("keep")
	r.tell("ask")
	r.tell("exec") // as after a Close that timed out, the request is not answered
	r.tell("close")
	r.tell("dismiss")
	r.wait(300*time.Millisecond, context.DeadlineExceeded)
	if r.closed() {
		t.Error("the device is closed before the answer")
	}
	r.answer(1)
	r.wait(time.Minute, nil)
	if !r.closed() {
		t.Error("somebody has the device open")
	}
}

// A closer that is killed keeps nobody waiting.
func TestCloserIsKilled(t *testing.T) {
	r := startDaemon(t)
	pid := r.tell("keep")
	r.tell("close")
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	r.wait(time.Minute, nil)
	if !r.closed() {
		t.Error("the lock is free while the device is open")
	}
}

// Guard.Keep's channel says that a closer has ended by itself.
func TestEndedIsNoticed(t *testing.T) {
	p, err := os.StartProcess("/proc/self/exe", []string{"x", "-test.run=^$"}, &os.ProcAttr{})
	if err != nil {
		t.Fatal(err)
	}
	c := follow(p.Pid)
	select {
	case <-c.Ended():
	case <-time.After(time.Minute):
		t.Fatal("its end was not noticed")
	}
	if pid := c.PID(); pid != 0 {
		t.Errorf("pid %d, which may be another process's", pid)
	}
	c.forget()
	for _, pid := range []int{p.Pid, 0, -1, 1} { // ended, none, none, no child
		if c := Earlier(pid); c.PID() != 0 {
			t.Errorf("%d is taken for a child", pid)
		}
	}
	_ = p.Release()
}
