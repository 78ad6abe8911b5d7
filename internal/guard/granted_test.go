package guard

import (
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/corosync"
	"github.com/vmlockd/vmlockd/internal/locking"
)

// The watchdog is armed before anybody is told of a lock, and not disarmed by who has looked for owners before that.
func TestArmedBeforeTheGrantIsTold(t *testing.T) {
	var looked chan struct{} // nil, or the next look for owners finds none, says so, and waits for another one that has ended
	d := &dog{}
	var owners []Owner
	space := []uint32{1}
	g, err := New(Options{
		Mode: Freeze, Clock: func() time.Duration { return time.Hour }, Store: &steps{}, Dog: d,
		Node: func() (uint32, error) { return 1, nil }, Members: func() ([]uint32, error) { return space, nil },
		Ring: func() (corosync.Ring, error) { return corosync.Ring{Quorate: true}, nil },
		Owners: func() []Owner {
			list := owners
			if looked != nil {
				ch := looked
				looked = nil
				ch <- struct{}{}
				<-ch
			}
			return list
		},
		Processes: noProcesses{},
	})
	if err != nil {
		t.Fatal(err)
	}
	g.timing.Token, g.timing.Consensus = 5*time.Second, 6*time.Second
	g.proven, g.isProven = time.Hour, true
	g.Granted()
	if d.fed != 0 {
		t.Error("it is armed for a lock on what only this host can use")
	}
	var wg sync.WaitGroup
	ch := make(chan struct{})
	looked = ch
	wg.Go(func() { g.step(t.Context(), &sync.WaitGroup{}) })
	<-ch
	owners = []Owner{{PID: 7, Start: 1}}
	g.Granted()
	if d.fed != 1 {
		t.Errorf("when the lock is told of it was fed %d times", d.fed)
	}
	ch <- struct{}{}
	wg.Wait()
	if d.disarmed != 0 || !g.dog.open {
		t.Error("who has looked before the grant disarms it")
	}
	g.step(t.Context(), &sync.WaitGroup{})
	owners = nil
	g.step(t.Context(), &sync.WaitGroup{})
	if d.disarmed != 1 || g.dog.open {
		t.Errorf("with nothing left it was disarmed %d times", d.disarmed)
	}
	d.err = errors.New("busy")
	owners = []Owner{{PID: 7, Start: 1}}
	g.Granted() // the host goes on without it
	if g.dog.err != "busy" {
		t.Errorf("what is wrong with it: %q", g.dog.err)
	}
}

// noProcesses has nobody who could be opened.
type noProcesses struct{}

func (noProcesses) Open(int32, uint64) (Process, error) { return nil, locking.ErrNoProcess }
