package locking_test

import (
	"context"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/vmlockd/vmlockd/internal/locking"
)

// usage is what those who were told OK do with the resources: each looks
// whether anybody else is there that must not be.
type usage struct {
	users [4]atomic.Int64 // exclusive users count a million
}

const exclusively = 1_000_000

func (u *usage) enter(t *testing.T, id int, mode locking.Mode) {
	n := int64(1)
	if mode == locking.Exclusive {
		n = exclusively
	}
	if now := u.users[id].Add(n); now != n && (mode == locking.Exclusive || now >= exclusively) {
		t.Errorf("disk %d: used in mode %v beside %d others", id, mode, now-n)
	}
}

func (u *usage) leave(id int, mode locking.Mode) {
	if mode == locking.Exclusive {
		u.users[id].Add(-exclusively)
		return
	}
	u.users[id].Add(-1)
}

// Many owners at once, with sessions that come and go, processes that die in the
// middle of everything, requests that are given up, names with aliases, and a
// Manager that is closed at the end of it.
func TestManyAtOnce(t *testing.T) {
	w := newWorld(t)
	refs := []locking.Ref{disk("0"), disk("1"), disk("2"), disk("3"), disk("0'"), disk("1'"), disk("2'"), disk("3'")}
	for i, ref := range refs {
		w.b.Point(ref, "disk "+string(rune('0'+i%4)))
	}
	var (
		use usage
		wg  sync.WaitGroup
		ok  atomic.Int64
	)
	const owners, rounds = 12, 60
	for owner := range int32(owners) {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(owner), 1))
			for round := range int32(rounds) {
				pid := owner + 1 + owners*round
				p := w.ps.Start(pid)
				g := w.register(pid)
				dies := rnd.IntN(3) == 0
				for range 12 {
					i := rnd.IntN(len(refs))
					mode := locking.Mode(rnd.IntN(2))
					ctx, cancel := context.WithCancel(context.Background())
					if rnd.IntN(8) == 0 {
						go func() { runtime.Gosched(); cancel() }()
					}
					if g.Acquire(ctx, refs[i], mode, false) == nil {
						ok.Add(1)
						use.enter(t, i%4, mode)
						runtime.Gosched()
						use.leave(i%4, mode)
						if dies && rnd.IntN(4) == 0 {
							cancel()
							break // it keeps this one until it is dead
						}
						w.release(g, refs[i])
					} else if rnd.IntN(4) == 0 {
						// Whose it is does not change by what others ask for.
						if g.Release(context.Background(), refs[i]) == nil {
							t.Errorf("%d released what it does not hold", pid)
						}
					}
					cancel()
				}
				switch {
				case dies && rnd.IntN(2) == 0:
					g.Disconnected()
				case dies:
					go p.Kill()
				}
				g.Close()
			}
		})
	}
	// Others look on all the time.
	stop := make(chan struct{})
	var onlookers sync.WaitGroup
	onlookers.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			w.check()
			w.m.Holders()
			runtime.Gosched()
		}
	})
	wg.Wait()
	close(stop)
	onlookers.Wait()
	if ok.Load() < owners*rounds {
		t.Errorf("only %d locks were granted: the test tries too little", ok.Load())
	}
	eventually(t, func() bool { return w.m.Sizes() == locking.Sizes{} })
	w.empty()
	w.close()
}

// Close comes while everything is under way: it waits for what it must, and
// afterwards the tables and the backend still agree.
func TestCloseDuringEverything(t *testing.T) {
	for seed := range uint64(40) {
		w := newWorld(t)
		var wg sync.WaitGroup
		for owner := range int32(6) {
			p := w.ps.Start(owner + 1)
			wg.Go(func() {
				rnd := rand.New(rand.NewPCG(seed, uint64(owner)))
				g, err := w.m.Register(locking.Owner{PID: owner + 1})
				if err != nil {
					w.refused(err, locking.KindUnavailable)
					return
				}
				defer g.Close()
				for range 20 {
					ref := disk(string(rune('a' + rnd.IntN(3))))
					_ = g.Acquire(context.Background(), ref, locking.Mode(rnd.IntN(2)), false)
					switch rnd.IntN(12) {
					case 0:
						g.Disconnected()
					case 1:
						p.Kill()
					case 2, 3, 4, 5, 6:
						_ = g.Release(context.Background(), ref)
					}
				}
			})
		}
		for range seed {
			runtime.Gosched()
		}
		if err := w.m.Close(context.Background()); err != nil {
			t.Errorf("close: %v", err)
		}
		wg.Wait()
		w.check()
		held := map[string]locking.Mode{}
		for _, h := range w.m.Holders() {
			held["id-"+h.Ref.Name] = h.Mode
		}
		w.b.CheckQuiet(held)
		if n := w.ps.Watched(); n != 0 {
			t.Fatalf("%d processes are still watched", n)
		}
	}
}

// eventually is for what goroutines of the Manager still have to do, outside of
// bubbles, where nothing else tells when they have.
func eventually(t *testing.T, cond func() bool) {
	t.Helper()
	for range 10_000_000 {
		if cond() {
			return
		}
		runtime.Gosched()
	}
	t.Fatal("it did not become true")
}
