package daemon

import (
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/internal/control"
	"github.com/vmlockd/vmlockd/internal/fakeclock"
	"github.com/vmlockd/vmlockd/internal/locking"
)

// TestIdler: the time begins when nobody uses the daemon any more, and anew with each
// client, also with one that has come and gone between two looks.
func TestIdler(t *testing.T) {
	fakeclock.Test(t, func(t *testing.T) {
		d := newIdler()
		defer d.stop()
		began := time.Now()
		d.set(10 * time.Second)
		// What is the case at which second, until the end is told.
		until := func(idle func(second int) bool, last func(second int) uint64) (second int) {
			for {
				<-d.look
				second = int(time.Since(began).Seconds())
				if d.check(idle(second), last(second)) {
					return second
				}
				if second > 100 {
					t.Fatal("it does not end")
				}
			}
		}
		no, yes := func(int) uint64 { return 3 }, func(int) bool { return true }
		if at := until(yes, no); at != 10 {
			t.Errorf("an idle one ends after %d s", at)
		}
		began = time.Now()
		d.set(10 * time.Second)
		if at := until(func(s int) bool { return s > 25 }, no); at != 36 {
			t.Errorf("one that is used for 25 s ends after %d s", at)
		}
		began = time.Now()
		d.set(10 * time.Second)
		if at := until(yes, func(s int) uint64 { return uint64(min(s, 20) / 5) }); at != 30 {
			t.Errorf("one that had its last short visit after 20 s ends after %d s", at)
		}
		d.set(0)
		time.Sleep(time.Hour)
		select {
		case <-d.look:
			t.Error("it is looked without a time")
		default:
		}
		if d.check(true, 4) {
			t.Error("it ends without a time")
		}
	})
}

// TestLastLook: a daemon that is to end grants nothing any more; one that turns out to
// be used goes on as before, drained or not.
func TestLastLook(t *testing.T) {
	for _, drained := range []bool{false, true} {
		var now []bool // what the table of locks was told
		d := &drainer{path: t.TempDir() + "/draining.json", locks: locking.New(locking.Options{}), tell: func(bool) {}}
		draining := func() bool { return d.locks.Draining() }
		if drained {
			if err := d.Drain(&control.Drained{Since: time.Now()}); err != nil {
				t.Fatal(err)
			}
		}
		used := d.last(func() bool { now = append(now, draining()); return false })
		if used || !now[0] || draining() != drained {
			t.Errorf("drained %v: it ends: %v, and grants nothing: %v, later %v", drained, used, now, draining())
		}
		if !d.last(func() bool { return true }) || !draining() {
			t.Errorf("drained %v: it does not end, or grants something", drained)
		}
	}
}
