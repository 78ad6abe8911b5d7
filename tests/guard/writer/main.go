// Command writer takes one lock from the lock daemon of its host, as libvirt would,
// and writes for as long as it runs and has not been told otherwise:
//
//	writer DIRECTORY WHO NAME [TURN]
//
// Each record is a file of its own in DIRECTORY, called WHO-NUMBER, which is new, and
// on the storage before the next one is begun. So whoever looks at the storage
// knows by its clock who wrote when, and need not believe a writer. A refusal is
// printed, and then it asks again.
//
// With TURN, a duration, it gives the lock back after that long and asks for it again,
// with 0 it keeps it, and each time that it asks begins a turn: its records are called
// WHO-TURN-NUMBER, and files WHO-TURN-asks, -held, -gives and -gave are made before and
// after it has the lock and before and after it gives it back. The first of them is made
// anew for each attempt.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/lockprogram"
	"github.com/vmlockd/vmlockd/internal/rpc"
)

const (
	socket = "/run/libvirt/virtlockd-sock"
	// pause is between two records: enough of them to see an overlap of a tenth of a
	// second, and few enough to leave the processor to others.
	pause = 50 * time.Millisecond
	// slowPause is that of a writer with turns, of which there are many.
	slowPause = 200 * time.Millisecond
	// again is between two attempts, and slowAgain those of a writer with turns.
	again     = time.Second
	slowAgain = 2 * time.Second
	// rest is between two turns: somebody else who asks gets the lock.
	rest = 2500 * time.Millisecond
)

func main() {
	if len(os.Args) != 4 && len(os.Args) != 5 {
		fmt.Fprintln(os.Stderr, "usage: writer DIRECTORY WHO NAME [TURN]")
		os.Exit(2)
	}
	w := writer{prefix: filepath.Join(os.Args[1], os.Args[2]), who: os.Args[2], ref: locking.Ref{Name: os.Args[3]}}
	if len(os.Args) == 5 {
		turn, err := time.ParseDuration(os.Args[4])
		if err != nil || turn < 0 {
			fmt.Fprintf(os.Stderr, "writer: %q is no duration, such as 5s, for how long to have the lock\n", os.Args[4])
			os.Exit(2)
		}
		w.turns, w.turn = true, turn
	}
	if err := w.run(context.Background()); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

type writer struct {
	prefix string // of the names of all files
	who    string
	ref    locking.Ref
	turns  bool
	turn   time.Duration // 0 for as long as it runs
}

func (w *writer) run(ctx context.Context) error {
	c, err := lockprogram.Dial(ctx, socket)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.Register(ctx, locking.Owner{PID: int32(os.Getpid()), ID: 1, Name: w.who, UUID: [16]byte{0xab}}); err != nil {
		return err
	}
	if !w.turns {
		if err := w.acquire(ctx, c, func() error { return nil }); err != nil {
			return err
		}
		return write(w.prefix, pause, nil)
	}
	for n := 1; ; n++ {
		if err := w.once(ctx, c, fmt.Sprintf("%s-%04d", w.prefix, n)); err != nil {
			return err
		}
		<-time.After(rest)
	}
}

// once is a turn. Any error ends the process, and with it all that it has.
func (w *writer) once(ctx context.Context, c *lockprogram.Client, prefix string) error {
	if err := w.acquire(ctx, c, func() error { return anew(prefix + "-asks") }); err != nil {
		return err
	}
	if err := anew(prefix + "-held"); err != nil {
		return err
	}
	var over <-chan time.Time
	if w.turn > 0 {
		over = time.After(w.turn)
	}
	if err := write(prefix, slowPause, over); err != nil {
		return err
	}
	if err := anew(prefix + "-gives"); err != nil {
		return err
	}
	if err := c.Release(ctx, w.ref); err != nil {
		return err
	}
	return anew(prefix + "-gave")
}

// acquire asks until it has the lock, each time after it has called before.
func (w *writer) acquire(ctx context.Context, c *lockprogram.Client, before func() error) error {
	each := again
	if w.turns {
		each = slowAgain
	}
	told := time.NewTicker(each)
	defer told.Stop()
	for {
		if err := before(); err != nil {
			return err
		}
		err := c.Acquire(ctx, w.ref, 0)
		var refused *rpc.Error
		if err == nil {
			fmt.Println("held")
			return nil
		}
		if !errors.As(err, &refused) {
			return err
		}
		fmt.Println(time.Now().UTC().Format(time.RFC3339Nano), err)
		<-told.C
	}
}

// write makes records until it is over, or for ever.
func write(prefix string, each time.Duration, over <-chan time.Time) error {
	next := time.NewTicker(each)
	defer next.Stop()
	for n := 1; ; n++ {
		if err := record(fmt.Sprintf("%s-%06d", prefix, n)); err != nil {
			return err
		}
		select {
		case <-next.C:
		case <-over:
			return nil
		}
	}
}

// anew makes an empty file of which the storage says when.
func anew(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}

func record(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if _, err = f.WriteString(time.Now().UTC().Format(time.RFC3339Nano) + "\n"); err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}
