package chaos_test

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/lab"
	"github.com/vmlockd/vmlockd/tests/stress"
)

const (
	// repaired bounds the time from the last fault until all nodes are well: one that is stuck is noticed, all of
	// them are rebooted, and what they may have held is waited out.
	repaired = stuckAfter + 4*time.Minute
)

func TestChaos(t *testing.T) {
	w := newWorld(t)
	t.Cleanup(w.explain) // before the lab's logs
	for _, d := range w.shape.disks {
		if err := os.Mkdir(w.dir(d), 0o777); err != nil {
			t.Fatal(err)
		}
		if !w.shape.vms {
			continue
		}
		if err := os.WriteFile(filepath.Join(w.dir(d), diskImage), lab.DiaryGuest(), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.allWell(2 * time.Minute); err != nil {
		t.Fatal(err)
	}
	if len(w.shape.modules) > 0 {
		var dogs sync.WaitGroup
		dogging, stopDogs := context.WithCancel(w.ctx)
		defer dogs.Wait()
		defer stopDogs()
		for _, h := range w.hosts {
			dogs.Go(func() { w.resetBySoftdog(dogging, h) })
		}
	}
	var writers, operators, faults sync.WaitGroup
	writing, stopWriters := context.WithCancel(w.ctx)
	operating, stopOperators := context.WithCancel(w.ctx)
	var end time.Time // when all was well again
	defer func() {    // also after a failure: nothing goes on, and what there is is judged
		stopWriters()
		stopOperators()
		writers.Wait()
		operators.Wait()
		if end.IsZero() {
			end = time.Now()
		}
		w.judge(end)
	}()
	for _, h := range w.hosts {
		for _, d := range w.shape.disks {
			writers.Go(func() { w.compete(writing, h, d) })
		}
	}
	w.granted(time.Now(), w.shape.again)
	w.mu.Lock()
	w.began = time.Now()
	w.mu.Unlock()
	for _, h := range w.hosts {
		operators.Go(func() { w.operate(operating, h) })
	}
	for _, f := range w.schedule {
		faults.Go(func() { w.play(f) })
	}
	faults.Wait()
	over := time.Now()
	w.note("all faults are over")

	// Everything is whole again, and who asks for a lock gets it.
	if err := w.allWell(repaired); err != nil {
		t.Fatal(err)
	}
	w.note("all nodes are well, %v after the last fault", time.Since(over).Round(time.Second))
	w.granted(time.Now(), w.shape.again)
	end = time.Now()
	stopWriters()
	writers.Wait()
	w.nothingLeft()
	w.eachOnce()
}

// granted waits until each disk that is given back has been granted since, and somebody has the other one.
func (w *world) granted(since time.Time, most time.Duration) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.ctx, most)
	defer cancel()
	for _, d := range w.shape.disks {
		after := since
		if d.turn == 0 {
			after = time.Time{}
		}
		err := lab.WaitFor(ctx, "disk "+d.name+" to be granted", func(context.Context) (bool, error) {
			holds, err := w.holds(d)
			return slices.ContainsFunc(holds, func(h hold) bool { return h.held.After(after) && (d.turn > 0 || h.to().After(since.Add(-time.Second))) }), err
		})
		if err != nil {
			w.t.Fatal(err)
		}
	}
}

// nothingLeft waits until no host has a lock, as all who had one are gone.
func (w *world) nothingLeft() {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.ctx, w.shape.again)
	defer cancel()
	for _, h := range w.hosts {
		locks := -1
		err := lab.WaitFor(ctx, "nothing to be locked for nobody", func(context.Context) (bool, error) {
			st := w.status(h)
			if st != nil {
				locks = st.Counts.Locks
			}
			return locks == 0, nil
		})
		if err != nil {
			w.t.Fatalf("%s has %d locks, and all writers are gone: %v", h.Name(), locks, err)
		}
	}
}

// eachOnce has one host get the lock of each disk, another one for each.
func (w *world) eachOnce() {
	w.t.Helper()
	const who = 1_000
	for i, d := range w.shape.disks {
		h := w.hosts[i%len(w.hosts)]
		ctx, stop := context.WithCancel(w.ctx)
		var one sync.WaitGroup
		one.Go(func() {
			if err := w.once(ctx, h, disk{d.name, 0}, who); err != nil {
				w.t.Errorf("%s: %v", h.Name(), err)
			}
		})
		wait, cancel := context.WithTimeout(w.ctx, w.shape.again)
		err := lab.WaitFor(wait, fmt.Sprintf("%s to get disk %s, which nobody has", h.Name(), d.name), func(context.Context) (bool, error) {
			holds, err := w.holds(d)
			return slices.ContainsFunc(holds, func(g hold) bool { return g.who == fmt.Sprintf("n%d-%d", h.ID(), who) }), err
		})
		cancel()
		stop()
		one.Wait()
		if err != nil {
			w.t.Fatal(err)
		}
	}
}

// judge fails the test if two have had a lock at once, and says what there was to judge until all was well.
func (w *world) judge(end time.Time) {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	var all [][]hold
	for i, d := range w.shape.disks {
		holds, err := w.holds(d)
		if err != nil {
			w.t.Error(err)
			continue
		}
		all = append(all, holds)
		for _, p := range overlaps(holds) {
			w.t.Errorf("OVERLAP on disk %s: %s wrote %v after %s had begun:\n  %s\n  %s", d.name, p[0].who, p[0].to().Sub(p[1].held), p[1].who, w.line(p[0]), w.line(p[1]))
		}
		pairs, err := lost(w.written(d))
		if err != nil {
			w.t.Error(err)
		}
		for _, p := range pairs {
			w.t.Errorf("OVERLAP on disk %s: what the older one wrote is lost: %s, %s", d.name, p[0], p[1])
		}
		dir := os.Getenv(lab.LogsEnv)
		if dir != "" {
			dir = filepath.Join(dir, w.t.Name())
		}
		h := history(w.began, i, holds, w.writers[d.name])
		if err := stress.Check(h, dir); err != nil {
			w.t.Errorf("disk %s: %v", d.name, err)
		}
		records := 0
		for _, g := range holds {
			records += g.records
		}
		w.t.Logf("disk %s: %d grants to %d writers, %d records, take-overs after a loss: %v; %s", d.name, len(holds), len(w.writers[d.name]), records, rounded(takeOvers(holds, w.writers[d.name])), h.Summary())
		if len(holds) < 2 { // one is of eachOnce
			w.t.Errorf("disk %s: only %d grants: nothing can be judged", d.name, len(holds))
		}
	}
	p := longestPause(w.began, end, all...)
	var meanwhile []string
	for _, f := range w.schedule {
		if at := w.began.Add(f.At); at.Before(p.to) && w.began.Add(f.end()+w.shape.holdOff).After(p.from) {
			meanwhile = append(meanwhile, f.String())
		}
	}
	w.t.Logf("the longest time without a grant was %v, from %.1f s on; at that time and shortly before:\n%s", p.length().Round(100*time.Millisecond), p.from.Sub(w.began).Seconds(), strings.Join(meanwhile, "\n"))
	var kinds []string
	for _, k := range slices.Sorted(maps.Keys(w.done)) {
		kinds = append(kinds, fmt.Sprintf("%s: %d", k, w.done[k]))
	}
	w.t.Logf("shape %s, seed %d, %v: %d faults done, %d not; %s; reboots by the operator:\n%s", w.shape.name, w.seed, w.whole, len(w.schedule)-w.missed, w.missed, strings.Join(kinds, ", "), strings.Join(w.reboots, "\n"))
	if w.resets > 0 {
		w.t.Logf("reset by their watchdogs: %d times", w.resets)
	}
	if w.hangs > 0 {
		w.t.Logf("KERNEL HANG, %d times: the DLM of the nodes' kernel did not get to the end of a recovery, and what should have been granted meanwhile is not judged (docs/chaos.md)", w.hangs)
	}
	if w.refused > 0 {
		w.t.Logf("REFUSED MESSAGE, %d times: dlm_controld of a host waited for a message that it had refused, vmlockd there said so, and the operator rebooted it (docs/chaos.md)", w.refused)
	}
	if w.changes > 0 {
		w.t.Logf("STUCK IN A CHANGE, %d times: a host was not well for %v, and dlm_controld of some host waited for others to change the lockspace", w.changes, stuckAfter)
	}
	if len(w.schedule) == w.missed {
		w.t.Error("nothing was done")
	}
}

func rounded(list []time.Duration) (out []time.Duration) {
	for _, d := range list {
		out = append(out, d.Round(100*time.Millisecond))
	}
	return out
}

// line is a hold for people, with the time since the schedule began.
func (w *world) line(h hold) string {
	at := func(t time.Time) string {
		if t.IsZero() {
			return "never"
		}
		return fmt.Sprintf("%.3f s", t.Sub(w.began).Seconds())
	}
	return fmt.Sprintf("%s turn %d: asked %s, had it %s, %d records, the last %s, gave it back %s", h.who, h.turn, at(h.asks), at(h.held), h.records, at(h.last), at(h.gave))
}

// shownHolds is how many grants of each disk a failure shows.
const shownHolds = 12

// explain says after a failure all that there is to know; the lab's logs come after it.
func (w *world) explain() {
	if !w.t.Failed() {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	var b strings.Builder
	fmt.Fprintf(&b, "shape %s, seed %d, %v\nplanned:\n%s\nhappened:\n%s\n", w.shape.name, w.seed, w.whole, w.planned(), strings.Join(w.notes, "\n"))
	for _, d := range w.shape.disks {
		holds, err := w.holds(d)
		if err != nil {
			fmt.Fprintf(&b, "disk %s: %v\n", d.name, err)
			continue
		}
		fmt.Fprintf(&b, "disk %s, the last grants:\n", d.name)
		for _, h := range holds[max(0, len(holds)-shownHolds):] {
			fmt.Fprintf(&b, "  %s\n", w.line(h))
		}
	}
	w.t.Logf("%splay it again: %s", b.String(), w.again())
}
