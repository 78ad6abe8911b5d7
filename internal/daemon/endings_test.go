package daemon

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/internal/failpoint"
	"github.com/vmlockd/vmlockd/internal/fakeclock"
	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/locking/locktest"
	"github.com/vmlockd/vmlockd/internal/lockprogram"
	"github.com/vmlockd/vmlockd/internal/logs/logstest"
	"github.com/vmlockd/vmlockd/internal/owner"
	"github.com/vmlockd/vmlockd/internal/testenv"
)

// deafEnv has the socket and the disk that a deaf owner is to use.
const deafEnv = "VMLOCKD_TEST_DEAF"

// deafOwner is what a process of this program does in which deafEnv is set: it takes a
// lock on a connection of its own, closes that when it is told to, and ignores SIGTERM.
func deafOwner() {
	socket, disk, ok := strings.Cut(os.Getenv(deafEnv), "\n")
	if !ok {
		return
	}
	signal.Ignore(syscall.SIGTERM)
	ctx, cancel := context.WithTimeout(context.Background(), logstest.Patience)
	defer cancel()
	c, err := lockprogram.Dial(ctx, socket)
	if err == nil {
		err = c.Register(ctx, locking.Owner{PID: int32(os.Getpid()), ID: 1, Name: "deaf"})
	}
	if err == nil {
		err = c.Acquire(ctx, locking.Ref{Name: disk}, 0)
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("has it")
	in := bufio.NewReader(os.Stdin)
	_, _ = in.ReadString('\n')
	c.Close()
	_, _ = io.Copy(io.Discard, in) // until the test ends
	os.Exit(0)
}

// deaf starts an owner of the disk; hangUp makes it close its connection.
func (s *served) deaf(disk string) (cmd *exec.Cmd, hangUp func()) {
	s.t.Helper()
	cmd = exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), deafEnv+"="+s.socket+"\n"+disk)
	in, err := cmd.StdinPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = cmd.Process.Kill() })
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "has it\n" {
		s.t.Fatalf("the owner says %q, error %v", line, err)
	}
	return cmd, func() {
		s.t.Helper()
		if _, err := io.WriteString(in, "close\n"); err != nil {
			s.t.Fatal(err)
		}
	}
}

// wasKilled waits for its end.
func wasKilled(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	kill := time.AfterFunc(logstest.Patience, func() { _ = cmd.Process.Signal(syscall.SIGQUIT) })
	defer kill.Stop()
	_ = cmd.Wait()
	if status := cmd.ProcessState.Sys().(syscall.WaitStatus); !status.Signaled() || status.Signal() != syscall.SIGKILL {
		t.Errorf("the owner ended with %v, want SIGKILL", cmd.ProcessState)
	}
}

// TestReplacedWhileAnOwnerIsBeingEnded: the new program has no connection of that owner and
// would not end it.
func TestReplacedWhileAnOwnerIsBeingEnded(t *testing.T) {
	s := build(t)
	disk := s.disk("web.img")
	s.start()
	cmd, hangUp := s.deaf(disk)
	hangUp()
	s.event("owner-ending")
	s.signal(syscall.SIGUSR1)
	wasKilled(t, cmd)
	if f := s.event("lock-released-gone"); f["VMLOCKD_NAME"] != disk {
		t.Errorf("%v", f)
	}
	if f := s.event("daemon-ready"); f["VMLOCKD_RESTARTED"] != "true" {
		t.Errorf("it was not replaced then: %v", f)
	}
	if err := s.try(vm(t).Process.Pid, "next", disk); err != nil {
		t.Error(err)
	}
}

// TestStoppedWhileAnOwnerIsBeingEnded: nobody is left to end it afterwards. What it held is
// given back, so that the daemon leaves nothing behind.
func TestStoppedWhileAnOwnerIsBeingEnded(t *testing.T) {
	s := build(t)
	disk := s.disk("web.img")
	s.start()
	cmd, hangUp := s.deaf(disk)
	hangUp()
	s.event("owner-ending")
	s.signal(syscall.SIGTERM)
	wasKilled(t, cmd)
	released := false
	for event := ""; event != "daemon-stopped"; {
		event = s.journal.Next(t)["VMLOCKD_EVENT"]
		released = released || event == "lock-released-gone"
		if event == "stopped-holding" {
			t.Error("it stopped with the lock")
		}
	}
	_ = s.cmd.Wait()
	if !released || !isFree(t, disk) {
		t.Errorf("released %v, free %v", released, isFree(t, disk))
	}
}

// TestKilledWhileAnOwnerIsBeingEnded: nobody goes on with that, and the owner looks like all
// others. That the next programs say so is all they do.
func TestKilledWhileAnOwnerIsBeingEnded(t *testing.T) {
	s := build(t)
	disk := s.disk("web.img")
	t.Setenv(failpoint.Variable, endingNoted.Name())
	s.start()
	t.Setenv(failpoint.Variable, "")
	cmd, hangUp := s.deaf(disk)
	hangUp()
	_ = s.cmd.Wait()
	says := func() {
		t.Helper()
		f := s.event("owner-end-failed")
		if f["VMLOCKD_PID"] != fmt.Sprint(cmd.Process.Pid) || f["VMLOCKD_OWNER"] != "deaf" || !strings.Contains(f["VMLOCKD_REASON"], "earlier") {
			t.Errorf("%v", f)
		}
		s.event("daemon-ready")
	}
	s.launch()
	says()
	s.signal(syscall.SIGUSR1)
	says()
	if isFree(t, disk) {
		t.Error("its lock is gone")
	}
	_ = cmd.Process.Kill()
	s.event("lock-released-gone")
	_ = cmd.Wait()
	s.signal(syscall.SIGUSR1)
	for event := ""; event != "daemon-ready"; {
		if event = s.journal.Next(t)["VMLOCKD_EVENT"]; event == "owner-end-failed" {
			t.Error("it is still said")
		}
	}
	if _, err := os.Stat(filepath.Join(s.dir, "run", endingsName)); err == nil {
		t.Error("it is still noted")
	}
}

// TestOwnerThatDoesNotEndHoldsUpNobody: one in state D, which no signal ends, keeps its
// locks, and the daemon goes on without it and says so.
func TestOwnerThatDoesNotEndHoldsUpNobody(t *testing.T) {
	fakeclock.Test(t, func(t *testing.T) {
		ps := locktest.NewProcesses(t)
		m := locking.New(locking.Options{Backend: locktest.NewBackend(t), Processes: ps})
		var log testenv.Log
		i := &instance{log: slog.New(slog.NewTextHandler(&log, nil)), locks: m}
		i.awaitEndings(t.Context())
		if text := log.String(); text != "" {
			t.Errorf("nobody is being ended, and it says %s", text)
		}
		hung := ps.Start(7).Stubborn()
		g, err := m.Register(locking.Owner{PID: 7, ID: 1, Name: "hung"})
		if err == nil {
			err = g.Acquire(t.Context(), locking.Ref{Name: "disk"}, locking.Exclusive, true)
		}
		if err != nil {
			t.Fatal(err)
		}
		g.Disconnected()
		<-hung.Asked()
		i.awaitEndings(t.Context())
		if text := log.String(); !strings.Contains(text, "level=WARN") || !strings.Contains(text, "owners=1") {
			t.Errorf("the log: %s", text)
		}
		if !i.within("the lock table", m.Close) || len(m.Holders()) != 1 {
			t.Errorf("it is closed with %d locks; the log: %s", len(m.Holders()), log.String())
		}
	})
}

// TestTimesOfAnEnding: SIGKILL is sent before the daemon gives an owner up, and that is
// before it gives the whole table up.
func TestTimesOfAnEnding(t *testing.T) {
	if owner.TermGrace >= locking.EndPatience || locking.EndPatience >= stopTimeout {
		t.Errorf("grace %v, patience %v, for each step of stopping %v", owner.TermGrace, locking.EndPatience, stopTimeout)
	}
}
