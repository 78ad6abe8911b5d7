package cluster_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vmlockd/vmlockd/dlm"
	"github.com/vmlockd/vmlockd/dlm/dlmtest"
	"github.com/vmlockd/vmlockd/internal/backend/cluster"
	"github.com/vmlockd/vmlockd/internal/fakeclock"
	"github.com/vmlockd/vmlockd/internal/locking"
)

// peerFunc is peers in one function.
type peerFunc func(ctx context.Context, resource string) ([]locking.RemoteHolder, []uint32)

func (f peerFunc) Holders(ctx context.Context, resource string) ([]locking.RemoteHolder, []uint32) {
	return f(ctx, resource)
}

func (hs *hosts) setPeers(f peerFunc) {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	hs.peers = f
}

func web(node uint32, mode locking.Mode) locking.RemoteHolder {
	o := vm(799)
	o.Name = "web"
	return locking.RemoteHolder{Node: node, Holder: locking.Holder{Owner: o, Mode: mode, Since: time.Now()}}
}

func TestPeersName(t *testing.T) {
	onHosts(t, 3, func(hs *hosts) {
		h := hs.hold(1, "/a", ex, vm(799))
		defer hs.release(h)
		pass(soon)
		var asked string
		hs.setPeers(func(_ context.Context, resource string) ([]locking.RemoteHolder, []uint32) {
			asked = resource
			return []locking.RemoteHolder{web(1, ex)}, []uint32{1, 3}
		})
		e := hs.refusal(2, "/a", ex)
		if text := e.Error(); !strings.HasPrefix(text, "Lockspace resource '/a' is locked by virtual machine web (uuid 031f0000-") ||
			!strings.HasSuffix(text, ") on host kvm1 (node 1)") {
			t.Error(text)
		}
		if len(e.Remote) != 1 || e.Remote[0].Node != 1 || e.Remote[0].Host != "kvm1" || e.Remote[0].Owner.Name != "web" {
			t.Errorf("%+v", e.Remote)
		}
		if asked != cluster.ResourceName(ref("/a")) {
			t.Errorf("asked for %q", asked)
		}
		hs.setPeers(func(context.Context, string) ([]locking.RemoteHolder, []uint32) { return nil, []uint32{1} })
		hs.says(2, ex, unknown) // its own node says that it has given it back
		hs.setPeers(func(context.Context, string) (list []locking.RemoteHolder, _ []uint32) {
			for n := range uint32(6) {
				list = append(list, web(n+10, sh))
			}
			return list, []uint32{10}
		})
		if text := hs.refusal(2, "/a", ex).Error(); !strings.HasSuffix(text, " and 2 more") {
			t.Error(text)
		}
	})
}

// Who shares with this host is asked for, within the same time, and nothing is read
// of the lock, whose value nobody who shares it writes.
func TestSharers(t *testing.T) {
	onHosts(t, 2, func(hs *hosts) {
		h := hs.hold(1, "/a", ex, vm(1))
		pass(soon) // it is published
		hs.release(h)
		h = hs.hold(2, "/a", sh, vm(2))
		defer hs.release(h)
		writes := 0
		hs.host(2).setFault(func(dlmtest.Op) (f dlmtest.Fault) { writes++; return f })
		find := func() []locking.RemoteHolder {
			return h.(locking.Sharer).Sharers().FindHolders(context.Background())
		}
		if list := find(); len(list) != 0 {
			t.Errorf("nobody answers, and %v share it", list)
		}
		hs.setPeers(func(context.Context, string) ([]locking.RemoteHolder, []uint32) {
			return []locking.RemoteHolder{web(1, sh)}, []uint32{1}
		})
		if list := find(); len(list) != 1 || list[0].Host != "kvm1" || list[0].Owner.Name != "web" {
			t.Errorf("%v share it", list)
		}
		hs.setPeers(func(ctx context.Context, _ string) ([]locking.RemoteHolder, []uint32) {
			<-ctx.Done()
			return nil, nil
		})
		start := time.Now()
		if list := find(); len(list) != 0 || time.Since(start) != 300*time.Millisecond {
			t.Errorf("%v share it, after %v", list, time.Since(start))
		}
		hs.host(2).setFault(nil)
		if writes > 0 {
			t.Errorf("the kernel was asked %d times", writes)
		}
	})
}

// Peers that do not answer cost 300 ms, and what is published is said all the same.
func TestSilentPeers(t *testing.T) {
	onHosts(t, 2, func(hs *hosts) {
		since := time.Now()
		h := hs.hold(1, "/a", ex, vm(1))
		defer hs.release(h)
		pass(soon)
		hs.setPeers(func(ctx context.Context, _ string) ([]locking.RemoteHolder, []uint32) {
			<-ctx.Done()
			return nil, nil
		})
		start := time.Now()
		hs.says(2, ex, saysVM(1, since, "host kvm1 (node 1)"))
		if took := time.Since(start); took != 300*time.Millisecond {
			t.Errorf("took %v", took)
		}
	})
}

// TestLookUpFails: whatever happens to the look-up, it is a refusal because the
// resource is busy, in time, and nothing is left in the kernel.
func TestLookUpFails(t *testing.T) {
	for name, make := range map[string]func(*dlmtest.Gate) dlmtest.Fault{
		"hangs before": func(g *dlmtest.Gate) dlmtest.Fault { return dlmtest.Fault{Before: g} },
		"hangs after":  func(g *dlmtest.Gate) dlmtest.Fault { return dlmtest.Fault{After: g} },
		"no result":    func(g *dlmtest.Gate) dlmtest.Fault { return dlmtest.Fault{Result: g} },
		"error":        func(*dlmtest.Gate) dlmtest.Fault { return dlmtest.Fault{Err: errors.New("no")} },
	} {
		t.Run(name, func(t *testing.T) {
			onHosts(t, 2, func(hs *hosts) {
				gate := dlmtest.NewGate()
				fault := make(gate)
				h := hs.hold(1, "/a", ex, vm(1))
				pass(soon)
				hs.host(2).setFault(func(op dlmtest.Op) (f dlmtest.Fault) {
					if op.Op == "lock" && op.Mode == dlm.NL {
						f = fault
					}
					return f
				})
				var all sync.WaitGroup
				for range 20 { // more than may look at a time
					all.Go(func() { hs.says(2, ex, unknown) })
				}
				all.Wait()
				gate.Open()
				fakeclock.Wait()
				if held := hs.nodes.Locks(space, cluster.ResourceName(ref("/a"))); len(held) != 1 {
					t.Errorf("the look-ups leave %v", held)
				}
				hs.release(h)
			})
		})
	}
}

// A resource is refused, and before the holder is looked for the lockspace stops.
func TestNoLookUpWhileStopped(t *testing.T) {
	onHosts(t, 2, func(hs *hosts) {
		h := hs.hold(1, "/a", ex, vm(1))
		pass(soon)
		_, err := hs.try(2, "/a", ex)
		hs.nodes.Suspend(space)
		writes := 0
		hs.host(2).setFault(func(dlmtest.Op) (f dlmtest.Fault) { writes++; return f })
		if text := hs.explain("/a", err).Error(); text != unknown || writes > 0 {
			t.Errorf("%d writes: %s", writes, text)
		}
		hs.nodes.Resume(space)
		hs.release(h)
	})
}

// The look-up ends with the backend.
func TestLookUpWhileClosing(t *testing.T) {
	onHosts(t, 2, func(hs *hosts) {
		h := hs.hold(1, "/a", ex, vm(1))
		_, err := hs.try(2, "/a", ex)
		hs.setPeers(func(ctx context.Context, _ string) ([]locking.RemoteHolder, []uint32) {
			<-ctx.Done()
			return nil, nil
		})
		time.AfterFunc(100*time.Millisecond, func() { _ = hs.host(2).Close(context.Background(), false) })
		start := time.Now()
		if text := hs.explain("/a", err).Error(); text != unknown || time.Since(start) != 100*time.Millisecond {
			t.Errorf("after %v: %s", time.Since(start), text)
		}
		fakeclock.Wait()
		hs.start(2)
		hs.release(h)
	})
}

// Nonsense in the block is not shown, nor is a record that somebody else has
// spoilt.
func TestForeignBlock(t *testing.T) {
	onHosts(t, 2, func(hs *hosts) {
		ls, err := dlm.Open(context.Background(), hs.nodes.Node(1), space, dlm.Options{})
		if err != nil {
			t.Fatal(err)
		}
		l, err := ls.Lock(context.Background(), cluster.ResourceName(ref("/a")), dlm.EX, dlm.LockOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for n := range 256 {
			var b dlm.LVB
			for i := range b {
				b[i] = byte(n + i*n)
			}
			if err := l.Convert(context.Background(), dlm.EX, dlm.ConvertOptions{WriteLVB: &b}); err != nil {
				t.Fatal(err)
			}
			if text := hs.refusal(2, "/a", ex).Error(); text != unknown {
				t.Fatal(fmt.Sprintf("%x: ", b), text)
			}
		}
		if err := ls.Close(context.Background()); err != nil {
			t.Fatal(err)
		}
	})
}
