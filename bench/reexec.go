package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/vmlockd/vmlockd/internal/locking"
)

const (
	// settling is how long a client calls before and after the restart in place.
	settling = 300 * time.Millisecond
	// unanswered is how long it waits for an answer before it takes it for lost.
	unanswered = 10 * time.Second
)

var errNotRestarted = errors.New("it was not restarted in place in time")

var errNoAnswer = errors.New("a call under way during a restart in place was never answered")

// reexecRound adds one restart in place to the rows. That virtlockd sometimes does
// not answer at all is a note; of vmlockd it is an error.
func reexecRound(ctx context.Context, s *series, d *daemon, o locking.Owner, count, round int) error {
	what := fmt.Sprintf("longest wait of an open client, re-exec with %d locks", count)
	const without = "the same client's longest wait without a re-exec, all counts"
	lost, failed := 0, 0
	for {
		// A name of its own, as the lock of a call without an answer may be held.
		d.reexecs++
		ref := locking.Ref{Name: d.disk(1_000_000 + d.reexecs)} // none of those that are held
		longest, before, err := d.reexec(ctx, o, ref)
		if errors.Is(err, errNoAnswer) && d.isPeer() && lost < 5 {
			lost++
			continue
		}
		if errors.Is(err, errNotRestarted) && d.failures < 3 {
			d.failures++
			if err := d.dump(ctx); err != nil {
				return err
			}
			failed++
			continue
		}
		if err != nil {
			return err
		}
		row := s.addTime(what, d.who, longest)
		if failed > 0 {
			row.Note += fmt.Sprintf("round %d: %d signals before it did not lead to a restart within %v, and are not in the figures; ", round+1, failed, unanswered)
		}
		if lost > 0 {
			row.Note += fmt.Sprintf("round %d: %d restarts in place before it left the client without any answer for %v, and are not in the figures; ",
				round+1, lost, unanswered)
		}
		if count == 10000 && !d.isPeer() {
			row.Goal = "100 ms"
		}
		s.addTime(without, d.who, before)
		return nil
	}
}

// pause is between the calls of the client. Without one, virtlockd has a call under
// way at almost every restart in place, and loses it.
const pause = time.Millisecond

// reexec returns how long a client with an open connection, which takes a lock and
// gives it back all the time, waits for an answer at most: during a restart in
// place, and just before.
func (d *daemon) reexec(ctx context.Context, o locking.Owner, ref locking.Ref) (longest, before time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*unanswered)
	defer cancel()
	c, err := d.connect(ctx, o)
	if err != nil {
		return 0, 0, err
	}
	defer c.Close()
	watchdog := time.AfterFunc(unanswered, func() { c.Close() })
	defer watchdog.Stop()
	if err := os.WriteFile(ref.Name, nil, 0o600); err != nil {
		return 0, 0, err
	}
	pid := d.cmd.Process.Pid
	old := incarnation(pid)
	begin := time.Now()
	tick := time.NewTicker(pause)
	defer tick.Stop()
	var signalled, executed time.Time
	for executed.IsZero() || time.Since(executed) < settling {
		for _, call := range []func() error{
			func() error { return c.Acquire(context.WithoutCancel(ctx), ref, 0) },
			func() error { return c.Release(context.WithoutCancel(ctx), ref) },
		} {
			<-tick.C
			asked := time.Now()
			err := call()
			took := time.Since(asked)
			if err != nil {
				if took > unanswered/2 {
					err = errNoAnswer
				}
				return 0, 0, fmt.Errorf("%s: a client across a restart in place: %w", d.who, err)
			}
			longest = max(longest, took)
		}
		watchdog.Reset(unanswered)
		switch {
		case signalled.IsZero() && time.Since(begin) > settling:
			before, longest = longest, 0
			if err := d.cmd.Process.Signal(syscall.SIGUSR1); err != nil {
				return 0, 0, err
			}
			signalled = time.Now()
		case !signalled.IsZero() && executed.IsZero() && incarnation(pid) != old:
			executed = time.Now()
		case !signalled.IsZero() && executed.IsZero() && time.Since(signalled) > unanswered:
			return 0, 0, errNotRestarted
		}
	}
	return longest, before, nil
}

// dump makes the daemon print what it does and end, and starts it again.
func (d *daemon) dump(ctx context.Context) error {
	if err := d.cmd.Process.Signal(syscall.SIGQUIT); err != nil {
		return err
	}
	<-d.ended
	fmt.Fprintf(os.Stderr, "%s: %v; what it did instead:\n%s\n", d.who, errNotRestarted, tail(read(d.logFile())))
	_, err := d.start(ctx)
	return err
}
