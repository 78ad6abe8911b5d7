package cluster_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/dlm"
	"github.com/vmlockd/vmlockd/dlm/dlmtest"
	"github.com/vmlockd/vmlockd/internal/backend/cluster"
	"github.com/vmlockd/vmlockd/internal/fakeclock"
	"github.com/vmlockd/vmlockd/internal/locking"
)

const (
	ex = locking.Exclusive
	sh = locking.Shared
)

// unknown is a refusal of which nobody knows more.
const unknown = "Lockspace resource '/a' is locked: held on another host of the cluster"

func (hs *hosts) says(node int, mode locking.Mode, want string) {
	hs.t.Helper()
	if got := hs.refusal(node, "/a", mode).Error(); got != want {
		hs.t.Errorf("\n got %s\nwant %s", got, want)
	}
}

// saysVM is the refusal because of vm(n), since the time given.
func saysVM(n int, since time.Time, where string) string {
	return fmt.Sprintf("Lockspace resource '/a' is locked by a virtual machine (uuid %s, pid %d, exclusive since %s) on %s",
		locking.FormatUUID(vm(n).UUID), n, since.UTC().Format(time.RFC3339), where)
}

func TestRefusalNamesHolder(t *testing.T) {
	onHosts(t, 3, func(hs *hosts) {
		since := time.Now()
		h := hs.hold(1, "/a", ex, vm(799))
		hs.says(2, ex, unknown) // not yet
		if !hs.list[0].Publishing() {
			t.Error("nothing waits to be published")
		}
		pass(soon)
		if hs.list[0].Publishing() {
			t.Error("something waits after that")
		}
		hs.says(2, ex, saysVM(799, since, "host kvm1 (node 1)"))
		hs.says(3, sh, saysVM(799, since, "host kvm1 (node 1)"))
		hs.release(h)
		h = hs.hold(2, "/a", ex, vm(800))
		since = time.Now()
		hs.says(1, ex, unknown)
		pass(soon)
		hs.says(1, ex, saysVM(800, since, "node 2"))
		hs.release(h)
		h = hs.hold(3, "/a", sh, vm(801)) // who cannot write
		pass(soon)
		hs.says(1, ex, unknown)
		hs.release(h)
		fakeclock.Wait() // for what read the block
		if names := hs.nodes.Names(space); len(names) > 0 {
			t.Errorf("locks are left on %v", names)
		}
	})
}

// What is given back soon costs nothing.
func TestShortLocksAreNotPublished(t *testing.T) {
	onHosts(t, 1, func(hs *hosts) {
		for n := range 1000 {
			h := hs.hold(1, "/a", ex, vm(n))
			if n%100 == 0 {
				time.Sleep(50 * time.Millisecond) // by the bubble's clock
			}
			hs.release(h)
		}
		pass(later)
		if n := hs.host(1).begun(); n > 0 {
			t.Errorf("%d conversions", n)
		}
	})
}

// Nobody reads the name of an earlier holder, though somebody keeps the block.
func TestClearedAtRelease(t *testing.T) {
	onHosts(t, 3, func(hs *hosts) {
		end := hs.keep(3, "/a")
		defer end()
		h := hs.hold(1, "/a", ex, vm(1))
		pass(soon)
		if hs.block("/a") == (dlm.LVB{}) {
			t.Fatal("it was not published")
		}
		hs.release(h)
		if got := hs.block("/a"); got != (dlm.LVB{}) {
			t.Errorf("after the release the block is %x", got)
		}
		h = hs.hold(2, "/a", sh, vm(2))
		pass(soon)
		hs.says(1, ex, unknown)
		hs.release(h)
	})
}

// atGate keeps the results of conversions, or the conversions, at a gate.
func (h *host) atGate(result bool) *dlmtest.Gate {
	g := dlmtest.NewGate()
	h.setFault(func(op dlmtest.Op) (f dlmtest.Fault) {
		switch {
		case op.Op == "convert" && result:
			f.Result = g
		case op.Op == "convert":
			f.Before = g
		}
		return f
	})
	return g
}

// A release that meets the conversion of its lock comes after it.
func TestReleaseDuringPublication(t *testing.T) {
	for _, result := range []bool{false, true} {
		t.Run(fmt.Sprintf("result=%v", result), func(t *testing.T) {
			onHosts(t, 2, func(hs *hosts) {
				end := hs.keep(2, "/a")
				defer end()
				g := hs.host(1).atGate(result)
				h := hs.hold(1, "/a", ex, vm(1))
				pass(soon)
				if hs.host(1).begun() != 1 {
					t.Fatal("it is not being published")
				}
				other := hs.hold(1, "/b", ex, vm(2)) // meanwhile everything else goes on
				hs.release(other)
				released := make(chan error, 1)
				go func() { released <- h.Unlock(context.Background()) }()
				pass(soon)
				if held := hs.nodes.Locks(space, cluster.ResourceName(ref("/a"))); len(held) != 2 {
					t.Errorf("released before the conversion had ended: %v", held)
				}
				g.Open()
				if err := <-released; err != nil {
					t.Error(err)
				}
				fakeclock.Wait()
				if held := hs.nodes.Locks(space, cluster.ResourceName(ref("/a"))); len(held) != 1 || hs.block("/a") != (dlm.LVB{}) {
					t.Errorf("held %v, the block is %x", held, hs.block("/a"))
				}
			})
		})
	}
}

// While the lockspace is stopped nothing is published, and a release of what was
// being published then is answered in time and carried out later.
func TestStopDuringPublication(t *testing.T) {
	onHosts(t, 2, func(hs *hosts) {
		end := hs.keep(2, "/a")
		defer end()
		h := hs.hold(1, "/a", ex, vm(1))
		hs.nodes.Suspend(space)
		pass(time.Minute)
		if hs.host(1).begun() != 0 {
			t.Error("a conversion was written while the lockspace was stopped")
		}
		hs.nodes.Resume(space)
		pass(later)
		if hs.block("/a") == (dlm.LVB{}) {
			t.Error("it was not published afterwards")
		}
		hs.release(h)

		g := hs.host(1).atGate(false)
		h = hs.hold(1, "/a", ex, vm(2))
		pass(soon)
		hs.nodes.Suspend(space)
		g.Open()
		start := time.Now()
		if err := h.Unlock(context.Background()); !errors.Is(err, locking.ErrUnderway) || time.Since(start) > time.Second {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
		hs.nodes.Resume(space)
		pass(later)
		if held := hs.nodes.Locks(space, cluster.ResourceName(ref("/a"))); len(held) != 1 || hs.block("/a") != (dlm.LVB{}) || hs.host(1).Unsettled() != 0 {
			t.Errorf("held %v, the block is %x, %d unsettled", held, hs.block("/a"), hs.host(1).Unsettled())
		}
	})
}

// A conversion that fails changes nothing, and is tried a few times.
func TestPublicationFails(t *testing.T) {
	for _, failures := range []int{1, 100} {
		t.Run(fmt.Sprint(failures), func(t *testing.T) {
			onHosts(t, 2, func(hs *hosts) {
				left := failures
				hs.host(1).setFault(func(op dlmtest.Op) (f dlmtest.Fault) {
					if op.Op == "convert" && left > 0 {
						left--
						f.Err = syscall.ENOMEM
					}
					return f
				})
				since := time.Now()
				h := hs.hold(1, "/a", ex, vm(1))
				pass(time.Minute)
				want := saysVM(1, since, "host kvm1 (node 1)")
				if failures > 1 {
					want = unknown
				}
				hs.says(2, ex, want)
				if n := hs.host(1).begun(); n != min(failures+1, 3) {
					t.Errorf("tried %d times", n)
				}
				hs.release(h)
				if h, err := hs.try(2, "/a", ex); err != nil {
					t.Error(err)
				} else {
					hs.release(h)
				}
			})
		})
	}
}

// restore takes locks back and describes them, as the lock table does.
func (hs *hosts) restore(node int, owners map[string]locking.Owner, since time.Time) map[string]locking.Handle {
	hs.t.Helper()
	handles := map[string]locking.Handle{}
	for name, o := range owners {
		r := hs.host(node).Restore(context.Background(), []locking.Held{{ID: cluster.ResourceName(ref(name)), Ref: ref(name), Mode: ex}})[0]
		if r.Err != nil {
			hs.t.Fatalf("restore %s: %v", name, r.Err)
		}
		r.Handle.(locking.Describer).Describe(o, since)
		handles[name] = r.Handle
	}
	return handles
}

// The holder is named while no daemon runs for it, and after the next one has
// taken the lock back, which writes it again.
func TestPublishedAcrossRestart(t *testing.T) {
	onHosts(t, 2, func(hs *hosts) {
		since := time.Now()
		hs.hold(1, "/a", ex, vm(1))
		pass(soon)
		named := saysVM(1, since, "host kvm1 (node 1)")
		hs.kill(1)
		hs.says(2, ex, named)
		hs.start(1)
		before := hs.host(1).begun()
		handles := hs.restore(1, map[string]locking.Owner{"/a": vm(1)}, since)
		hs.says(2, ex, named)
		if hs.host(1).begun() != before {
			t.Error("it was written at once, while others want to be served")
		}
		pass(later)
		if n := hs.host(1).begun() - before; n != 1 {
			t.Errorf("it was written again %d times", n)
		}
		hs.says(2, ex, named)
		hs.release(handles["/a"])

		// Killed before it was published, it is published after the restart.
		since = time.Now()
		hs.hold(1, "/a", ex, vm(2))
		hs.kill(1)
		hs.says(2, ex, unknown)
		hs.start(1)
		hs.restore(1, map[string]locking.Owner{"/a": vm(2)}, since)
		pass(later)
		hs.says(2, ex, saysVM(2, since, "host kvm1 (node 1)"))

		// Released by the next process before it has written.
		hs.kill(1)
		hs.start(1)
		end := hs.keep(2, "/a")
		defer end()
		handles = hs.restore(1, map[string]locking.Owner{"/a": vm(2)}, since)
		hs.release(handles["/a"])
		if got := hs.block("/a"); got != (dlm.LVB{}) {
			t.Errorf("after the release the block is %x", got)
		}
	})
}

// Many locks that were taken back are published one at a time, and keep nobody
// waiting.
func TestManyTakenBack(t *testing.T) {
	const many = 1000
	onHosts(t, 2, func(hs *hosts) {
		owners := map[string]locking.Owner{}
		for n := range many {
			name := fmt.Sprint("/disk", n)
			owners[name] = vm(n)
			hs.hold(1, name, ex, vm(n))
		}
		hs.kill(1)
		hs.start(1)
		var mu sync.Mutex // guards the next two
		atOnce, most := 0, 0
		hs.host(1).setFault(func(op dlmtest.Op) (f dlmtest.Fault) {
			if op.Op != "convert" {
				return f
			}
			mu.Lock()
			defer mu.Unlock()
			atOnce++
			most = max(most, atOnce)
			f.Before = dlmtest.NewGate()
			time.AfterFunc(time.Millisecond, func() {
				mu.Lock()
				atOnce--
				mu.Unlock()
				f.Before.Open()
			})
			return f
		})
		hs.restore(1, owners, time.Now())
		pass(1100 * time.Millisecond)
		hs.hold(1, "/a", ex, vm(7))
		since := time.Now()
		pass(soon)
		hs.says(2, ex, saysVM(7, since, "host kvm1 (node 1)"))
		if n := hs.host(1).begun(); n > 100 {
			t.Errorf("%d of the old ones were published first", n)
		}
		pass(time.Minute)
		if n := hs.host(1).begun(); n != many+1 || most != 1 {
			t.Errorf("%d were published, %d at a time", n, most)
		}
	})
}

// After a power cut what the lost node has published is not shown for the next
// holder, though the block was kept.
func TestPowerCutInvalidates(t *testing.T) {
	onHosts(t, 3, func(hs *hosts) {
		end := hs.keep(2, "/a")
		defer end()
		hs.hold(1, "/a", ex, vm(1))
		pass(soon)
		hs.nodes.Node(1).PowerOff()
		hs.nodes.Recover()
		since := time.Now()
		h := hs.hold(3, "/a", ex, vm(3))
		hs.says(2, ex, unknown)
		pass(soon)
		hs.says(2, ex, saysVM(3, since, "node 3"))
		hs.release(h)
		hs.kill(1)
		hs.nodes.Node(1).Boot()
		hs.start(1)
	})
}
