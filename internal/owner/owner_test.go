package owner

import (
	"bufio"
	"context"
	"errors"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/vmlockd/vmlockd/internal/locking"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func start(t *testing.T, script string) (*exec.Cmd, *bufio.Reader) {
	t.Helper()
	cmd := exec.Command("/bin/sh", "-c", script)
	cmd.Stdin, _ = os.Open("/dev/null")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	r := bufio.NewReader(out)
	if line, err := r.ReadString('\n'); err != nil {
		t.Fatalf("the child did not start: %q, %v", line, err)
	}
	return cmd, r
}

func TestGoneAfterDeath(t *testing.T) {
	cmd, _ := start(t, "echo ready; exec sleep 1000")
	p, err := open(int32(cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	select {
	case <-p.Gone():
		t.Fatal("a process that runs is said to be gone")
	default:
	}
	cmd.Process.Kill()
	<-p.Gone() // before Wait: a zombie uses no disk any more
	cmd.Wait()
	if _, err := open(int32(cmd.Process.Pid)); !errors.Is(err, locking.ErrNoProcess) {
		t.Fatalf("opening a process that has been waited for: %v", err)
	}
}

func TestEndWithTerm(t *testing.T) {
	cmd, _ := start(t, "echo ready; exec sleep 1000")
	p, err := open(int32(cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := p.End(context.Background()); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	if s := cmd.ProcessState.Sys().(syscall.WaitStatus); s.Signal() != syscall.SIGTERM {
		t.Fatalf("ended by %v, want SIGTERM", s.Signal())
	}
}

func TestEndWithKill(t *testing.T) {
	cmd, _ := start(t, "trap '' TERM; echo ready; while :; do read x < /dev/zero; done")
	p, err := open(int32(cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	begin := time.Now()
	if err := p.End(context.Background()); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took < TermGrace {
		t.Fatalf("killed after %v, before its grace of %v was over", took, TermGrace)
	}
	if TermGrace != 1600*time.Millisecond { // as virtlockd
		t.Errorf("the grace is %v", TermGrace)
	}
	cmd.Wait()
	if s := cmd.ProcessState.Sys().(syscall.WaitStatus); s.Signal() != syscall.SIGKILL {
		t.Fatalf("ended by %v, want SIGKILL", s.Signal())
	}
}

func TestEndGivesUpWithContext(t *testing.T) {
	cmd, _ := start(t, "trap '' TERM; echo ready; while :; do read x < /dev/zero; done")
	p, err := open(int32(cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := p.End(ctx); !errors.Is(err, context.Canceled) {
		t.Fatalf("End with a context that is over: %v", err)
	}
}

// over is a context that ends when the grace is over: End then finds both at once.
type over struct{ context.Context }

func (over) Done() <-chan struct{} {
	<-time.After(TermGrace)
	done := make(chan struct{})
	close(done)
	return done
}

func (over) Err() error { return context.Canceled }

// TestEndAfterALongPause: whoever gives up after the grace counts on the SIGKILL, also if this
// process did not run meanwhile. Which of two channels is looked at is chance, so there are several.
func TestEndAfterALongPause(t *testing.T) {
	var ends sync.WaitGroup
	for range 8 {
		cmd, _ := start(t, "trap '' TERM; echo ready; exec sleep 1000")
		p, err := open(int32(cmd.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		ends.Go(func() {
			_ = p.End(over{context.Background()})
			select {
			case <-p.Gone():
			case <-time.After(10 * time.Second):
				t.Error("a process was not killed")
			}
		})
	}
	ends.Wait()
}

func TestCloseDoesNotSayGone(t *testing.T) {
	cmd, _ := start(t, "echo ready; exec sleep 1000")
	p, err := open(int32(cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	p.Close()
	select {
	case <-p.Gone():
		t.Fatal("Close made a process gone that runs")
	default:
	}
	p.Close() // again is harmless
}

func TestNoProcess(t *testing.T) {
	for _, pid := range []int32{-5, 0, 1 << 30} {
		p, err := Processes{}.Open(pid)
		if p != nil || !errors.Is(err, locking.ErrNoProcess) {
			t.Errorf("Open(%d): %v, %v", pid, p, err)
		}
	}
}

func TestStartTime(t *testing.T) {
	first, _ := start(t, "echo ready; exec sleep 1000")
	p, err := open(int32(first.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	again, err := open(int32(first.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	self, err := open(int32(os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	defer self.Close()
	if p.StartTime() == 0 || p.StartTime() != again.StartTime() || p.StartTime() < self.StartTime() {
		t.Fatalf("start times: child %d and %d, self %d", p.StartTime(), again.StartTime(), self.StartTime())
	}
}
