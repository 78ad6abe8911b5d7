package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"

	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/lockprogram"
	"github.com/vmlockd/vmlockd/internal/rpc"
)

// deathTimeout bounds the wait for the lock of an owner who has died.
const deathTimeout = 30 * time.Second

const (
	measureDeathOwn   = "owner's death to its lock granted to another, owner has a connection"
	measureDeathOther = "owner's death to its lock granted to another, owner has none"
	measureDeathNode  = "owner's death to its lock granted on the other node"
)

// death measures how long the lock of a dead owner keeps others out on this host.
// The other one tries all the time.
func death(ctx context.Context, s *series, daemons []*daemon, rounds int) error {
	progress("%s: death of owners", s.backend)
	for round := range rounds {
		for _, d := range daemons {
			took, err := deathOnce(ctx, d, round, true)
			if err != nil {
				return err
			}
			row := s.addTime(measureDeathOwn, d.who, took)
			if d.isPeer() {
				row.Note = "it ends the owner before it answers anybody else"
				continue // it never frees what an owner without a connection has
			}
			row.Goal = "100 ms"
			if took, err = deathOnce(ctx, d, round, false); err != nil {
				return err
			}
			s.addTime(measureDeathOther, d.who, took).Goal = "100 ms"
		}
	}
	return nil
}

func deathOnce(ctx context.Context, d *daemon, n int, connected bool) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, deathTimeout)
	defer cancel()
	ref := locking.Ref{Name: d.disk(n)}
	if err := os.WriteFile(ref.Name, nil, 0o600); err != nil {
		return 0, err
	}
	heir, err := newVM(n)
	if err != nil {
		return 0, err
	}
	defer heir.end()
	c, err := d.connect(ctx, heir.owner)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	var owner *vm
	if connected {
		owner, err = ownerWithConnection(d, ref, n)
	} else {
		owner, err = ownerWithout(ctx, d, ref, n)
	}
	if err != nil {
		return 0, err
	}
	defer owner.end()
	if !refused(c.Acquire(ctx, ref, 0)) {
		return 0, fmt.Errorf("%s: the lock of a living owner is not held", d.who)
	}
	begin := time.Now()
	_ = owner.cmd.Process.Kill() // waited for by the goroutine of spawn
	for {
		err := c.Acquire(ctx, ref, 0)
		if err == nil {
			break
		}
		if !refused(err) {
			return 0, fmt.Errorf("%s: %w", d.who, err)
		}
	}
	took := time.Since(begin)
	return took, c.Release(ctx, ref)
}

// refused says whether an error is the daemon's answer.
func refused(err error) bool {
	var answer *rpc.Error
	return errors.As(err, &answer)
}

// ownerWithout is an owner for which somebody else has taken the lock, as libvirtd does.
func ownerWithout(ctx context.Context, d *daemon, ref locking.Ref, n int) (*vm, error) {
	v, err := newVM(1000 + n)
	if err != nil {
		return nil, err
	}
	c, err := d.connect(ctx, v.owner)
	if err == nil {
		defer c.Close()
		err = c.Acquire(ctx, ref, 0)
	}
	if err != nil {
		v.end()
		return nil, err
	}
	return v, nil
}

// ownCommand makes this program an owner with a connection of its own, as QEMU's
// process is: ownCommand SOCKET NAME.
const ownCommand = "own-a-lock"

func ownerWithConnection(d *daemon, ref locking.Ref, n int) (*vm, error) {
	v := &vm{cmd: exec.Command("/proc/self/exe", ownCommand, d.socket, ref.Name)}
	out, err := v.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	v.cmd.Stderr = os.Stderr
	if v.stdin, err = v.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	if v.ended, err = spawn(v.cmd); err != nil {
		return nil, err
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		v.end()
		return nil, fmt.Errorf("an owner of %s said %q: %w", d.who, line, err)
	}
	return v, nil
}

// own is ownCommand. Told a line it closes its connection, and what it holds makes the daemon
// end it. It ends by SIGKILL only.
func own(socket, name string) error {
	signal.Ignore(syscall.SIGTERM)
	ctx := context.Background()
	c, err := lockprogram.Dial(ctx, socket)
	if err != nil {
		return err
	}
	if err := c.Register(ctx, ownerOf(os.Getpid(), 0)); err != nil {
		return err
	}
	if err := c.Acquire(ctx, locking.Ref{Name: name}, 0); err != nil {
		return err
	}
	fmt.Println("held")
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err == nil {
		c.Close()
	}
	time.Sleep(time.Hour) // for the signal; an hour bounds what a killed bench leaves
	return nil
}
