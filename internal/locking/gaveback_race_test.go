package locking_test

import (
	"context"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/locking/locktest"
)

// note is what libvirt writes of one virtual machine: a Witness, and what it shows.
type note struct {
	mu      sync.Mutex
	stamp   locking.Stamp
	running bool
}

func (n *note) write(running bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.stamp.Inode++
	n.running = running
}

func (n *note) read() (locking.Stamp, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.stamp, n.running
}

func (n *note) Stamp(locking.Owner) locking.Stamp {
	s, _ := n.read()
	return s
}

func (n *note) GaveBack() {}

// TestTakeAgainRaces suspends and resumes a virtual machine again and again, which libvirt notes after it has given
// the lock back; at times it forgets to ask for the lock. Somebody looks at the notes all the time, and takes the lock again. While it is
// suspended the lock is free in the end, so that another host can have the disk, and every request of libvirt is
// answered as it is without all that, but that the lock is there when it was forgotten.
func TestTakeAgainRaces(t *testing.T) {
	rounds := 2000
	if testing.Short() {
		rounds = 200
	}
	b, ps, n := locktest.NewBackend(t), locktest.NewProcesses(t), &note{}
	m := locking.New(locking.Options{Backend: b, Processes: ps, Witness: n})
	b.Point(disk("a"), "id-a")
	ps.Start(1)
	g, err := m.Register(locking.Owner{PID: 1, Name: "vm"})
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	var looking sync.Mutex // held during a look
	var watching sync.WaitGroup
	over := make(chan struct{})
	taken := 0 // guarded by looking
	look := func() {
		looking.Lock()
		defer looking.Unlock()
		for _, gift := range m.GivenBack() {
			if seen, running := n.read(); running && m.TakeAgain(ctx, gift, seen) == nil {
				taken++
			}
		}
	}
	watching.Go(func() {
		for {
			select {
			case <-over:
				return
			default:
				look()
			}
		}
	})
	n.write(true)
	held := false // as libvirt believes
	for round := range rounds {
		if forget := rand.IntN(3) == 0; !forget {
			if err := g.Acquire(ctx, disk("a"), locking.Exclusive, false); err != nil {
				t.Fatalf("round %d: acquire: %v", round, err)
			}
			held = true
		}
		n.write(true)
		if rand.IntN(2) == 0 {
			look()
		}
		if err := g.Release(ctx, disk("a")); err != nil && held {
			t.Fatalf("round %d: release: %v", round, err)
		}
		held = false
		if rand.IntN(2) == 0 {
			look() // before it is noted that it is suspended
		}
		n.write(false)
		looking.Lock() // what has begun before is over
		if h := m.Holders(); len(h) != 0 {
			t.Fatalf("round %d: it is suspended, and has %v", round, h)
		}
		looking.Unlock()
	}
	close(over)
	watching.Wait()
	if taken == 0 {
		t.Error("nothing was ever taken again")
	}
	t.Logf("taken again %d times in %d rounds", taken, rounds)
	if err := m.Check(); err != nil {
		t.Error(err)
	}
	g.Close()
	if err := m.Close(ctx); err != nil {
		t.Error(err)
	}
}
