package cluster_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strconv"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/vmlockd/vmlockd/dlm/dlmtest"
	"github.com/vmlockd/vmlockd/internal/fakeclock"
	"github.com/vmlockd/vmlockd/internal/locking"
)

// ledger is who held what, to the nanosecond.
type ledger struct {
	mu       sync.Mutex // guards what follows
	vms      int
	released map[int32]time.Time // by pid: when its release had ended
	granted  map[int32]time.Time
	named    int
	unknown  int
}

func (l *ledger) next() locking.Owner {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.vms++
	return vm(l.vms)
}

// TestNoStaleHolder: three hosts take and give back, at random moments, results
// come late, daemons are killed and start again. A refusal never names somebody
// who had given the lock back before the request began, nor somebody who never
// had it.
func TestNoStaleHolder(t *testing.T) {
	const checks = 60
	given := flag.Lookup("rapid.checks").Value.String()
	_ = flag.Set("rapid.checks", strconv.Itoa(checks))
	defer func() { _ = flag.Set("rapid.checks", given) }()
	_ = flag.Set("rapid.nofailfile", "true")
	named, unknown := 0, 0
	fakeclock.Test(t, func(t *testing.T) {
		rapid.Check(bubbled{t}, func(rt *rapid.T) {
			l := &ledger{released: map[int32]time.Time{}, granted: map[int32]time.Time{}}
			noStaleHolder(rt, l)
			named, unknown = named+l.named, unknown+l.unknown
		})
	})
	t.Logf("%d refusals named a holder, %d did not", named, unknown)
	if !t.Failed() && (named < checks || unknown < checks) {
		t.Error("so little was shown")
	}
}

// bubbled keeps rapid from asking for the deadline, which a bubble has not.
type bubbled struct{ *testing.T }

func noStaleHolder(rt *rapid.T, l *ledger) {
	c := &collector{}
	hs := newHosts(c, 3)
	end := hs.keep(2, "/a") // so that the block outlives the locks
	seed := rapid.Uint64().Draw(rt, "seed")
	var all sync.WaitGroup
	for node := 1; node <= 3; node++ {
		rnd := rand.New(rand.NewPCG(seed, uint64(node)))
		faults := rand.New(rand.NewPCG(seed, uint64(10+node)))
		hs.host(node).setFault(func(dlmtest.Op) (f dlmtest.Fault) {
			g := dlmtest.NewGate()
			switch faults.IntN(6) {
			case 0:
				f.Before = g
			case 1:
				f.After = g
			case 2:
				f.Result = g
			default:
				return f
			}
			time.AfterFunc(time.Duration(faults.IntN(40_000))*time.Microsecond, g.Open)
			return f
		})
		all.Go(func() { hs.play(node, rnd, l) })
	}
	all.Wait()
	time.Sleep(time.Minute)
	fakeclock.Wait()
	end()
	hs.close()
	if names := hs.nodes.Names(space); len(names) > 0 {
		rt.Fatalf("locks are left on %v", names)
	}
	if c.first != "" {
		rt.Fatal(c.first)
	}
}

func (hs *hosts) play(node int, rnd *rand.Rand, l *ledger) {
	upTo := func(d time.Duration) { time.Sleep(time.Duration(rnd.Int64N(int64(d)))) }
	for range 30 {
		upTo(100 * time.Millisecond)
		begin := time.Now()
		h, err := hs.try(node, "/a", ex)
		if err != nil {
			h.Close()
			l.check(hs, begin, hs.explain("/a", err))
			continue
		}
		o, since := l.next(), time.Now()
		l.mu.Lock()
		l.granted[o.PID] = since
		l.mu.Unlock()
		h.(locking.Describer).Describe(o, since)
		upTo(300 * time.Millisecond)
		if rnd.IntN(4) == 0 {
			hs.kill(node)
			upTo(100 * time.Millisecond)
			hs.start(node)
			h = hs.restore(node, map[string]locking.Owner{"/a": o}, since)["/a"]
			upTo(2 * time.Second)
		}
		if err := h.Unlock(context.Background()); err != nil && !errors.Is(err, locking.ErrUnderway) {
			hs.t.Errorf("unlock: %v", err)
		}
		l.mu.Lock()
		l.released[o.PID] = time.Now()
		l.mu.Unlock()
	}
}

// check looks at what a request was told that began at that time.
func (l *ledger) check(hs *hosts, begin time.Time, e *locking.Error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(e.Remote) == 0 {
		l.unknown++
		return
	}
	l.named++
	for _, h := range e.Remote {
		since, had := l.granted[h.Owner.PID]
		if end, over := l.released[h.Owner.PID]; over && end.Before(begin) {
			hs.t.Errorf("vm %d is named %v after its release: %v", h.Owner.PID, begin.Sub(end), e)
		}
		if !had || h.Owner.UUID != vm(int(h.Owner.PID)).UUID || since.Unix() != h.Since.Unix() {
			hs.t.Errorf("somebody is named who never had it: %v", e)
		}
	}
}

// collector keeps the first failure for the goroutine of the property, from which
// rapid wants to hear it.
type collector struct {
	mu    sync.Mutex // guards first
	first string
}

func (*collector) Helper() {}

func (c *collector) Errorf(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.first == "" {
		c.first = fmt.Sprintf(format, args...)
	}
}

func (c *collector) Fatalf(format string, args ...any) {
	c.Errorf(format, args...)
	runtime.Goexit()
}
