package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vmlockd/vmlockd/corosync"
	"github.com/vmlockd/vmlockd/dlm"
	"github.com/vmlockd/vmlockd/internal/locking"
)

// again is how long a client waits after a refusal. A client without a pause would take
// the node's one processor away from those who make the recovery.
const again = 5 * time.Millisecond

// enterBare makes this node a member of the bare lockspace, which it stays.
func enterBare(ctx context.Context) error {
	space, err := dlm.Create(ctx, dlm.Host(), bareSpace, dlm.Options{})
	if err != nil {
		return err
	}
	return space.Close(ctx)
}

// taker takes locks one by one, and knows a refusal.
type taker struct {
	take    func(ctx context.Context, name string) error
	refused func(error) bool
}

// takers are as many as there are owners: connections to the node's daemon, each of an
// owner of its own, or callers of package dlm. end gives back what they have.
func takers(ctx context.Context, how string) (list []taker, end func() error, err error) {
	if how == howBare {
		space, err := dlm.Open(ctx, dlm.Host(), bareSpace, dlm.Options{})
		if err != nil {
			return nil, nil, err
		}
		var mu sync.Mutex
		var had []*dlm.Lock
		t := taker{func(ctx context.Context, name string) error {
			l, err := space.Lock(ctx, name, dlm.EX, dlm.LockOptions{NoQueue: true, Persistent: true})
			if err == nil {
				mu.Lock()
				had = append(had, l)
				mu.Unlock()
			}
			return err
		}, func(err error) bool { return errors.Is(err, dlm.ErrBusy) }}
		return slices.Repeat([]taker{t}, owners), func() error {
			for _, l := range had {
				if err := l.Unlock(ctx); err != nil {
					return err
				}
			}
			return space.Close(ctx)
		}, nil
	}
	vms, err := newVMs(owners)
	if err != nil {
		return nil, nil, err
	}
	d := &daemon{who: whoDaemon, socket: nodeSocket}
	bare := context.WithoutCancel(ctx)
	for _, v := range vms {
		c, err := d.connect(ctx, v.owner)
		if err != nil {
			endAll(vms)
			return nil, nil, err
		}
		list = append(list, taker{func(_ context.Context, name string) error {
			return c.Acquire(bare, locking.Ref{Name: name}, 0)
		}, refused})
	}
	// The daemon gives back what the dead have.
	return list, func() error { endAll(vms); return nil }, nil
}

// nameOf is the n-th lock of a round, from 0.
func nameOf(round string, n int) string { return fmt.Sprintf("bench-%s-%05d", round, n) }

// takeAll has them take the locks of a round. first is called once, after the first
// one; a refusal is an error unless patient.
func takeAll(ctx context.Context, list []taker, name string, patient bool, first func()) (refusals int64, err error) {
	var next, refusedTimes atomic.Int64
	var once sync.Once
	errs := make([]error, len(list))
	var wg sync.WaitGroup
	for i, t := range list {
		wg.Go(func() {
			for n := next.Add(1) - 1; n < int64(*recoveryLocks); n = next.Add(1) - 1 {
				if errs[i] = t.takeOne(ctx, nameOf(name, int(n)), patient, &refusedTimes); errs[i] != nil {
					return
				}
				once.Do(first)
			}
		})
	}
	wg.Wait()
	return refusedTimes.Load(), errors.Join(errs...)
}

func (t taker) takeOne(ctx context.Context, name string, patient bool, refusals *atomic.Int64) error {
	for {
		err := t.take(ctx, name)
		if err == nil || !patient || !t.refused(err) {
			return err
		}
		refusals.Add(1)
		select {
		case <-time.After(again):
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		}
	}
}

// fillMany takes the locks and keeps them until the node has no power.
func fillMany(ctx context.Context) error {
	list, _, err := takers(ctx, strings.TrimRight(*recoveryRound, "0123456789"))
	if err != nil {
		return err
	}
	if _, err := takeAll(ctx, list, *recoveryRound, false, func() {}); err != nil {
		return err
	}
	fmt.Println(readyLine)
	<-ctx.Done()
	return nil
}

// inherit waits for the loss of a node, and takes what it had.
func inherit(ctx context.Context) error {
	list, end, err := takers(ctx, strings.TrimRight(*recoveryRound, "0123456789"))
	if err != nil {
		return err
	}
	// What nobody holds would be had at once.
	if err := list[0].take(ctx, nameOf(*recoveryRound, *recoveryLocks-1)); !list[0].refused(err) {
		return fmt.Errorf("the last lock is not held by the other node: %w", err)
	}
	q, err := corosync.Track(ctx, corosync.Host(), corosync.Options{})
	if err != nil {
		return err
	}
	defer q.Close(context.WithoutCancel(ctx))
	fmt.Println(readyLine)
	if _, err := nextRing(ctx, q, func(r corosync.Ring) bool { return slices.Contains(r.Left, recoveryNodes) }); err != nil {
		return err
	}
	begin := time.Now()
	got := inheritance{Begin: begin}
	got.Refusals, err = takeAll(ctx, list, *recoveryRound, true, func() { got.First = time.Since(begin) })
	got.Last = time.Since(begin)
	if err != nil {
		return err
	}
	return errors.Join(end(), json.NewEncoder(os.Stdout).Encode(got))
}

// nextRing waits for a change of the ring or the quorum.
func nextRing(ctx context.Context, q *corosync.Quorum, is func(corosync.Ring) bool) (corosync.Ring, error) {
	for {
		select {
		case ev, ok := <-q.Events():
			if !ok {
				return corosync.Ring{}, errors.New("corosync tells nothing any more")
			}
			switch ev := ev.(type) {
			case corosync.Ring:
				if is(ev) {
					return ev, nil
				}
			case corosync.Down:
				return corosync.Ring{}, fmt.Errorf("corosync: %w", ev.Err)
			}
		case <-ctx.Done():
			return corosync.Ring{}, ctx.Err()
		}
	}
}

// awaitQuorum measures how long after the return of quorum a lock is had, both ways at
// the same time.
func awaitQuorum(ctx context.Context) error {
	q, err := corosync.Track(ctx, corosync.Host(), corosync.Options{})
	if err != nil {
		return err
	}
	defer q.Close(context.WithoutCancel(ctx))
	hows := map[string]string{whoDaemon: howDaemon, whoBare: howBare}
	lists := map[string]taker{}
	for who, how := range hows {
		list, end, err := takers(ctx, how)
		if err != nil {
			return err
		}
		defer func() { _ = end() }()
		lists[who] = list[0]
	}
	fmt.Println(readyLine)
	for _, quorate := range []bool{false, true} {
		if _, err := nextRing(ctx, q, func(r corosync.Ring) bool { return r.Quorate == quorate }); err != nil {
			return err
		}
	}
	begin := time.Now()
	var mu sync.Mutex
	got, errs := map[string]time.Duration{}, []error{}
	var wg sync.WaitGroup
	for who, t := range lists {
		wg.Go(func() {
			err := t.takeOne(ctx, "bench-quorum", true, new(atomic.Int64))
			mu.Lock()
			defer mu.Unlock()
			got[who], errs = time.Since(begin), append(errs, err)
		})
	}
	wg.Wait()
	return errors.Join(errors.Join(errs...), json.NewEncoder(os.Stdout).Encode(got))
}
