package locking_test

import (
	"context"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/internal/locking"
	"github.com/vmlockd/vmlockd/internal/locking/locktest"
)

func TestDisconnectedEndsTheOwnerAndThenReleases(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		g, p := w.vm(1)
		p = p.Stubborn()
		w.acquire(g, disk("a"), locking.Exclusive)
		w.told()
		g.Disconnected()
		g.Close()
		<-p.Asked()
		settle()
		w.holders(disk("a"), 1)
		w.b.CheckQuiet(map[string]locking.Mode{"id-a": locking.Exclusive})
		other, _ := w.vm(2) // everybody else is served meanwhile
		w.acquire(other, disk("b"), locking.Exclusive)
		w.refused(other.Acquire(context.Background(), disk("a"), locking.Exclusive, false), locking.KindBusy)
		p.Kill()
		settle()
		w.acquire(other, disk("a"), locking.Exclusive)
		w.toldIs(locking.OwnerEnding, locking.Granted, locking.Refused, locking.OwnerGone, locking.ReleasedGone, locking.Granted)
	})
}

// Who holds nothing, or is gone, or is being ended, is not asked to end.
func TestDisconnectedSparesWhoHoldsNothing(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		g, p := w.vm(1)
		g.Disconnected()
		w.acquire(g, disk("a"), locking.Exclusive)
		w.release(g, disk("a"))
		g.Disconnected()
		settle()
		select {
		case <-p.Asked():
			t.Fatal("a process that holds nothing was asked to end")
		default:
		}
		w.toldIs(locking.Granted, locking.Released)
		g.Close()
		settle()
		w.empty()
	})
}

func TestDisconnectedTwiceEndsOnce(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		g, p := w.vm(1)
		p.Stubborn()
		two := w.register(1)
		w.acquire(g, disk("a"), locking.Exclusive)
		g.Disconnected()
		two.Disconnected()
		settle()
		w.toldIs(locking.Granted, locking.OwnerEnding)
		p.Kill()
		settle()
		two.Disconnected()
		settle()
		w.toldIs(locking.OwnerGone, locking.ReleasedGone)
	})
}

// An owner that the kernel cannot end keeps its locks, and that is said.
func TestOwnerThatDoesNotEnd(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		g, p := w.vm(1)
		p.Stubborn()
		w.acquire(g, disk("a"), locking.Exclusive)
		g.Disconnected()
		advance(locking.EndTimeout - 1)
		w.toldIs(locking.Granted, locking.OwnerEnding)
		advance(1)
		w.toldIs(locking.OwnerEndFailed)
		w.holders(disk("a"), 1)
		g.Disconnected() // a session that comes later may try again
		settle()
		w.toldIs(locking.OwnerEnding)
		p.Kill()
		settle()
		w.toldIs(locking.OwnerGone, locking.ReleasedGone)
		g.Close()
		settle()
		w.empty()
	})
}

// Its locks are given back by another session while it is being ended: the
// process is watched all the same, so that it is ended or reported.
func TestReleaseWhileBeingEnded(t *testing.T) {
	for _, ends := range []bool{true, false} {
		inWorld(t, func(t *testing.T, w *world) {
			g, p := w.vm(1)
			p.Stubborn()
			w.acquire(g, disk("a"), locking.Exclusive)
			g.Disconnected()
			g.Close()
			settle()
			libvirt := w.register(1)
			w.release(libvirt, disk("a"))
			libvirt.Close()
			settle()
			w.toldIs(locking.Granted, locking.OwnerEnding, locking.Released)
			if w.ps.Watched() != 1 {
				t.Fatal("a process that is being ended is not watched any more")
			}
			if ends {
				p.Kill()
				settle()
				w.toldIs()
			} else {
				advance(locking.EndTimeout)
				w.toldIs(locking.OwnerEndFailed)
			}
			w.empty()
		})
	}
}

// The watch may see the death before End does. That is no failure to end.
func TestNoFalseAlarmWhenTheOwnerEnds(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		g, p := w.vm(1)
		p.Overtaken()
		w.acquire(g, disk("a"), locking.Exclusive)
		g.Disconnected()
		g.Close()
		settle()
		w.toldIs(locking.Granted, locking.OwnerEnding, locking.OwnerGone, locking.ReleasedGone)
		w.empty()
	})
}

// No process has pid 0 or less, so no connection's end can prove anything of it:
// a peer in another pid namespace has pid 0.
func TestDisconnectedOfNoProcess(t *testing.T) {
	for _, pid := range []int32{0, -3} {
		inWorld(t, func(t *testing.T, w *world) {
			g := w.register(pid)
			w.acquire(g, disk("a"), locking.Exclusive)
			g.Disconnected()
			g.Close()
			settle()
			w.holders(disk("a"), pid)
			again := w.register(pid)
			w.acquire(again, disk("b"), locking.Exclusive)
			w.release(again, disk("a"))
		})
	}
}

// The peer itself had this pid, and has ended before it registered.
func TestDisconnectedOfADepartedPeer(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		g := w.register(77)
		w.acquire(g, disk("a"), locking.Exclusive)
		g.Disconnected()
		settle()
		w.holders(disk("a"))
		w.refused(g.Acquire(context.Background(), disk("a"), locking.Exclusive, false), locking.KindOwnerGone)
		late := w.register(77)
		w.refused(late.Acquire(context.Background(), disk("a"), locking.Exclusive, false), locking.KindOwnerGone)
		w.empty()
	})
}

// The peer that was gone when it registered is not the process that has its pid
// now.
func TestDisconnectedOfADepartedPeerWhosePIDIsUsedAgain(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		nobody := w.register(77)
		w.acquire(nobody, disk("a"), locking.Exclusive)
		real, _ := w.vm(77)
		w.acquire(real, disk("b"), locking.Exclusive)
		nobody.Disconnected()
		settle()
		w.holders(disk("a"))
		w.holders(disk("b"), 77)
		again := w.register(77)
		w.release(again, disk("b"))
		for _, g := range []*locking.Registration{nobody, real, again} {
			g.Close()
		}
		settle()
		w.empty()
	})
}

// Before the daemon is stopped or replaced, owners that are being ended are waited for,
// and what they held is released, while everybody else is served.
func TestAwaitEndings(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		if left := w.m.AwaitEndings(context.Background()); left != 0 {
			t.Fatalf("%d are being ended, and nobody is", left)
		}
		g, p := w.vm(1)
		p.Deaf(locking.EndPatience / 2)
		w.acquire(g, disk("a"), locking.Exclusive)
		gate := w.b.Block(locktest.On(locktest.OpUnlock, "id-a"))
		g.Disconnected()
		left := make(chan int, 1)
		go func() { left <- w.m.AwaitEndings(context.Background()) }()
		gate.Arrived() // it is gone, and its lock is not released yet
		settle()
		if n := w.m.Endings(); n != 1 || len(left) > 0 {
			t.Fatalf("%d are being ended, and it was waited for: %v", n, len(left) > 0)
		}
		other, _ := w.vm(2)
		w.acquire(other, disk("b"), locking.Exclusive)
		gate.Open()
		if n := <-left; n != 0 {
			t.Fatalf("%d have not ended", n)
		}
		w.holders(disk("a"))
		w.toldIs(locking.Granted, locking.OwnerEnding, locking.OwnerGone, locking.Granted, locking.ReleasedGone)
	})
}

// One that the kernel does not end is not waited for for ever, nor a second time.
func TestAwaitEndingsOfOneThatDoesNotEnd(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		p := w.stubborn()
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if left := w.m.AwaitEndings(ctx); left != 1 {
			t.Errorf("without time: %d", left)
		}
		begin := time.Now()
		for range 2 {
			if left := w.m.AwaitEndings(context.Background()); left != 1 || time.Since(begin) != locking.EndPatience {
				t.Errorf("%d have not ended after %v", left, time.Since(begin))
			}
		}
		w.toldIs(locking.Granted, locking.OwnerEnding)
		p.Kill()
		settle()
		w.toldIs(locking.OwnerGone, locking.ReleasedGone)
	})
}

// stubborn is an owner that is being ended, has been asked to end, and does not.
func (w *world) stubborn() *locktest.Process {
	g, p := w.vm(1)
	p.Stubborn()
	w.acquire(g, disk("a"), locking.Exclusive)
	g.Disconnected()
	<-p.Asked()
	return p
}
